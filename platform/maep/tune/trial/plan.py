"""The plan of a training phase: its length and rungs, computed from the budget before it starts, kept to resume."""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from maep import config, storage
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.tune.config import TuneConfig
from maep.tune.record import Budget
from maep.tune.search import halving
from maep.tune.trial import budget

COSTS = "costs"
PLAN = "plan.json"


@dataclass(frozen=True)
class PhasePlan:
    """How many images a phase sees, and what one of them costs."""

    samples: int
    levels: list[int]
    """Images at each rung; the last is `samples`."""
    flops: float
    """Of one image."""
    started: str
    """ISO 8601, UTC."""


def check_length(search: TuneConfig) -> None:
    """Refuses a budget of images that is too small for any trial; other budgets are only known once measured."""
    if search.budget.kind != "samples_seen":
        return
    one, first, size, spent = budget.ImageCost(0.0, None), search.pretrain, search.finetune.loop.batch_size, 0
    if first is not None and hasattr(search.finetune.model, "mae"):
        spent = budget.for_pretraining(search.budget, one, first.loop.batch_size)
    _levels(search, budget.for_finetuning(search.budget, spent, one, size), size)


def read_plan(folder: Path) -> PhasePlan | None:
    """The plan of the training in `folder`; None where it has not started."""
    path = folder / PLAN
    return config.build(PhasePlan, json.loads(path.read_text())) if path.is_file() else None


def plan_phase(
    output: Path, search: TuneConfig, settings: PretrainConfig | FinetuneConfig, folder: Path, before: Budget
) -> PhasePlan:
    """The plan of a phase in `folder`, made and written there if it is missing; `before` is what was spent already."""
    if (known := read_plan(folder)) is not None:
        return known
    kind, size = search.budget.kind, settings.loop.batch_size
    cost = _image_cost(output, settings, kind)
    if isinstance(settings, PretrainConfig):
        samples = budget.for_pretraining(search.budget, cost, size)
        levels = [samples]
    else:
        samples = budget.for_finetuning(search.budget, getattr(before, kind), cost, size)
        levels = _levels(search, samples, size)
    plan = PhasePlan(samples, levels, cost.flops, datetime.now(UTC).isoformat(timespec="seconds"))
    storage.write_bytes(folder / PLAN, json.dumps(dataclasses.asdict(plan)).encode())
    return plan


def _image_cost(output: Path, phase: PretrainConfig | FinetuneConfig, kind: str) -> budget.ImageCost:
    """The cost of an image of `phase`, measured by the first trial of the search that needs it.

    Phases that differ only in the seed share it, so that repeats see equally many images.
    """
    values = config.deciding(phase)
    del values["init"], values["loop"]["samples"], values["loop"]["seed"]
    path = output / COSTS / f"{config.digest([values, kind])}.json"
    if not path.is_file():
        text = json.dumps(dataclasses.asdict(budget.image_cost(phase, kind)))
        beside = path.with_suffix(f".{uuid.uuid4().hex}")
        storage.write_bytes(beside, text.encode())
        with suppress(FileExistsError):  # another trial measured it first, and its cost counts
            os.link(beside, path)
        beside.unlink()
    return config.build(budget.ImageCost, json.loads(path.read_text()))


def _levels(search: TuneConfig, samples: int, batch_size: int) -> list[int]:
    rungs = search.halving
    return halving.levels(samples, batch_size, rungs.num_rungs, rungs.factor) if rungs else [samples]
