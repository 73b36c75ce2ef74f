"""The training loop: plain PyTorch, one process of one or many, told by callbacks what a person or a tracker wants.

It knows neither Ray nor MLflow. Where a run stands is one number, the steps done: order, augmentation and every
draw follow from it, so a killed run that is started again goes on exactly where its newest checkpoint was, and on
the CPU ends with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maep import artifact, seeding
from maep.artifact import Artifact
from maep.data.augmentation import crop_and_flip, epoch_order
from maep.data.image_set import ImageSet, to_float
from maep.errors import ConfigError, Stopped
from maep.train.checkpoints import Checkpoints, Writer, check_same, snapshot
from maep.train.config import LoopConfig
from maep.train.history import History
from maep.train.meter import Meter, Progress
from maep.train.notice import Notice, agreed, never
from maep.train.objectives import Batch, Losses, Objective

__all__ = ["Callback", "Progress", "Task", "World", "learning_rate", "pick_device", "run", "starting_point"]

_STEP, _IMAGE = 101, 102
_LOG_POINTS = 200


@dataclass(frozen=True)
class World:
    """This process among those that train together; a process group must be up where `size` is above 1."""

    rank: int = 0
    size: int = 1


class Callback(Protocol):
    """What wants to know of a run; called in the process of rank 0 only."""

    def on_step(self, progress: Progress) -> None:
        """About 200 times a run."""

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        """After a checkpoint lies complete on disk; in the thread that wrote it, while the next steps are taken."""

    def on_end(self, result: Artifact) -> None:
        """After the result lies complete on disk; also where it lay there already."""

    def on_failure(self, error: BaseException) -> None:
        """Where the run ends without a result: a mistake, a fault, Ctrl-C, a notice. A killed process says nothing."""


@dataclass(frozen=True)
class Task:
    """What a phase hands to the loop: `objective.model` is trained on `images` and becomes an artifact of `kind`."""

    kind: str
    objective: Objective
    images: ImageSet
    loop: LoopConfig
    config: dict[str, Any]
    """What is stored with the weights; a run goes on only from checkpoints of the same."""
    card: str


def run(
    task: Task,
    output: Path,
    callbacks: Sequence[Callback] = (),
    world: World | None = None,
    resume: Artifact | None = None,
    notice: Notice = never,
) -> Artifact:
    """Trains to the end and returns the artifact at `output/model`.

    A finished `output` is returned as it is; an unfinished one goes on from its newest sound checkpoint, else from
    the checkpoint `resume`. Raises ConfigError where either is of another configuration, FloatingPointError, naming
    the step, where the loss is no longer finite, and Stopped, with a checkpoint at that step, after a `notice`.
    """
    world = world or World()
    start = starting_point(task, output, resume)
    checkpoints = _checkpoints(task, output)
    if start is not None and start.folder == output / "model":
        for callback in callbacks:
            callback.on_end(start)
        if world.rank == 0:
            checkpoints.remove()  # where a kill fell between the result and this
        return start
    heard = callbacks if world.rank == 0 else ()
    try:
        return _Run(task, checkpoints, heard, world, notice).to_end(start, output)
    except BaseException as error:
        for callback in heard:
            callback.on_failure(error)
        raise


def starting_point(task: Task, output: Path, resume: Artifact | None = None) -> Artifact | None:
    """What `run` goes on from: the finished result, else the newest sound checkpoint, else `resume`; None: nothing.

    Raises ArtifactError where that is of another configuration or no checkpoint, or the result is damaged.
    """
    if (output / "model" / artifact.MANIFEST).exists():
        start: Artifact | None = artifact.read(output / "model")
    else:
        start = _checkpoints(task, output).newest() or resume
        if start is not None:
            start.require_state()
    if start is not None:
        check_same(start, task.config)
    return start


def _checkpoints(task: Task, output: Path) -> Checkpoints:
    return Checkpoints(output / "checkpoints", task.loop.keep_checkpoints)


class _Run:
    """One process's share of a run."""

    def __init__(
        self, task: Task, checkpoints: Checkpoints, callbacks: Sequence[Callback], world: World, notice: Notice
    ) -> None:
        loop = task.loop
        if loop.batch_size % world.size:
            raise ConfigError(f"loop.batch_size: {loop.batch_size} does not divide among {world.size} workers")
        if len(task.images) < loop.batch_size:
            raise ConfigError(
                f"loop.batch_size: {loop.batch_size} is more than the {len(task.images)} images there are"
            )
        self.task, self.checkpoints, self.callbacks, self.world = task, checkpoints, callbacks, world
        self.writer, self.notice = Writer(checkpoints, self._tell), notice
        self.device = pick_device(loop.device)
        self.objective = task.objective.to(self.device).to(memory_format=torch.channels_last).train()  # 2x on CPUs
        self.model = task.objective.model
        self.optimizer = _optimizer(self.model, loop, self.device)
        self.step = 0
        self.source = _Source(task.images, loop, world, self.device)

    def to_end(self, newest: Artifact | None, output: Path) -> Artifact:
        """All the steps that are left, then the result."""
        if newest is not None:
            self._restore(newest)
        if self.world.rank == 0:
            self.checkpoints.claim()
        with History(output, self.checkpoints.folder, self.world.rank) as history, self.writer:
            history.begin(self.step, self.world.size)
            self._steps(history)
            return self._finish(output)

    def _steps(self, history: History) -> None:
        """Takes, reports and saves the steps that are left. Raises Stopped after a notice."""
        loop = self.task.loop
        step_of: nn.Module = self.objective
        if self.world.size > 1:
            step_of = DistributedDataParallel(self.objective, find_unused_parameters=True, broadcast_buffers=False)
        meter = Meter(self.step, loop, self.world.size)
        log_every = max(1, loop.num_steps // _LOG_POINTS)
        while self.step < loop.num_steps:
            losses = self._take_step(step_of)
            self.step += 1
            history.at(self.step)
            meter.add(losses)
            if self.step % log_every == 0 or self.step == loop.num_steps:
                progress = meter.report(self.step, self.optimizer.param_groups[0]["lr"])
                for callback in self.callbacks:
                    callback.on_step(progress)
            self.writer.check()
            before, after = (s * loop.batch_size // loop.checkpoint_every for s in (self.step - 1, self.step))
            told = agreed(self.notice, self.step, self.world.size, self.device)
            if (after > before or told) and self.step < loop.num_steps:
                self._save()
                if told:
                    self.writer.wait()
                    raise Stopped(self.step * loop.batch_size)

    def _take_step(self, step_of: nn.Module) -> Losses:
        loop = self.task.loop
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step / loop.num_steps, loop)
        try:
            batch = self.task.objective.craft(self.source.batch(self.step))
            for replay in range(loop.replays):
                losses = self._update(step_of, replace(batch, replay=replay))
        except FloatingPointError as error:
            first = self.source.indices(self.step)[:5].tolist()
            raise FloatingPointError(f"{error} at step {self.step}, first images {first}") from None
        return losses

    def _update(self, step_of: nn.Module, batch: Batch) -> Losses:
        loop = self.task.loop
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            losses: Losses = step_of(batch)
        if not torch.isfinite(losses.loss):
            raise FloatingPointError(f"the loss is {losses.loss.detach().item()}")
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses.loss)
        if loop.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), loop.clip)
        self.optimizer.step()
        return losses

    def _save(self) -> None:
        """Begins to save where the run stands."""
        if self.world.rank:
            return
        state = {"optimizer": self.optimizer.state_dict(), "step": self.step}
        seen = self.step * self.task.loop.batch_size
        self.writer.put(snapshot(seen, self.task.config, self.model.state_dict(), state))

    def _tell(self, saved: Artifact, samples_seen: int) -> None:
        for callback in self.callbacks:
            callback.on_checkpoint(saved, samples_seen)

    def _restore(self, saved: Artifact) -> None:
        state = saved.state()
        self.model.load_state_dict(saved.weights())
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def _finish(self, output: Path) -> Artifact:
        self.writer.wait()
        if self.world.rank == 0:
            task = self.task
            weights = task.objective.result(self.model.state_dict())
            artifact.write(output / "model", task.kind, task.config, weights, task.card)
        if self.world.size > 1:
            torch.distributed.barrier()
        result = artifact.read(output / "model")
        for callback in self.callbacks:
            callback.on_end(result)
        if self.world.rank == 0:
            self.checkpoints.remove()
        return result


class _Source:
    """The batches of a run, by step: whole batches of a fresh order each epoch, this worker's part of each."""

    def __init__(self, images: ImageSet, loop: LoopConfig, world: World, device: torch.device) -> None:
        self.images, self.loop, self.world, self.device = images, loop, world, device
        self.steps_per_epoch = len(images) // loop.batch_size
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self.resident: Tensor | None = None
        if isinstance(images.images, np.ndarray):
            self.resident = torch.from_numpy(images.images).to(device)

    def positions(self, step: int) -> np.ndarray:
        """int64: positions in the image set of this worker's part of the step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.images), self.loop.seed, epoch))
        start = place * self.loop.batch_size
        part: np.ndarray = self._order[1][start : start + self.loop.batch_size][self.world.rank :: self.world.size]
        return part

    def indices(self, step: int) -> np.ndarray:
        """int64: official indices of the same images."""
        chosen: np.ndarray = self.images.indices[self.positions(step)]
        return chosen

    def batch(self, step: int) -> Batch:
        """The batch of one step, on the device."""
        positions = self.positions(step)
        epoch = step // self.steps_per_epoch
        if self.resident is not None:
            pixels = self.resident[torch.from_numpy(positions).to(self.device)]
        else:
            pixels = torch.from_numpy(self.images.pixels(positions)).to(self.device)
        indices = torch.from_numpy(self.images.indices[positions]).to(self.device)
        if self.loop.augment:
            pad = max(1, min(self.images.image_shape) // 8)
            pixels = crop_and_flip(pixels, indices, self.loop.seed, epoch, pad)
        return Batch(
            images=to_float(pixels).contiguous(memory_format=torch.channels_last),
            labels=torch.from_numpy(self.images.labels[positions]).to(self.device),
            keys=seeding.mix(self.loop.seed, _IMAGE, epoch, indices),
            step_key=int(seeding.mix(self.loop.seed, _STEP, step)),
            places=torch.arange(self.world.rank, self.loop.batch_size, self.world.size, device=self.device),
            size=self.loop.batch_size,
            progress=step / self.loop.num_steps,
        )


def learning_rate(progress: float, loop: LoopConfig) -> float:
    """Linear rise over `warmup`, then half a cosine to zero (Loshchilov and Hutter 2017), by share of the run."""
    if progress < loop.warmup:
        return loop.lr * min(1.0, (progress + 1 / loop.num_steps) / loop.warmup)
    return loop.lr * 0.5 * (1 + math.cos(math.pi * (progress - loop.warmup) / (1 - loop.warmup)))


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one. Raises ConfigError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("loop.device: cuda is not available on this machine: use auto or cpu")
    return torch.device(name)


def _optimizer(model: nn.Module, loop: LoopConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW; biases, norms and tokens do not decay (Loshchilov and Hutter 2019)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": loop.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=loop.lr, betas=loop.betas, fused=device.type == "cuda")
