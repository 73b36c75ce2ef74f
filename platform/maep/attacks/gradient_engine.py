"""The engine of iterative gradient attacks: a batch of slots that images enter and leave one by one.

A batch has a fixed number of slots. Each slot holds an image, its progress, and the attack's state for it. All slots
share one forward and one backward pass per step. An image that is done leaves at once, and the next in the queue takes
its slot, so batches stay full while images wait. Then the batch shrinks through a few sizes, because the convolution
library sets up anew for each shape. No slot depends on another, so an image gets the same result in any batch, up to
rounding of sums in batches of another shape.

An attack is a `Method`: the initial state of an image, and its state after each pass. A method knows nothing of the
queue, and the engine nothing of step rules.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from maep import seeding
from maep.attacks.losses import Loss, TargetedLoss
from maep.attacks.norms import per_image
from maep.attacks.passes import evaluate
from maep.attacks.task import AttackTask


@dataclass
class Rows:
    """Tensors with one row per slot."""

    def put(self, rows: Tensor, other: Self) -> None:
        """Overwrites `rows` (int64) with those of `other`."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)

    def take(self, rows: Tensor) -> Self:
        """Copies of `rows` (int64)."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass
class Iterates(Rows):
    """A method's state of each image; methods may add fields."""

    current: Tensor
    """[S, 3, H, W]: the point at which the next pass is made."""


@dataclass
class Best(Iterates):
    """The iterate of highest loss in this run, with its gradient and loss."""

    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor

    def seen(self, losses: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """best, best_gradient and best_loss after the pass at `current`."""
        better = losses > self.best_loss
        rows = per_image(better)
        return (
            torch.where(rows, self.current, self.best),
            torch.where(rows, gradient, self.best_gradient),
            torch.where(better, losses, self.best_loss),
        )


S = TypeVar("S", bound=Iterates)


class Method(Protocol[S]):
    """An attack as a state machine per image; its tensors have one row per slot."""

    num_passes: int
    """Forward passes per run of an image."""
    first_counted: int
    """Number (from 0) of the first pass whose point lies within the budget; earlier points are never returned."""

    def start(self, images: Tensor, keys: Tensor) -> S:
        """The state before the first pass; `keys` (int64 [S]) decide the random draws."""

    def step(self, state: S, images: Tensor, passes: Tensor, losses: Tensor, gradient: Tensor) -> S:
        """The state after pass number `passes` (int64 [S], from 0) at `state.current`, which is not changed.

        The pass gave `losses` [S] and their `gradient` [S, 3, H, W].
        """


@dataclass(frozen=True)
class Goal:
    """What to maximise. `targets` (int64 [N, R]): the class that each of the R runs of an image aims at."""

    loss: TargetedLoss
    targets: Tensor
    merit: Loss | None = None
    """Decides which iterate is returned, where the losses of different runs cannot be compared; None: the loss."""

    @staticmethod
    def untargeted(loss: Loss, labels: Tensor) -> Goal:
        """One run per image, on a loss of logits and label."""
        return Goal(lambda logits, labels, _: loss(logits, labels), labels[:, None])


@dataclass
class _Slots(Rows):
    owner: Tensor  # int64 [S]: number of the image
    live: Tensor  # bool [S]: False for an empty slot
    run: Tensor  # int64 [S]
    passes: Tensor  # int64 [S]: of this run
    images: Tensor
    labels: Tensor
    best: Tensor  # [S, 3, H, W]: the best iterate of all runs
    merit: Tensor  # float [S]: its merit


def maximise(task: AttackTask, method: Method[S], goal: Goal) -> Tensor:
    """The iterate of highest merit of each image, [N, 3, H, W]; with `task.stop_at_success`, its first success.

    The runs of an image follow one another, each from its own start.
    """
    num, num_runs = len(task.images), goal.targets.shape[1]
    found = task.images.clone()
    full = waiting = min(num, task.width)  # number of slots; number of the next image in the queue
    slots = _enter(task, torch.arange(waiting, device=task.images.device))
    state = method.start(slots.images, task.keys[slots.owner])
    while True:
        last = slots.passes == method.num_passes - 1
        differentiate = bool((slots.live & ~last).any())
        success, losses, gradient = _pass(task, goal, slots, state, differentiate, method.first_counted)
        leaving = last & (slots.run == num_runs - 1)
        if task.stop_at_success:
            leaving |= success
            slots.best = torch.where(per_image(success), state.current, slots.best)
        leaving &= slots.live
        free = leaving.nonzero()[:, 0]
        found[slots.owner[free]] = slots.best[free]
        slots.live = slots.live & ~leaving
        newcomers = torch.arange(waiting, min(waiting + len(free), num), device=free.device)
        waiting += len(newcomers)
        if not len(newcomers) and not slots.live.any():
            return found

        state = method.step(state, slots.images, slots.passes, losses, gradient)
        slots.passes = (slots.passes + 1).clamp_max(method.num_passes - 1)  # an empty slot stays at its last pass
        again = (slots.live & last).nonzero()[:, 0]
        if len(again):
            slots.passes[again] = 0
            slots.run[again] += 1
            keys = seeding.mix(task.keys[slots.owner[again]], slots.run[again])
            state.put(again, method.start(slots.images[again], keys))
        if len(newcomers):
            entering = _enter(task, newcomers)
            slots.put(free[: len(newcomers)], entering)
            state.put(free[: len(newcomers)], method.start(entering.images, task.keys[newcomers]))
        size = batch_sizes(full, int(slots.live.sum()))
        if size < len(slots.live):
            stay = slots.live.sort(descending=True, stable=True).indices[:size]
            slots, state = slots.take(stay), state.take(stay)


def _enter(task: AttackTask, numbers: Tensor) -> _Slots:
    images = task.images[numbers]
    zero = torch.zeros_like(numbers)
    merit = torch.full(numbers.shape, -torch.inf, device=images.device, dtype=images.dtype)
    return _Slots(numbers, zero == 0, zero, zero.clone(), images, task.labels[numbers], images.clone(), merit)


def _pass(
    task: AttackTask, goal: Goal, slots: _Slots, state: Iterates, differentiate: bool, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which slots are misclassified (bool [S]), the losses [S] and their gradient; updates the best iterates."""
    targets = goal.targets[slots.owner, slots.run]
    logits, losses, gradient = evaluate(
        task.model, state.current, lambda logits: goal.loss(logits, slots.labels, targets), differentiate
    )
    merit = losses if goal.merit is None else goal.merit(logits, slots.labels).to(losses.dtype)
    counted = slots.passes >= first
    better = counted & (merit > slots.merit)
    slots.best = torch.where(per_image(better), state.current, slots.best)
    slots.merit = torch.where(better, merit, slots.merit)
    return counted & (logits.argmax(dim=1) != slots.labels), losses, gradient


def batch_sizes(size: int, needed: int) -> int:
    """The smallest of `size`, 3/4 of it, 1/2, 3/8, 1/4, ... (rounded up) that holds `needed`, at least 1."""
    while size > 1:
        half, between = -(-size // 2), -(-3 * size // 4)
        if needed > half:
            return between if needed <= between else size
        size = half
    return size
