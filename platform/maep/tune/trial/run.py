"""One piece of a trial's work, in the process where it runs: a pretraining, or fine-tuning up to a rung and measuring.

A piece that is repeated goes on from its newest checkpoint, and one that is done does nothing: all it needs to know
lies in the search's output, in files that are written whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from maep import artifact, config, storage
from maep.artifact import Artifact
from maep.data.datasets import inventory
from maep.errors import Stopped
from maep.train.checkpoint import history
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.train.loop.run import Progress
from maep.train.ray.workers import train
from maep.tune import record
from maep.tune.config import TuneConfig
from maep.tune.metrics.measuring import measure
from maep.tune.record import Budget, Point
from maep.tune.search import halving
from maep.tune.search.space import Settings
from maep.tune.trial import budget
from maep.tune.trial.trial_config import Phases, phases, trial_id

Phase = TypeVar("Phase", PretrainConfig, FinetuneConfig)
PRETRAINED = "pretrained"
COSTS = "costs"
PLAN = "plan.json"
SPENT = "spent.json"


@dataclass(frozen=True)
class Trial:
    """A setting that is tried."""

    number: int
    settings: Settings
    phases: Phases
    pretraining: str | None
    """Key of its pretraining, the same for all trials that share it; None: it has none."""

    @property
    def trial_id(self) -> str:
        """From number and settings."""
        return trial_id(self.number, self.settings)

    @property
    def seed(self) -> int:
        """Of its training."""
        return self.phases.finetune.loop.seed


@dataclass(frozen=True)
class Plan:
    """How long a phase is and what an image of it costs; written before it begins."""

    samples: int
    levels: list[int]
    """Images at each rung; the last is `samples`."""
    flops: float
    """Of an image."""
    started: str


def make(search: TuneConfig, number: int, settings: Settings) -> Trial:
    """The trial with `settings`. Raises ConfigError where they do not go together."""
    made = phases(search, settings)
    key = None if made.pretrain is None else _key(made.pretrain, search)
    return Trial(number, settings, made, key)


def check_length(search: TuneConfig) -> None:
    """Refuses a budget of images that is too small for any trial (of another one only a measurement tells)."""
    if search.budget.kind != "samples_seen":
        return
    one, first, size, spent = budget.Cost(0.0, None), search.pretrain, search.finetune.loop.batch_size, 0
    if first is not None and search.finetune.model.name == "purifier":
        spent = budget.for_pretraining(search.budget, one, first.loop.batch_size)
    _levels(search, budget.for_finetuning(search.budget, spent, one, size), size)


def _key(pretrain: PretrainConfig, search: TuneConfig) -> str:
    """What decides a pretraining: its configuration, its data, and how much of which budget it gets."""
    values = config.deciding(pretrain)
    del values["loop"]["samples"], values["init"]  # set by the budget; replaced by the digest of its content
    start = artifact.read(pretrain.init).sha256 if pretrain.init is not None else None
    share = search.budget.amount * search.budget.pretrain_share
    return config.digest([values, start, inventory(pretrain.data), search.budget.kind, share])


def pretrained_folder(output: Path, key: str) -> Path:
    """Where a shared pretraining lies."""
    return output / PRETRAINED / key


def is_pretrained(output: Path, key: str) -> bool:
    """Whether the shared pretraining is done."""
    folder = pretrained_folder(output, key)
    return (folder / SPENT).is_file() and artifact.is_valid(folder / "model")


def pretrain(output: Path, search: TuneConfig, trial: Trial) -> None:
    """Trains the autoencoder of `trial`, for all that share it."""
    settings = trial.phases.pretrain
    assert settings is not None
    assert trial.pretraining is not None
    folder = pretrained_folder(output, trial.pretraining)
    plan = _plan(folder)
    if plan is None:
        cost = _cost(output, settings, search.budget.kind)
        samples = budget.for_pretraining(search.budget, cost, settings.loop.batch_size)
        plan = _write_plan(folder, Plan(samples, [samples], cost.flops, _now()))
    _train(_resized(settings, plan.samples), folder)


def reach(output: Path, search: TuneConfig, trial: Trial, rung: int) -> Point:
    """Fine-tunes `trial` up to `rung`, measures it there, and adds that to its curve; what is done is not repeated."""
    known = record.curve(output, trial.trial_id)
    if len(known) > rung:
        return known[rung]
    folder = record.folder(output, trial.trial_id)
    before = _pretraining_spent(output, trial)
    plan = _plan(folder) or _write_plan(folder, _planned(output, search, trial, before))
    settings = placed(output, trial, plan)
    level = plan.levels[rung]
    pause = None if level == plan.samples else level
    saved = _train(replace(settings, loop=replace(settings.loop, pause_at=pause)), folder)
    found = measure(saved.folder, search.finetune, wanted(search), search.measure, search.seed)
    spent = _added(before, level, plan, folder)
    point = Point(spent.samples_seen, found.objectives, found.counts, spent)
    record.append(output, trial.trial_id, point)
    return point


def wanted(search: TuneConfig) -> list[record.Objective]:
    """What has to be measured."""
    return [name for name in record.OBJECTIVES if name in search.objectives or name in search.limits]


def placed(output: Path, trial: Trial, plan: Plan | None = None) -> FinetuneConfig:
    """Fine-tuning with its length and its start where they are known."""
    settings = trial.phases.finetune
    plan = plan or _plan(record.folder(output, trial.trial_id))
    if plan is not None:
        settings = _resized(settings, plan.samples)
    if trial.pretraining is None:
        return settings
    return replace(settings, init=str(pretrained_folder(output, trial.pretraining).absolute() / "model"))


def configuration(output: Path, trial: Trial) -> dict[str, Any]:
    """The sections as `maep pretrain` and `maep finetune` take them."""
    found = {"finetune": config.to_dict(placed(output, trial))}
    first = trial.phases.pretrain
    if first is None or trial.pretraining is None:
        return found
    plan = _plan(pretrained_folder(output, trial.pretraining))
    return {"pretrain": config.to_dict(first if plan is None else _resized(first, plan.samples)), **found}


def spent(output: Path, trial: Trial) -> Budget:
    """What the trial has spent so far: up to its last rung, and where it failed beyond, up to the step before that."""
    folder, points = record.folder(output, trial.trial_id), record.curve(output, trial.trial_id)
    before, plan = _pretraining_spent(output, trial), _plan(folder)
    known = points[-1].budget if points else before
    step = max((line["step"] for line in history.read(folder)), default=0)
    seen = step * trial.phases.finetune.loop.batch_size
    if plan is None or before.samples_seen + seen <= known.samples_seen:
        return known
    return _added(before, seen, plan, folder)


def started(output: Path, trial: Trial) -> str | None:
    """When its fine-tuning was first begun."""
    plan = _plan(record.folder(output, trial.trial_id))
    return plan.started if plan is not None else None


def spent_in(folder: Path) -> float:
    """Processor seconds of the training in `folder`."""
    path = folder / SPENT
    return float(json.loads(path.read_text())["core_seconds"]) if path.is_file() else 0.0


def _cost(output: Path, phase: PretrainConfig | FinetuneConfig, kind: str) -> budget.Cost:
    """What an image of `phase` costs, measured by the first trial of a search that needs it.

    All that differ in nothing but the seed take that one's, so repeats see as many images.
    """
    values = config.deciding(phase)
    del values["init"], values["loop"]["samples"], values["loop"]["seed"]
    path = output / COSTS / f"{config.digest([values, kind])}.json"
    if not path.is_file():
        text = json.dumps(dataclasses.asdict(budget.cost(phase, kind)))
        beside = path.with_suffix(f".{uuid.uuid4().hex}")
        storage.write_bytes(beside, text.encode())
        with suppress(FileExistsError):  # another one was first: its cost counts
            os.link(beside, path)
        beside.unlink()
    return config.build(budget.Cost, json.loads(path.read_text()))


def _planned(output: Path, search: TuneConfig, trial: Trial, before: Budget) -> Plan:
    settings = trial.phases.finetune
    kind, size = search.budget.kind, settings.loop.batch_size
    cost = _cost(output, settings, kind)
    samples = budget.for_finetuning(search.budget, getattr(before, kind), cost, size)
    return Plan(samples, _levels(search, samples, size), cost.flops, _now())


def _levels(search: TuneConfig, samples: int, batch_size: int) -> list[int]:
    rungs = search.halving
    return halving.levels(samples, batch_size, rungs.num_rungs, rungs.factor) if rungs else [samples]


def _pretraining_spent(output: Path, trial: Trial) -> Budget:
    if trial.pretraining is None or not is_pretrained(output, trial.pretraining):
        return Budget(0, 0.0, 0.0)
    folder = pretrained_folder(output, trial.pretraining)
    plan = _plan(folder)
    assert plan is not None
    return Budget(plan.samples, plan.samples * plan.flops, spent_in(folder))


def _added(before: Budget, samples: int, plan: Plan, folder: Path) -> Budget:
    """What pretraining took, and so many images of the fine-tuning in `folder`."""
    seconds = before.core_seconds + spent_in(folder)
    return Budget(before.samples_seen + samples, before.flops + samples * plan.flops, seconds)


def _resized(settings: Phase, samples: int) -> Phase:
    return replace(settings, loop=replace(settings.loop, samples=samples))


def _train(settings: PretrainConfig | FinetuneConfig, folder: Path) -> Artifact:
    """Trains in `folder` to the end or to where it pauses, and returns the result, or the checkpoint there."""
    try:
        return train(settings, folder, _Spent(folder, max(1, settings.workers.most)))
    except Stopped as stopped:
        pause = settings.loop.pause_at
        if pause is None or stopped.samples_seen < pause:
            raise
        return artifact.read(folder / "checkpoints" / f"{stopped.samples_seen:012d}")


class _Spent:
    """Makes, where the training runs, the callback that writes down the processor seconds it has taken.

    They are written at each checkpoint, with which a killed run goes on: what was done after it counts again.
    """

    def __init__(self, folder: Path, num_processes: int) -> None:
        self.folder, self.num_processes = folder, num_processes

    def __call__(self) -> Sequence[_Spending]:
        return [_Spending(self.folder, self.num_processes)]


class _Spending:
    def __init__(self, folder: Path, num_processes: int) -> None:
        self.folder, self.num_processes = folder, num_processes
        self.before, self.start = spent_in(folder), time.process_time()

    def on_step(self, progress: Progress) -> None:
        pass

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        self._write()

    def on_end(self, result: Artifact) -> None:
        if not (self.folder / SPENT).is_file() or (self.folder / "checkpoints").is_dir():
            self._write()

    def on_failure(self, error: BaseException) -> None:
        pass

    def _write(self) -> None:
        seconds = self.before + (time.process_time() - self.start) * self.num_processes
        storage.write_bytes(self.folder / SPENT, json.dumps({"core_seconds": seconds}).encode())


def _plan(folder: Path) -> Plan | None:
    path = folder / PLAN
    return config.build(Plan, json.loads(path.read_text())) if path.is_file() else None


def _write_plan(folder: Path, plan: Plan) -> Plan:
    storage.write_bytes(folder / PLAN, json.dumps(dataclasses.asdict(plan)).encode())
    return plan


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
