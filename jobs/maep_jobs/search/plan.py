"""The plan that `maep tune --dry-run` prints: the trials and what they may spend."""

from __future__ import annotations

import os
from pathlib import Path

from maep.tune.config import TuneConfig
from maep.tune.search import execute, halving, space, suggest
from maep.tune.search.space import setting_text
from maep.tune.trial.trial import trial_id


def plan(search: TuneConfig, output: Path) -> list[str]:
    """The lines of the plan. Nothing is trained."""
    chosen = [*search.fixed, *suggest.choose(search, min(search.num_trials, suggest.generation_size(search)), [])]
    allowed = suggest.check(search)
    size = "continuous" if space.size(search.space) is None else f"{space.size(search.space):,} settings"
    counted = "" if allowed is None or not search.space else f", {allowed:,} of them allowed"
    total = suggest.most_trials(search)
    amount = f"{search.budget.amount:,.6g} {search.budget.kind}"
    lines = [
        f"space: {size}{counted}; {search.searcher} chooses"
        + (f", {search.generation} at a time" if search.searcher == "tpe" else ""),
        f"trials: at most {total}, each with a budget of {amount}",
        *(f"trial {trial_id(number, each)}: {setting_text(each)}" for number, each in enumerate(chosen)),
    ]
    if total > len(chosen):
        lines.append(f"and {total - len(chosen)} more, chosen from the results of these")
    return [*lines, *_halving(search), *_length(search, total), f"result and report: {output}"]


def _halving(search: TuneConfig) -> list[str]:
    if search.halving is None:
        return []
    rungs, factor = search.halving.num_rungs, search.halving.factor
    levels = halving.levels(factor ** (rungs - 1), 1, rungs, factor)
    shares = ", ".join(f"1/{levels[-1] // level}" if level < levels[-1] else "all" for level in levels)
    return [f"halving: rungs at {shares} of fine-tuning; about 1 in {factor} trials is promoted at each"]


def _length(search: TuneConfig, total: int) -> list[str]:
    """What all trials spend if none is stopped, as far as it is known before the cost of an image is measured."""
    amount, stopped = total * search.budget.amount, " before any is stopped" if search.halving is not None else ""
    if search.budget.kind == "samples_seen":
        return [f"images: {amount:,.0f} in all{stopped}"]
    if search.budget.kind == "flops":
        return [f"operations: {amount:.4g} in all{stopped}"]
    at_once = max(1, int((os.cpu_count() or 1) / execute.need(search)["CPU"]))
    hours = f"{amount / at_once / 3600:.2g} hours of training{stopped}"
    return [f"time: {hours}, {at_once} trials at once on this machine, plus measuring"]
