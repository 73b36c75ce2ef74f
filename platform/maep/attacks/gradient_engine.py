"""The engine of the iterative gradient attacks: slots of a batch that images enter and leave one by one.

A batch has a fixed number of slots. Each slot holds an image, its progress, and the attack's state for it. All slots
share one forward and one backward pass a step. An image that is done leaves at once, and the next one of the queue
takes its slot, so that batches stay full while images wait; after that the batch shrinks in a few sizes (each new
shape costs the convolution library a set-up). Nothing computed for a slot depends on another one, so an image gets
the same result in any batch, up to the rounding of sums in batches of another shape.

An attack is a `Method`: how an image's state starts, and how it moves after a pass. It knows no queue and no budget of
passes but its own; the engine knows no step rule.
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
    """Tensors with one row for each slot."""

    def put(self, rows: Tensor, other: Self) -> None:
        """Overwrites the int64 `rows` by those of `other`."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)

    def take(self, rows: Tensor) -> Self:
        """The int64 `rows`, as new tensors."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass
class Iterates(Rows):
    """The state of each image in a method; a method may add to it."""

    current: Tensor
    """[S, 3, H, W]: the point of the next pass."""


S = TypeVar("S", bound=Iterates)


class Method(Protocol[S]):
    """An attack as a state machine of one image; all its tensors have one row a slot."""

    num_passes: int
    """Forward passes of one run of an image."""
    first_counted: int
    """The first pass (from 0) whose point lies within the budget: earlier ones are not kept."""

    def start(self, images: Tensor, keys: Tensor) -> S:
        """The state before the first pass; `keys` int64 [S] decide its draws."""

    def step(self, state: S, images: Tensor, passes: Tensor, losses: Tensor, gradient: Tensor) -> S:
        """The state after pass number `passes` (int64 [S], from 0) at `state.current`.

        It gave `losses` [S] and their `gradient` [S, 3, H, W]; what was in `state` is left as it is.
        """


@dataclass(frozen=True)
class Goal:
    """What is maximised. `targets` int64 [N, R]: the class that each of the R runs of an image aims at."""

    loss: TargetedLoss
    targets: Tensor
    merit: Loss | None = None
    """By which the best iterate is kept, where the losses of several runs do not compare; None: by the loss."""

    @staticmethod
    def untargeted(loss: Loss, labels: Tensor) -> Goal:
        """One run of each image, on a loss of its logits and label."""
        return Goal(lambda logits, labels, _: loss(logits, labels), labels[:, None])


@dataclass
class _Slots(Rows):
    owner: Tensor  # int64 [S]: number of the image
    live: Tensor  # bool [S]: False where the image has left and no other came
    run: Tensor  # int64 [S]
    passes: Tensor  # int64 [S]: of this run
    images: Tensor
    labels: Tensor
    best: Tensor  # [S, 3, H, W]: the iterate that is kept, over all runs
    merit: Tensor  # float [S]: its merit


def maximise(task: AttackTask, method: Method[S], goal: Goal) -> Tensor:
    """The best iterate of each image, [N, 3, H, W]: that of highest merit, or the first that is misclassified.

    An image goes through its runs one after the other, each from a start of its own. With `task.stop_at_success` it
    leaves at its first success.
    """
    num, num_runs = len(task.images), goal.targets.shape[1]
    found = task.images.clone()
    full = waiting = min(num, task.width)  # slots; and the number of the image that is next in the queue
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
    """Which slots are misclassified, bool [S], the losses [S] and their gradient; keeps the better iterates."""
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
