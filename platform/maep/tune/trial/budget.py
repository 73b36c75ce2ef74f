"""Equal budgets: how many images a phase may see for a budget in images, operations or processor seconds.

The cost of an image is measured once, in a few steps of the phase itself, before the phase starts. From then on the
phase has a fixed number of images, so a run that is killed and resumed ends at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from maep.data.stream.plan import Sampling
from maep.errors import ConfigError
from maep.train.build_tasks import pretraining, purification
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.train.loop.meter import Stopwatch
from maep.train.loop.run import Task, batch_of, open_loader, pick_device
from maep.train.loop.step import TrainingStep
from maep.tune.config import BudgetConfig

Phase = PretrainConfig | FinetuneConfig

_COUNTED, _TIMED = 4, 10
"""Numbers of steps. Several, because each step draws the kind and length of its attack."""


@dataclass(frozen=True)
class ImageCost:
    """The cost of one image in a training step, including the attack on it."""

    flops: float
    """By PyTorch's counter: matrix products and convolutions, forward and backward."""
    core_seconds: float | None
    """None where the budget does not need it."""

    def of(self, kind: str) -> float:
        """The cost in units of the budget."""
        if kind == "core_seconds":
            assert self.core_seconds is not None
            return self.core_seconds
        return self.flops if kind == "flops" else 1.0


def image_cost(settings: Phase, kind: str) -> ImageCost:
    """Counts the operations of a few steps of the phase; for core_seconds, times further ones after a warm-up step.

    Initial weights need not exist yet: they do not change the cost, except for LoRA adapters.
    """
    size = settings.loop.batch_size
    if isinstance(settings, FinetuneConfig) and settings.lora is None:
        settings = replace(settings, init=None)
    with _Counter() as counter, sdpa_kernel(SDPBackend.MATH):  # the counter does not see fused attention
        _steps(settings, _COUNTED)
    flops = counter.total / (_COUNTED * size)
    if kind != "core_seconds":
        return ImageCost(flops, None)
    times = _steps(settings, 1 + _TIMED)
    return ImageCost(flops, (times[-1] - times[0]) / (_TIMED * size))


def num_images(amount: float, cost: ImageCost, kind: str, batch_size: int, what: str) -> int:
    """The images that `amount` of the budget pays for, in whole batches. Raises ConfigError for less than one batch."""
    steps = int(amount / (cost.of(kind) * batch_size) * (1 + 1e-12))
    if steps < 1:
        least = cost.of(kind) * batch_size
        raise ConfigError(
            f"budget.amount: leaves {max(0.0, amount):.4g} {kind} for {what}, but one batch takes {least:.4g}: raise it"
        )
    return steps * batch_size


def for_pretraining(budget: BudgetConfig, cost: ImageCost, batch_size: int) -> int:
    """Images of pretraining."""
    return num_images(budget.amount * budget.pretrain_share, cost, budget.kind, batch_size, "pretraining")


def for_finetuning(budget: BudgetConfig, spent: float, cost: ImageCost, batch_size: int) -> int:
    """Images of fine-tuning, after pretraining spent `spent` of the budget."""
    return num_images(budget.amount - spent, cost, budget.kind, batch_size, "fine-tuning")


def check(budget: BudgetConfig, device: str) -> None:
    """Raises ConfigError for a budget of processor seconds on a GPU; `device` is a device type."""
    if budget.kind == "core_seconds" and device == "cuda":
        raise ConfigError(
            "budget.kind: core_seconds counts CPU time, but this search trains on a GPU: use flops or samples_seen"
        )


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of the block, including backward passes and attacks.

    PyTorch's FlopCounterMode has the same formulas, but its module hooks break the gradient of an attack.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def _steps(settings: Phase, count: int) -> list[float]:
    """Trains for `count` steps, spread over the schedules of the phase, and discards the result.

    Returns the processor seconds of this process after each step.
    """
    make: Callable[..., Task] = pretraining if isinstance(settings, PretrainConfig) else purification
    task, loop = make(settings), settings.loop
    device = pick_device(loop.device)
    objective = task.objective.to(device).train()
    update, watch = TrainingStep(objective, loop, 1, device), Stopwatch(device)
    loader = open_loader(task.images, task.loader, Sampling(loop.batch_size, loop.seed, loop.augment), device)
    times = []
    with closing(loader.parts(0, count)) as parts:
        for number, part in enumerate(parts):
            step = number * loop.num_steps // count
            batch = batch_of(part, step, loop)
            if objective.crafts:
                batch = objective.craft(batch)
            for replay in range(loop.replays):
                update(replace(batch, replay=replay), 0.0, watch)  # learning rate 0
            times.append(time.process_time())
    return times
