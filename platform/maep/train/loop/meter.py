"""Metrics of a running training: losses, speed, time by phase, memory, time left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maep.data.stream.plan import BatchPart
from maep.train.config import LoopConfig
from maep.train.hardware import peak_flops, peak_memory_mib
from maep.train.loop.callback import TrainingProgress
from maep.train.objectives import Losses

if TYPE_CHECKING:
    from maep.train.loop.step import TrainingStep

_EVERY = 16
"""A GPU times one step in so many."""


class Stopwatch:
    """Seconds of each phase of a step: `start`, then `lap` at the end of each phase.

    A CPU times every step by the clock. A GPU runs asynchronously: every sixteenth step records events in its stream,
    which `read` evaluates; time in which the GPU waits for data counts as `data`.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.steps = self.timed = 0
        self.totals: dict[str, float] = {}
        self._last = 0.0
        self._event: torch.cuda.Event | None = None
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        """Starts a step."""
        due = not self.on_gpu or self.steps % _EVERY == 0
        self.steps += 1
        self.timed += due
        self._event = _recorded() if self.on_gpu and due else None
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Counts the time since the last call as `phase`; laps of one phase add up."""
        if not self.on_gpu:
            now = time.perf_counter()
            self.totals[phase] = self.totals.get(phase, 0.0) + now - self._last
            self._last = now
        elif self._event is not None:
            event = _recorded()
            self._events.append((phase, self._event, event))
            self._event = event

    def read(self) -> dict[str, float]:
        """Mean seconds of each phase per timed step since the last call; empty where none was timed."""
        for phase, start, end in self._events:
            end.synchronize()
            self.totals[phase] = self.totals.get(phase, 0.0) + start.elapsed_time(end) / 1000
        means = {phase: total / self.timed for phase, total in self.totals.items()}
        self.totals, self._events, self.timed = {}, [], 0
        return means


class TrainingMeter:
    """Means over the steps since the last report, speed and time left."""

    def __init__(self, step: int, loop: LoopConfig, update: TrainingStep, watch: Stopwatch) -> None:
        self.loop, self.update, self.watch = loop, update, watch
        self.num_workers = update.num_workers
        self.flops = update.objective.training_flops()
        self.peak = self.num_workers * peak_flops(update.device, update.dtype) if self.flops is not None else 0.0
        self.first_step, self.began = step, time.perf_counter()
        self.last_step, self.last = step, self.began
        self.sums: dict[str, Tensor] = {}
        self.num_replaced = 0

    def add(self, losses: Losses, part: BatchPart) -> None:
        """Adds one step, weighted by its images, and counts the images that replaced corrupt ones."""
        self.num_replaced += part.num_replaced
        share = len(part.labels) / self.loop.batch_size
        for name, value in {"loss": losses.loss.detach(), **losses.parts}.items():
            self.sums[name] = self.sums.get(name, 0.0) + share * value

    def report(self, step: int, lr: float) -> TrainingProgress:
        """The means since the last report, over the batches of all workers; all must call.

        Times and memory are of this worker.
        """
        steps = step - self.last_step
        totals = torch.stack([total.float() for total in self.sums.values()])
        if self.num_workers > 1:
            torch.distributed.all_reduce(totals)
        means = (totals / steps).tolist()
        now = time.perf_counter()  # after the device has finished: tolist() waits for it
        metrics = dict(zip(self.sums, means, strict=True))
        rate = steps * self.loop.batch_size / (now - self.last)
        metrics |= {"lr": lr, "images_per_s": rate, "peak_memory_mib": peak_memory_mib(self.update.device)}
        metrics |= self._split()
        if self.num_replaced:
            metrics["corrupt"] = float(self.num_replaced)
        if self.flops is not None:
            metrics["mfu"] = rate * self.flops * self.loop.replays / self.peak
        pace = (now - self.began) / (step - self.first_step)
        self.last_step, self.last, self.sums = step, now, {}
        size = self.loop.batch_size
        left = self.loop.num_steps - step
        return TrainingProgress(step * size, self.loop.num_steps * size, metrics, left * pace)

    def _split(self) -> dict[str, float]:
        """Seconds of a step by phase; waiting for other workers is split off the backward pass."""
        split = {f"{phase}_s": seconds for phase, seconds in self.watch.read().items()}
        waited = self.update.communication_s()
        if waited is not None and "backward_s" in split:
            split["communication_s"] = min(waited, split["backward_s"])
            split["backward_s"] -= split["communication_s"]
        return split


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
