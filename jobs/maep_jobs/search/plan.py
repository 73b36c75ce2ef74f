"""The plan that `maep tune --dry-run` prints: the trials, their images, and the time they take on this machine."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from maep.errors import UserError
from maep.train.classifier import classification
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.train.loop.run import run
from maep.tune.config import TuneConfig
from maep.tune.search import execute, halving, space, suggest
from maep.tune.search.space import Settings, setting_text
from maep.tune.trial import budget
from maep.tune.trial.trial import phases, trial_id

_MEASURED = 3
"""Trials, of different models, whose cost is measured."""
_STEPS = {"counted": 1, "timed": 2}
"""Steps of each: enough for a rough estimate."""


def plan(search: TuneConfig, output: Path) -> list[str]:
    """The lines of the plan. Unless the budget is in core-seconds, a few trials train for some steps."""
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
        lines.append(f"and {total - len(chosen)} more, chosen by the results of these")
    return [*lines, *_halving(search), *_length(search, chosen, total), f"result and report: {output}"]


def _halving(search: TuneConfig) -> list[str]:
    if search.halving is None:
        return []
    rungs, factor = search.halving.num_rungs, search.halving.factor
    levels = halving.levels(factor ** (rungs - 1), 1, rungs, factor)
    shares = ", ".join(f"1/{levels[-1] // level}" if level < levels[-1] else "all" for level in levels)
    return [f"halving: rungs at {shares} of fine-tuning; about 1 in {factor} trials is promoted at each"]


def _length(search: TuneConfig, chosen: list[Settings], total: int) -> list[str]:
    """Images and time of all trials if none is stopped, from the budget or from the measured cost of a few trials."""
    at_once = max(1, int((os.cpu_count() or 1) / execute.need(search)["CPU"]))
    stopped = " before any is stopped" if search.halving is not None else ""
    if search.budget.kind == "core_seconds":
        hours = total * search.budget.amount / at_once / 3600
        return [
            "images: as many as that time allows, measured when a trial starts",
            f"time: {hours:.2g} hours of training{stopped}, {at_once} trials at once on this machine, plus measuring",
        ]
    images, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            ready = _with_untrained(search, Path(folder))
            made = {repr(made[1].model): made for made in (phases(ready, each) for each in chosen)}
            for each in [*made.values()][:_MEASURED]:
                seen, cpu = _one(ready, *each)
                images.append(seen)
                seconds.append(cpu)
        except UserError as error:
            return [f"images and time: unknown, {error}"]
    hours = total * sum(seconds) / len(seconds) / at_once / 3600
    mean = sum(images) / len(images)
    return [
        f"images: {total * mean:,.0f} in all{stopped}, about {mean:,.0f} a trial",
        f"time: {hours:.2g} hours of training{stopped}, {at_once} trials at once on this machine, plus measuring;"
        f" estimated from the first steps of {len(seconds)} trials",
    ]


def _with_untrained(search: TuneConfig, folder: Path) -> TuneConfig:
    """The search with its own classifiers trained for one step: attacks on them cost the same."""
    places = {}
    for each in search.classifiers:
        short = replace(each, loop=replace(each.loop, samples=each.loop.batch_size))
        places[each.name] = str(run(classification(short), folder / each.name).folder)
    named = tuple(places.get(spec, spec) for spec in search.finetune.classifiers)
    return replace(search, finetune=replace(search.finetune, classifiers=named))


def _one(search: TuneConfig, pretrain: PretrainConfig | None, finetune: FinetuneConfig) -> tuple[int, float]:
    """Images and processor seconds of a trial that trains to the end."""
    kind, images, seconds, spent = search.budget.kind, 0, 0.0, 0.0
    if pretrain is not None:
        cost = budget.image_cost(pretrain, "core_seconds", **_STEPS)
        samples = budget.for_pretraining(search.budget, cost, pretrain.loop.batch_size)
        images, seconds = samples, samples * (cost.core_seconds or 0.0)
        spent = samples * cost.of(kind)
    cost = budget.image_cost(finetune, "core_seconds", **_STEPS)
    samples = budget.for_finetuning(search.budget, spent, cost, finetune.loop.batch_size)
    return images + samples, seconds + samples * (cost.core_seconds or 0.0)
