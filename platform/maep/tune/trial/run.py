"""Runs the work items of a trial in the current process: its pretraining, or fine-tuning up to a rung and measuring.

A repeated item resumes from its newest checkpoint; a finished one does nothing. All state is in the output of the
search, in files that are written atomically.
"""

from __future__ import annotations

import functools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from maep import artifact, config, storage
from maep.artifact import Artifact
from maep.errors import Stopped
from maep.train.checkpoint import history
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.train.loop.callback import Callback
from maep.train.ray.workers import train
from maep.tune import record
from maep.tune.config import TuneConfig
from maep.tune.metrics.candidate import measure_trial
from maep.tune.record import Budget, RungResult
from maep.tune.trial.plan import PhasePlan, plan_phase, read_plan
from maep.tune.trial.trial import SPENT, Trial, is_pretrained, pretrained_folder

Phase = TypeVar("Phase", PretrainConfig, FinetuneConfig)
_NOTHING = Budget(0, 0.0, 0.0)


def pretrain(output: Path, search: TuneConfig, trial: Trial) -> None:
    """Trains the autoencoder of `trial`, for all that share it."""
    assert trial.pretrain is not None
    assert trial.pretraining is not None
    folder = pretrained_folder(output, trial.pretraining)
    plan = plan_phase(output, search, trial.pretrain, folder, _NOTHING)
    _train(_resized(trial.pretrain, plan.samples), folder)


def finetune_to(output: Path, search: TuneConfig, trial: Trial, rung: int) -> RungResult:
    """Fine-tunes `trial` up to `rung`, measures it and adds the result to its curve; once only."""
    known = record.curve(output, trial.trial_id)
    if len(known) > rung:
        return known[rung]
    folder = record.folder(output, trial.trial_id)
    before = _pretraining_spent(output, trial)
    plan = plan_phase(output, search, trial.finetune, folder, before)
    settings, level = finetune_config(output, trial), plan.levels[rung]
    pause = None if level == plan.samples else level
    saved = _train(replace(settings, loop=replace(settings.loop, pause_at=pause)), folder)
    wanted = {*search.objectives, *search.limits}
    found = measure_trial(saved.folder, search.finetune, wanted, search.measure, search.seed)
    spent = _total(before, level, plan, folder)
    result = RungResult(spent.samples_seen, found.objectives, found.counts, spent)
    record.append(output, trial.trial_id, result)
    return result


def finetune_config(output: Path, trial: Trial) -> FinetuneConfig:
    """The fine-tuning phase, with its planned length and its initial weights where they are known."""
    settings = trial.finetune
    plan = read_plan(record.folder(output, trial.trial_id))
    if plan is not None:
        settings = _resized(settings, plan.samples)
    if trial.pretraining is None:
        return settings
    return replace(settings, init=str(pretrained_folder(output, trial.pretraining).absolute() / "model"))


def configuration(output: Path, trial: Trial) -> dict[str, Any]:
    """The sections that `maep pretrain` and `maep finetune` take."""
    found = {"finetune": config.to_dict(finetune_config(output, trial))}
    first = trial.pretrain
    if first is None or trial.pretraining is None:
        return found
    plan = read_plan(pretrained_folder(output, trial.pretraining))
    return {"pretrain": config.to_dict(first if plan is None else _resized(first, plan.samples)), **found}


def spent(output: Path, trial: Trial) -> Budget:
    """What the trial has spent: up to its last rung, or up to its last step where it failed beyond that."""
    folder, results = record.folder(output, trial.trial_id), record.curve(output, trial.trial_id)
    before, plan = _pretraining_spent(output, trial), read_plan(folder)
    known = results[-1].budget if results else before
    step = max((line["step"] for line in history.read(folder)), default=0)
    seen = step * trial.finetune.loop.batch_size
    if plan is None or before.samples_seen + seen <= known.samples_seen:
        return known
    return _total(before, seen, plan, folder)


def core_seconds(folder: Path) -> float:
    """Processor seconds of the training in `folder`."""
    path = folder / SPENT
    return float(json.loads(path.read_text())["core_seconds"]) if path.is_file() else 0.0


def _pretraining_spent(output: Path, trial: Trial) -> Budget:
    if trial.pretraining is None or not is_pretrained(output, trial.pretraining):
        return _NOTHING
    folder = pretrained_folder(output, trial.pretraining)
    plan = read_plan(folder)
    assert plan is not None
    return _total(_NOTHING, plan.samples, plan, folder)


def _total(before: Budget, samples: int, plan: PhasePlan, folder: Path) -> Budget:
    """`before` and `samples` images of the training in `folder`."""
    seconds = before.core_seconds + core_seconds(folder)
    return Budget(before.samples_seen + samples, before.flops + samples * plan.flops, seconds)


def _resized(settings: Phase, samples: int) -> Phase:
    return replace(settings, loop=replace(settings.loop, samples=samples))


def _train(settings: PretrainConfig | FinetuneConfig, folder: Path) -> Artifact:
    """Trains in `folder` to the end or to `pause_at`, and returns the result or the checkpoint there."""
    try:
        return train(settings, folder, functools.partial(_callbacks, folder, max(1, settings.workers.most)))
    except Stopped as stopped:
        pause = settings.loop.pause_at
        if pause is None or stopped.samples_seen < pause:
            raise
        return artifact.read(folder / "checkpoints" / f"{stopped.samples_seen:012d}")


def _callbacks(folder: Path, num_processes: int) -> list[Callback]:
    """The callbacks of a training, made in the process that trains."""
    return [_ProcessorMeter(folder, num_processes)]


class _ProcessorMeter(Callback):
    """Writes the processor seconds of a training at each checkpoint; work redone after a kill counts again."""

    def __init__(self, folder: Path, num_processes: int) -> None:
        self.folder, self.num_processes = folder, num_processes
        self.before, self.start = core_seconds(folder), time.process_time()

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        self._write()

    def on_end(self, result: Artifact) -> None:
        if not (self.folder / SPENT).is_file() or (self.folder / "checkpoints").is_dir():
            self._write()

    def _write(self) -> None:
        seconds = self.before + (time.process_time() - self.start) * self.num_processes
        storage.write_bytes(self.folder / SPENT, json.dumps({"core_seconds": seconds}).encode())
