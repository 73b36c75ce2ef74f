"""The training loop: plain PyTorch, one process of one or many, told by callbacks what a person or a tracker wants.

It knows neither Ray nor MLflow. Where a run stands is one number, the steps done: order, augmentation and every
draw follow from it, so a killed run that is started again goes on exactly where its newest checkpoint was, and on
the CPU ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

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
from maep.train.checkpoint.async_checkpoint import CheckpointWriter
from maep.train.checkpoint.history import History, members
from maep.train.checkpoint.resume import World, starting_point
from maep.train.checkpoint.store import CHECKPOINTS, MODEL, Checkpoints, snapshot
from maep.train.config import LoopConfig
from maep.train.loop import nonfinite
from maep.train.loop.meter import Meter, Progress
from maep.train.loop.step import Step, check_shares, learning_rate
from maep.train.loop.stopwatch import Stopwatch
from maep.train.loop.termination import Agreement, Notice, never
from maep.train.objectives import Batch, Losses, Objective

__all__ = ["Callback", "Progress", "Task", "World", "go_on", "learning_rate", "pick_device", "run"]

_STEP, _IMAGE = 101, 102
_LOG_POINTS = 200


class Callback(Protocol):
    """What wants to know of a run; called in the process of rank 0 only."""

    def on_step(self, progress: Progress) -> None:
        """About 200 times a run."""

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        """After a checkpoint lies complete on disk, where it stays until this returns.

        In a thread of its own, for one after the other, while steps and further checkpoints go on.
        """

    def on_end(self, result: Artifact) -> None:
        """After the result lies complete on disk; also where it lay there already."""

    def on_failure(self, error: BaseException) -> None:
        """Where the run ends without a result: a mistake, a fault, Ctrl-C, a notice. A killed process says nothing."""


@dataclass(frozen=True)
class Task:
    """What a phase hands to the loop: `objective.model` is trained on `images` and becomes an artifact of `kind`."""

    kind: str
    objective: Objective
    images: Images
    loop: LoopConfig
    config: dict[str, Any]
    """What is stored with the weights; a run goes on only from checkpoints of the same."""
    card: str
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """How `images`, which were opened for it, reach the steps."""


def run(
    task: Task,
    output: Path,
    callbacks: Sequence[Callback] = (),
    world: World | None = None,
    resume: Artifact | None = None,
    notice: Notice = never,
) -> Artifact:
    """Trains to the end and returns the artifact at `output/model` (of several workers, where rank 0 is).

    A finished `output` is returned as it is; an unfinished one goes on from its newest sound checkpoint, else from
    the checkpoint `resume`. Raises ConfigError where either is of another configuration, FloatingPointError, naming
    the step, where the loss is no longer finite, and Stopped, with a checkpoint at that step, after a `notice` or at
    `loop.pause_at`.
    """
    world = world or World()
    check_shares(task.loop, world.size)
    return go_on(starting_point(task.config, output, resume, world), task, output, callbacks, world, notice)


def go_on(
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
    heard = callbacks if world.rank == 0 else ()
    try:
        if start is not None and artifact.STATE not in start.files:
            result = start  # no checkpoint: it lay there already
        else:
            result = _Run(task, checkpoints, heard, world, notice).to_end(start, output)
        for callback in heard:
            callback.on_end(result)
    except BaseException as error:
        for callback in heard:
            callback.on_failure(error)
        raise
    if world.rank == 0:
        checkpoints.remove()  # here too where a kill fell between the result and this
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
        self.agreement = Agreement(notice, world.size, self.device)
        self.objective = task.objective.to(self.device).to(memory_format=torch.channels_last).train()  # 2x on CPUs
        self.update = Step(self.objective, loop, world.size, self.device)
        self.watch = Stopwatch(self.device)
        self.step = 0
        sampling = Sampling(loop.batch_size, loop.seed, loop.augment, world.rank, world.size)
        self.loader = open_loader(task.images, task.loader, sampling, self.device)

    def to_end(self, newest: Artifact | None, output: Path) -> Artifact:
        """All the steps that are left, then the result."""
        if newest is not None:
            self._restore(newest)
            if self.task.loop.num_steps > self.step >= self.task.loop.last_step:  # killed between its pause and its end
                raise Stopped(self.step * self.task.loop.batch_size)
        if self.world.rank == 0:
            self.checkpoints.claim()
        with History(output, output / CHECKPOINTS, self.world.rank) as history, self.writer:
            history.begin(self.step, members(self.world.size))
            self._steps(history)
            return self._finish(output)

    def _steps(self, history: History) -> None:
        """Takes, reports and saves the steps that are left. Raises Stopped after a notice."""
        loop = self.task.loop
        self.update.connect()
        meter = Meter(self.step, loop, self.update, self.watch)
        log_every = max(1, loop.num_steps // _LOG_POINTS)
        with closing(self.loader.parts(self.step, loop.num_steps)) as parts:
            self.watch.start()
            for part in parts:
                self.agreement.ask()
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
                told = self.agreement.answer() or self.step == loop.last_step
                if (after > before or told) and self.step < loop.num_steps:
                    self._save()
                    if told:
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
        """The batch with what the objective makes of it. Raises FloatingPointError on all workers, if on any."""
        if not self.objective.crafts:
            return batch
        error = None
        try:
            batch = self.objective.craft(batch)
        except FloatingPointError as found:
            error = found
        if nonfinite.anywhere(error, self.world.size, self.device):
            raise error or FloatingPointError()  # another worker will say which
        self.watch.lap("craft")
        return batch

    def _save(self) -> None:
        """Begins to save where the run stands."""
        weights, state = self.update.result(), self.update.state() | {"step": self.step}
        if self.world.rank:
            return
        self.writer.wait()  # else two copies are held
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
    """The loader (its kind `resolved`) of this worker's part of each step.

    Raises ConfigError where there are fewer images than in a batch, DataError where they do not fit in memory.
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
        raise ConfigError(f"loop.batch_size: {sampling.batch_size} is more than the {len(images)} images there are")
    return made


def batch_of(part: BatchPart, step: int, loop: LoopConfig) -> Batch:
    """What the objective is given of a step."""
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
    """The device of that name; `auto` is a GPU where there is one. Raises ConfigError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("loop.device: cuda is not available on this machine: use auto or cpu")
    return torch.device(name)
