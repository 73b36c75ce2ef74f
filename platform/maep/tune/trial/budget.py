"""Equal budgets: how many images a phase may see for so many images, operations or processor seconds.

What an image costs is counted and measured in few steps of the phase itself, once, and written down before the phase
begins. From then on its length is a number of images, so a run that is killed and goes on ends where it would have.
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
from maep.train.loop.run import Task, batch_of, open_loader, pick_device
from maep.train.loop.step import Step
from maep.train.loop.stopwatch import Stopwatch
from maep.tune.config import BudgetConfig

Phase = PretrainConfig | FinetuneConfig

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


def cost(settings: Phase, kind: str, counted: int = _COUNTED, timed: int = _TIMED) -> Cost:
    """What an image of this phase costs, by `counted` steps, and `timed` and one more where time is to be measured.

    Weights to start from need not be there yet, for they change no cost, unless there are adapters beside them.
    """
    size = settings.loop.batch_size
    if isinstance(settings, FinetuneConfig) and settings.lora is None:
        settings = replace(settings, init=None)
    with _Counter() as counter, sdpa_kernel(SDPBackend.MATH):  # fused attention is no product that is counted
        _steps(settings, counted)
    flops = counter.total / (counted * size)
    if kind != "core_seconds":
        return Cost(flops, None)
    times = _steps(settings, 1 + timed)
    return Cost(flops, (times[-1] - times[0]) / (timed * size))


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
    """Refuses to count processor seconds where the work is done elsewhere, on a `device` of that type."""
    if budget.kind == "core_seconds" and device == "cuda":
        raise ConfigError("budget.kind: core_seconds are of the processor, not of a GPU: use flops or samples_seen")


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of what runs inside, backward passes and attacks included.

    PyTorch's FlopCounterMode has the formulas, but follows modules by hooks that an attack's gradient does not bear.
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
    """Takes so many steps, spread over the schedules of the phase, and forgets what came of them.

    Returns this process's processor seconds after each.
    """
    make: Callable[..., Task] = pretraining if isinstance(settings, PretrainConfig) else purification
    task, loop = make(settings), settings.loop
    device = pick_device(loop.device)
    objective = task.objective.to(device).train()
    update, watch = Step(objective, loop, 1, device), Stopwatch(device)
    loader = open_loader(task.images, task.loader, Sampling(loop.batch_size, loop.seed, loop.augment), device)
    times = []
    with closing(loader.parts(0, count)) as parts:
        for number, part in enumerate(parts):
            step = number * loop.num_steps // count
            batch = batch_of(part, step, loop)
            if objective.crafts:
                batch = objective.craft(batch)
            for replay in range(loop.replays):
                update(replace(batch, replay=replay), 0.0, watch)  # a rate that ruins the weights fails in training
            times.append(time.process_time())
    return times
