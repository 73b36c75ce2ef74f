"""Equal budgets: how many images a phase may see for so many images, operations or processor seconds.

What an image costs is counted and measured in few steps of the phase itself, once, and written down before the phase
begins. From then on its length is a number of images, so a run that is killed and goes on ends where it would have.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maep.artifact import Artifact
from maep.errors import ConfigError
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.train.loop import Progress, Task, run
from maep.train.phases import pretraining, purification
from maep.tune.config import BudgetConfig

_COUNTED, _TIMED = 4, 10
"""Steps: attacks on the fly draw their kind and steps anew each time, so more than one; fewer than a second of them."""


@dataclass(frozen=True)
class Cost:
    """Of one image's part of a training step, the making of its attacked image included."""

    flops: float
    """By PyTorch's own counter: products of matrices and convolutions, forward and backward."""
    core_seconds: float | None
    """None: not measured, for the budget does not ask for it."""

    def of(self, kind: str) -> float:
        """In units of the budget."""
        if kind == "core_seconds":
            assert self.core_seconds is not None
            return self.core_seconds
        return self.flops if kind == "flops" else 1.0


def cost(settings: PretrainConfig | FinetuneConfig, kind: str) -> Cost:
    """What an image of this phase costs; it takes 4 steps, and 10 more where time is to be measured."""
    size = settings.loop.batch_size
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        _steps(settings, _COUNTED)
    flops = counter.get_total_flops() / (_COUNTED * size)
    if kind != "core_seconds":
        return Cost(flops, None)
    clock = _Clock()
    _steps(settings, 1 + _TIMED, clock)
    return Cost(flops, (clock.times[-1] - clock.times[0]) / (_TIMED * size))


def num_images(amount: float, cost: Cost, kind: str, batch_size: int, what: str) -> int:
    """Images in whole batches for `amount` of the budget. Raises ConfigError where that is less than one batch."""
    steps = int(amount / (cost.of(kind) * batch_size) * (1 + 1e-12))
    if steps < 1:
        least = cost.of(kind) * batch_size
        raise ConfigError(
            f"budget.amount: leaves {max(0.0, amount):.4g} {kind} for {what}, one batch takes {least:.4g}: raise it"
        )
    return steps * batch_size


def for_pretraining(budget: BudgetConfig, cost: Cost, batch_size: int) -> int:
    """Images of pretraining."""
    return num_images(budget.amount * budget.pretrain_share, cost, budget.kind, batch_size, "pretraining")


def for_finetuning(budget: BudgetConfig, spent: float, cost: Cost, batch_size: int) -> int:
    """Images of fine-tuning, when pretraining took `spent` of the budget."""
    return num_images(budget.amount - spent, cost, budget.kind, batch_size, "fine-tuning")


def check(budget: BudgetConfig, device: str) -> None:
    """Refuses to count processor seconds where the work is done elsewhere."""
    if budget.kind == "core_seconds" and device == "cuda":
        raise ConfigError("budget.kind: core_seconds are of the processor, not of a GPU: use flops or samples_seen")


class _Clock:
    """A callback that notes this process's processor time after each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, progress: Progress) -> None:
        self.times.append(time.process_time())

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        pass

    def on_end(self, result: Artifact) -> None:
        pass

    def on_failure(self, error: BaseException) -> None:
        pass


def _steps(settings: PretrainConfig | FinetuneConfig, count: int, *callbacks: _Clock) -> None:
    """Takes so many steps of the phase, here, and forgets what came of them."""
    make: Callable[..., Task] = pretraining if isinstance(settings, PretrainConfig) else purification
    size = settings.loop.batch_size
    loop = replace(settings.loop, samples=count * size, checkpoint_every=count * size, pause_at=None)
    workers = replace(settings.workers, num_workers=0)
    with tempfile.TemporaryDirectory() as folder:
        run(make(replace(settings, loop=loop, workers=workers)), Path(folder), callbacks)
