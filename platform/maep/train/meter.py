"""What a run tells of itself while it goes: losses, speed, time to go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from maep.data.plan import Part
from maep.train.config import LoopConfig
from maep.train.objectives import Losses


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    samples_seen: int
    samples: int
    metrics: dict[str, float]
    """Means since the last report: loss and its parts, lr, images_per_s, and data_wait, the share of the time in which
    this worker waited for its next images: about 0, or the run is input-bound."""
    eta_s: float


class Meter:
    """Means of what the steps report, speed and time to go."""

    def __init__(self, step: int, loop: LoopConfig, num_workers: int = 1) -> None:
        self.loop, self.num_workers = loop, num_workers
        self.first_step, self.began = step, time.perf_counter()
        self.last_step, self.last = step, self.began
        self.sums: dict[str, Tensor] = {}
        self.waited, self.num_replaced = 0.0, 0

    def waiting(self, parts: Iterator[Part]) -> Iterator[Part]:
        """`parts`, with the time that each is waited for."""
        while True:
            began = time.perf_counter()
            part = next(parts, None)
            self.waited += time.perf_counter() - began
            if part is None:
                return
            self.num_replaced += part.num_replaced
            yield part

    def add(self, losses: Losses) -> None:
        """Counts one step in."""
        for name, value in {"loss": losses.loss.detach(), **losses.parts}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def report(self, step: int, lr: float) -> Progress:
        """The means since the last report, over the batches of all workers; each of them must call it."""
        now = time.perf_counter()
        steps = step - self.last_step
        totals = torch.stack([total.float() for total in self.sums.values()])
        if self.num_workers > 1:
            torch.distributed.all_reduce(totals)
        means = (totals / (steps * self.num_workers)).tolist()
        metrics = dict(zip(self.sums, means, strict=True))
        taken = now - self.last
        metrics |= {"lr": lr, "images_per_s": steps * self.loop.batch_size / taken, "data_wait": self.waited / taken}
        if self.num_replaced:
            metrics["corrupt"] = float(self.num_replaced)  # of this worker, since the run began or went on
        pace = (now - self.began) / (step - self.first_step)
        self.last_step, self.last, self.sums, self.waited = step, now, {}, 0.0
        size = self.loop.batch_size
        left = self.loop.num_steps - step
        return Progress(step * size, self.loop.num_steps * size, metrics, left * pace)
