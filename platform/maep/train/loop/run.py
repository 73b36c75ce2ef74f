"""The training loop in plain PyTorch, in one process or as one of many workers.

It imports neither Ray nor MLflow; callbacks report to people and trackers. Its entire position is the number of steps
done, which determines order, augmentation and all random draws. A killed run therefore resumes exactly at its newest
checkpoint, and on a CPU ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from maep import artifact, memory, seeding
from maep.artifact import Artifact
from maep.data.config import LoaderConfig
from maep.data.image_set import ImageSet, to_float
from maep.data.stream.loaders import Images, Loader
from maep.data.stream.plan import BatchPart, Sampling
from maep.data.stream.resident import ResidentLoader, SyntheticImages, SyntheticLoader
from maep.data.stream.streaming import ThreadLoader
from maep.errors import ConfigError, Stopped
from maep.train.batch import Batch
from maep.train.checkpoint.async_checkpoint import CheckpointWriter
from maep.train.checkpoint.history import History, members
from maep.train.checkpoint.resume import World, starting_point
from maep.train.checkpoint.store import CHECKPOINTS, MODEL, Checkpoints, snapshot
from maep.train.config import LoopConfig
from maep.train.loop import nonfinite
from maep.train.loop.callback import Callback
from maep.train.loop.meter import Stopwatch, TrainingMeter
from maep.train.loop.optimizers import learning_rate
from maep.train.loop.step import TrainingStep, check_shares
from maep.train.loop.termination import Notice, StopVote, never
from maep.train.objectives import Losses, Objective

_STEP, _IMAGE = 101, 102
_LOG_POINTS = 200


@dataclass(frozen=True)
class Task:
    """One training: `objective.model` is trained on `images` and becomes an artifact of `kind`."""

    kind: str
    objective: Objective
    images: Images
    loop: LoopConfig
    config: dict[str, Any]
    """Stored with the weights; a run resumes only from checkpoints of the same configuration."""
    card: str
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """How `images`, opened for it, are loaded."""


def run(
    task: Task,
    output: Path,
    callbacks: Sequence[Callback] = (),
    world: World | None = None,
    resume: Artifact | None = None,
    notice: Notice = never,
) -> Artifact:
    """Trains to the end and returns the artifact at `output/model` (of several workers, on the machine of rank 0).

    A finished `output` is returned as it is; an unfinished one is resumed from its newest valid checkpoint, else from
    the checkpoint `resume`. Raises ArtifactError where either is of another configuration, FloatingPointError, naming
    the step, where the loss is not finite, and Stopped, with a checkpoint at that step, after a `notice` or at
    `loop.pause_at`.
    """
    world = world or World()
    check_shares(task.loop, world.size)
    return run_from(starting_point(task.config, output, resume, world), task, output, callbacks, world, notice)


def run_from(
    start: Artifact | None,
    task: Task,
    output: Path,
    callbacks: Sequence[Callback] = (),
    world: World | None = None,
    notice: Notice = never,
) -> Artifact:
    """`run` from `start`, which must be its `starting_point`."""
    world = world or World()
    checkpoints = Checkpoints(output / CHECKPOINTS, task.loop.keep_checkpoints)
    listeners = callbacks if world.rank == 0 else ()
    try:
        if start is not None and artifact.STATE not in start.files:
            result = start  # finished before
        else:
            result = _Run(task, checkpoints, listeners, world, notice).to_end(start, output)
        for callback in listeners:
            callback.on_end(result)
    except BaseException as error:
        for callback in listeners:
            callback.on_failure(error)
        raise
    if world.rank == 0:
        checkpoints.remove()  # also after a kill between writing the result and this
    return result


class _Run:
    """One process's share of a run."""

    def __init__(
        self, task: Task, checkpoints: Checkpoints, callbacks: Sequence[Callback], world: World, notice: Notice
    ) -> None:
        loop = task.loop
        self.task, self.checkpoints, self.callbacks, self.world = task, checkpoints, callbacks, world
        self.writer = CheckpointWriter(checkpoints, self._notify)
        self.device = pick_device(loop.device)
        memory.keep_freed()
        self.stop_vote = StopVote(notice, world.size, self.device)
        self.objective = task.objective.to(self.device).to(memory_format=torch.channels_last).train()  # faster on CPUs
        self.update = TrainingStep(self.objective, loop, world.size, self.device)
        self.watch = Stopwatch(self.device)
        self.step = 0
        sampling = Sampling(loop.batch_size, loop.seed, loop.augment, world.rank, world.size)
        self.loader = open_loader(task.images, task.loader, sampling, self.device)

    def to_end(self, newest: Artifact | None, output: Path) -> Artifact:
        """Takes the remaining steps and writes the result."""
        if newest is not None:
            self._restore(newest)
            if self.task.loop.num_steps > self.step >= self.task.loop.last_step:  # killed at its pause
                raise Stopped(self.step * self.task.loop.batch_size)
        if self.world.rank == 0:
            self.checkpoints.claim()
        with History(output, output / CHECKPOINTS, self.world.rank) as history, self.writer:
            history.begin(self.step, members(self.world.size))
            self._steps(history)
            return self._finish(output)

    def _steps(self, history: History) -> None:
        """Takes and reports the remaining steps, saving checkpoints. Raises Stopped after a notice."""
        loop = self.task.loop
        self.update.connect()
        meter = TrainingMeter(self.step, loop, self.update, self.watch)
        log_every = max(1, loop.num_steps // _LOG_POINTS)
        with closing(self.loader.parts(self.step, loop.num_steps)) as parts:
            self.watch.start()
            for part in parts:
                self.stop_vote.begin()
                losses = self._take_step(part)
                self.step += 1
                history.at(self.step)
                meter.add(losses, part)
                if self.step % log_every == 0 or self.step == loop.num_steps:
                    progress = meter.report(self.step, learning_rate((self.step - 1) / loop.num_steps, loop))
                    for callback in self.callbacks:
                        callback.on_step(progress)
                self.writer.check()
                before, after = (s * loop.batch_size // loop.checkpoint_every for s in (self.step - 1, self.step))
                stop = self.stop_vote.result() or self.step == loop.last_step
                if (after > before or stop) and self.step < loop.num_steps:
                    self._save()
                    if stop:
                        self.writer.wait()
                        raise Stopped(self.step * loop.batch_size)
                self.watch.start()

    def _take_step(self, part: BatchPart) -> Losses:
        loop = self.task.loop
        batch = batch_of(part, self.step, loop)
        self.watch.lap("data")
        lr = learning_rate(self.step / loop.num_steps, loop)
        try:
            batch = self._craft(batch)
            for replay in range(loop.replays):
                losses = self.update(replace(batch, replay=replay), lr, self.watch)
        except FloatingPointError as error:
            raise nonfinite.named(error, self.step, part.indices.tolist(), self.world.size) from None
        return losses

    def _craft(self, batch: Batch) -> Batch:
        """The batch with its crafted (attacked) images. Raises FloatingPointError on all workers if one fails."""
        if not self.objective.crafts:
            return batch
        error = None
        try:
            with self.update.autocast():
                batch = self.objective.craft(batch)
        except FloatingPointError as found:
            error = found
        if nonfinite.anywhere(error, self.world.size, self.device):
            raise error or FloatingPointError()  # another worker names the images
        self.watch.lap("craft")
        return batch

    def _save(self) -> None:
        """Starts to save a checkpoint."""
        weights, state = self.update.result(), self.update.state() | {"step": self.step}
        if self.world.rank:
            return
        self.writer.wait()  # so that memory holds one copy at a time
        seen = self.step * self.task.loop.batch_size
        self.writer.put(snapshot(seen, self.task.config, weights, state))

    def _notify(self, saved: Artifact, samples_seen: int) -> None:
        for callback in self.callbacks:
            callback.on_checkpoint(saved, samples_seen)

    def _restore(self, saved: Artifact) -> None:
        state = saved.state()
        self.update.load(saved.weights(), state)
        self.step = state["step"]

    def _finish(self, output: Path) -> Artifact:
        self.writer.wait()
        weights = self.update.result()
        result: list[Artifact | None] = [None]
        if self.world.rank == 0:
            task = self.task
            weights = task.objective.result(weights)
            result = [artifact.write(output / MODEL, task.kind, task.config, weights, task.card)]
        if self.world.size > 1:
            torch.distributed.broadcast_object_list(result, src=0)
        assert result[0] is not None
        return result[0]


def open_loader(images: Images, loader: LoaderConfig, sampling: Sampling, device: torch.device) -> Loader:
    """The loader (of a `resolved` kind) of this worker's part of each batch.

    Raises ConfigError for fewer images than one batch, DataError where they do not fit in memory.
    """
    match images:
        case SyntheticImages():
            return SyntheticLoader(images, sampling, device)
        case ImageSet():
            made: Loader = ResidentLoader(images, sampling, device, loader.memory_share)
        case _ if loader.kind == "ray":
            from maep.train.ray.loader import RayLoader

            made = RayLoader(images, sampling, device, loader)
        case _:
            made = ThreadLoader(images, sampling, device, loader.threads, loader.prefetch)
    if not made.steps_per_epoch:
        raise ConfigError(f"loop.batch_size: {sampling.batch_size} is more than the {len(images)} images there")
    return made


def batch_of(part: BatchPart, step: int, loop: LoopConfig) -> Batch:
    """The objective's input for one step."""
    return Batch(
        images=to_float(part.pixels, torch.channels_last),
        labels=part.labels,
        keys=seeding.mix(loop.seed, _IMAGE, part.epoch, part.indices),
        step_key=int(seeding.mix(loop.seed, _STEP, step)),
        places=part.places,
        size=loop.batch_size,
        progress=step / loop.num_steps,
    )


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU if available. Raises ConfigError where the device is missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("loop.device: cuda is not available on this machine: use auto or cpu")
    return torch.device(name)
