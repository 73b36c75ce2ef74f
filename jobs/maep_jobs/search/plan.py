"""What `maep tune --dry-run` says: the trials, their images, and how long it takes, measured on this machine."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from maep.errors import UserError
from maep.train.classifier import classification
from maep.train.loop.run import run
from maep.tune.config import TuneConfig
from maep.tune.report.section import setting_text
from maep.tune.search import execute, halving, space, suggest
from maep.tune.search.space import Settings
from maep.tune.trial import budget, trial_config
from maep.tune.trial.trial_config import Phases

_MEASURED = 3
"""Trials of different models."""
_STEPS = {"counted": 1, "timed": 2}
"""Of each: enough for an estimate, which is as rough as the machine is busy."""


def plan(search: TuneConfig, output: Path) -> list[str]:
    """A line each. Where the budget is no time, a few of the first settings are trained for some steps: seconds."""
    chosen = [*search.fixed, *suggest.choose(search, min(search.num_trials, suggest.generation_size(search)), [])]
    allowed = suggest.check(search)
    size = "endless" if space.size(search.space) is None else f"{space.size(search.space):,} settings"
    counted = "" if allowed is None or not search.space else f", {allowed:,} of them allowed"
    total = suggest.most_trials(search)
    amount = f"{search.budget.amount:,.6g} {search.budget.kind}"
    lines = [
        f"space: {size}{counted}; {search.searcher} chooses"
        + (f", {search.generation} at a time" if search.searcher == "tpe" else ""),
        f"trials: {total} at most, each {amount}, the same for all",
        *(f"trial {trial_config.trial_id(number, each)}: {setting_text(each)}" for number, each in enumerate(chosen)),
    ]
    if total > len(chosen):
        lines.append(f"and {total - len(chosen)} more, which follow from what these find")
    return [*lines, *_halving(search), *_length(search, chosen, total), f"result and report: {output}"]


def _halving(search: TuneConfig) -> list[str]:
    if search.halving is None:
        return []
    rungs, factor = search.halving.num_rungs, search.halving.factor
    levels = halving.levels(factor ** (rungs - 1), 1, rungs, factor)
    shares = ", ".join(f"1/{levels[-1] // level}" if level < levels[-1] else "all" for level in levels)
    return [f"halving: rungs at {shares} of fine-tuning; about 1 in {factor} goes on past each"]


def _length(search: TuneConfig, chosen: list[Settings], total: int) -> list[str]:
    """Images and time of all trials, were none stopped: by the budget itself, or by the mean of a few, measured."""
    at_once = max(1, int((os.cpu_count() or 1) / execute.need(search)["CPU"]))
    stopped = " before any is stopped" if search.halving is not None else ""
    if search.budget.kind == "core_seconds":
        hours = total * search.budget.amount / at_once / 3600
        return [
            "images: as many as that time allows, which is measured when a trial begins",
            f"time: {hours:.2g} hours of training{stopped}, {at_once} at once on this machine; measuring comes on top",
        ]
    images, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            ready = _with_untrained(search, Path(folder))
            made = {repr(made.finetune.model): made for made in (trial_config.phases(ready, each) for each in chosen)}
            for each in [*made.values()][:_MEASURED]:
                seen, cpu = _one(ready, each)
                images.append(seen)
                seconds.append(cpu)
        except UserError as error:
            return [f"images and time: not known, {error}"]
    hours = total * sum(seconds) / len(seconds) / at_once / 3600
    mean = sum(images) / len(images)
    return [
        f"images: {total * mean:,.0f} in all{stopped}, about {mean:,.0f} a trial",
        f"time: {hours:.2g} hours of training{stopped}, {at_once} at once on this machine, by {len(seconds)} trials'"
        " first steps; measuring comes on top",
    ]


def _with_untrained(search: TuneConfig, folder: Path) -> TuneConfig:
    """The search with classifiers of its own that have taken one step: an attack on them takes as long."""
    places = {}
    for each in search.classifiers:
        short = replace(each, loop=replace(each.loop, samples=each.loop.batch_size))
        places[each.name] = str(run(classification(short), folder / each.name).folder)
    named = tuple(places.get(spec, spec) for spec in search.finetune.classifiers)
    return replace(search, finetune=replace(search.finetune, classifiers=named))


def _one(search: TuneConfig, made: Phases) -> tuple[int, float]:
    """Images and processor seconds of a trial that is trained to its end."""
    kind, images, seconds, spent = search.budget.kind, 0, 0.0, 0.0
    if made.pretrain is not None:
        cost = budget.cost(made.pretrain, "core_seconds", **_STEPS)
        samples = budget.for_pretraining(search.budget, cost, made.pretrain.loop.batch_size)
        images, seconds = samples, samples * (cost.core_seconds or 0.0)
        spent = samples * cost.of(kind)
    cost = budget.cost(made.finetune, "core_seconds", **_STEPS)
    samples = budget.for_finetuning(search.budget, spent, cost, made.finetune.loop.batch_size)
    return images + samples, seconds + samples * (cost.core_seconds or 0.0)
