"""What a run tells of itself while it goes: losses, speed and where its time goes, memory, time to go."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from maep.data.stream.plan import BatchPart
from maep.train.config import LoopConfig
from maep.train.hardware import peak_flops, peak_memory_mib
from maep.train.loop.step import Step
from maep.train.loop.stopwatch import Stopwatch
from maep.train.objectives import Losses


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    samples_seen: int
    samples: int
    metrics: dict[str, float]
    """Means since the last report: loss and its parts, grad_norm, lr, images_per_s; seconds of a step by phase, data_s
    (about 0, or the run is input-bound), craft_s, forward_s, backward_s (without communication_s), optimizer_s;
    peak_memory_mib; mfu where the objective knows its operations (training FLOPs over what all workers' devices can
    do); corrupt, this worker's images that others stood for, where there were any."""
    eta_s: float

    @property
    def headline(self) -> dict[str, float]:
        """The metrics that a line has room for."""
        hidden = ("_s", "grad_norm", "peak_memory_mib")
        return {k: v for k, v in self.metrics.items() if k == "images_per_s" or not k.endswith(hidden)}


class Meter:
    """Means of what the steps report, speed and time to go."""

    def __init__(self, step: int, loop: LoopConfig, update: Step, watch: Stopwatch) -> None:
        self.loop, self.update, self.watch = loop, update, watch
        self.num_workers = update.num_workers
        self.flops = update.objective.training_flops()
        self.peak = self.num_workers * peak_flops(update.device, update.dtype) if self.flops is not None else 0.0
        self.first_step, self.began = step, time.perf_counter()
        self.last_step, self.last = step, self.began
        self.sums: dict[str, Tensor] = {}
        self.num_replaced = 0

    def add(self, losses: Losses, part: BatchPart) -> None:
        """Counts one step in, by its images, and those of them that stood for corrupt ones."""
        self.num_replaced += part.num_replaced
        share = len(part.labels) / self.loop.batch_size
        for name, value in {"loss": losses.loss.detach(), **losses.parts}.items():
            self.sums[name] = self.sums.get(name, 0.0) + share * value

    def report(self, step: int, lr: float) -> Progress:
        """The means since the last report, over the batches of all workers; each of them must call it.

        Times and memory are this worker's.
        """
        steps = step - self.last_step
        totals = torch.stack([total.float() for total in self.sums.values()])
        if self.num_workers > 1:
            torch.distributed.all_reduce(totals)
        means = (totals / steps).tolist()
        now = time.perf_counter()  # after the device has done what was asked of it
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
        return Progress(step * size, self.loop.num_steps * size, metrics, left * pace)

    def _split(self) -> dict[str, float]:
        """Seconds of a step by phase; the wait for other workers is taken out of the backward pass that it is in."""
        split = {f"{phase}_s": seconds for phase, seconds in self.watch.read().items()}
        waited = self.update.communication_s()
        if waited is not None and "backward_s" in split:
            split["communication_s"] = min(waited, split["backward_s"])
            split["backward_s"] -= split["communication_s"]
        return split
