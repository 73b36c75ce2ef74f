"""The engine of the iterative gradient attacks: slots of a batch that images enter and leave one by one.

A batch has a fixed number of slots. Each slot holds an image, its own place on its way, and the attack's state for
it. All slots are looked at together: one forward and one backward pass. An image that is done leaves at once, and the
next one of the queue takes its slot, so that batches stay full while images wait; after that the batch shrinks in a
few sizes (each new shape costs the convolution library a set-up). Nothing that is computed for a slot looks at
another one, so an image gets the same in any company, up to the rounding of sums in batches of another shape.

An attack is a `Method`: how an image's state starts, and how it moves after a look. It knows no queue and no budget of
looks but its own; the engine knows no step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from maep import seeding
from maep.attacks.losses import Loss, TargetedLoss, logits_of
from maep.attacks.norms import per_image


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
class State(Rows):
    """What a method knows of each image."""

    current: Tensor
    """[S, 3, H, W]: where to look next."""


S = TypeVar("S", bound=State)


class Method(Protocol[S]):
    """An attack as a state machine of one image; all its tensors have one row a slot."""

    num_looks: int
    """Forward passes of one run of an image."""
    first_counted: int
    """The first look (from 0) that lies within the budget: earlier ones are not kept."""

    def start(self, images: Tensor, keys: Tensor) -> S:
        """The state before the first look; `keys` int64 [S] decide its draws."""

    def step(self, state: S, images: Tensor, looks: Tensor, losses: Tensor, slope: Tensor) -> S:
        """The state after look number `looks` (int64 [S], from 0) at `state.current`.

        It gave `losses` [S] and their gradient `slope` [S, 3, H, W]; what was in `state` is left as it is.
        """


@dataclass(frozen=True)
class Task:
    """What is attacked. `targets` int64 [N, R]: the class that each of the R runs aims at (if `loss` looks at it)."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    targets: Tensor
    keys: Tensor
    loss: TargetedLoss
    merit: Loss | None = None
    """By which the best iterate is kept, where losses of several runs do not compare; None: by the loss."""


@dataclass
class _Slots(Rows):
    owner: Tensor  # int64 [S]: number of the image
    live: Tensor  # bool [S]: False where the image has left and no other came
    run: Tensor  # int64 [S]
    looks: Tensor  # int64 [S]: of this run
    images: Tensor
    labels: Tensor
    best: Tensor  # [S, 3, H, W]: the iterate that is kept, over all runs
    merit: Tensor  # float [S]: its merit


def climb(task: Task, method: Method[S], stop_when_broken: bool, batch_size: int | None) -> Tensor:
    """The best iterate of each image, [N, 3, H, W]: that of highest merit, or the first that breaks it.

    An image goes through its runs one after the other, each from a start of its own. With `stop_when_broken` it leaves
    at its first success.
    """
    num, num_runs = len(task.images), task.targets.shape[1]
    found = task.images.clone()
    full = waiting = min(num, batch_size or num)  # slots; and the number of the image that is next in the queue
    slots = _enter(task, torch.arange(waiting, device=task.images.device))
    state = method.start(slots.images, task.keys[slots.owner])
    while True:
        last = slots.looks == method.num_looks - 1
        broken, losses, slope = _look(task, slots, state, bool((slots.live & ~last).any()), method.first_counted)
        leaving = last & (slots.run == num_runs - 1)
        if stop_when_broken:
            leaving |= broken
            slots.best = torch.where(per_image(broken), state.current, slots.best)
        leaving &= slots.live
        free = leaving.nonzero()[:, 0]
        found[slots.owner[free]] = slots.best[free]
        slots.live = slots.live & ~leaving
        newcomers = torch.arange(waiting, min(waiting + len(free), num), device=free.device)
        waiting += len(newcomers)
        if not len(newcomers) and not slots.live.any():
            return found

        state = method.step(state, slots.images, slots.looks, losses, slope)
        slots.looks = (slots.looks + 1).clamp_max(method.num_looks - 1)  # an empty slot stays at its last look
        again = (slots.live & last).nonzero()[:, 0]
        if len(again):
            slots.looks[again] = 0
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


def _enter(task: Task, numbers: Tensor) -> _Slots:
    images = task.images[numbers]
    zero = torch.zeros_like(numbers)
    merit = torch.full(numbers.shape, -torch.inf, device=images.device, dtype=images.dtype)
    return _Slots(numbers, zero == 0, zero, zero.clone(), images, task.labels[numbers], images.clone(), merit)


def _look(task: Task, slots: _Slots, state: State, gradient: bool, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which slots are broken, bool [S], the losses [S] and their slope; keeps the better iterates."""
    targets = task.targets[slots.owner, slots.run]
    logits, losses, slope = evaluate(
        task.model, state.current, lambda logits: task.loss(logits, slots.labels, targets), gradient
    )
    merit = losses if task.merit is None else task.merit(logits, slots.labels).to(losses.dtype)
    counted = slots.looks >= first
    better = counted & (merit > slots.merit)
    slots.best = torch.where(per_image(better), state.current, slots.best)
    slots.merit = torch.where(better, merit, slots.merit)
    return counted & (logits.argmax(dim=1) != slots.labels), losses, slope


def evaluate(
    model: nn.Module, points: Tensor, loss: Callable[[Tensor], Tensor], gradient: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, classes], `loss` of them [B] and its gradient [B, 3, H, W] at `points`; zero where none is asked for.

    Raises FloatingPointError where the logits are NaN or infinite.
    """
    with torch.set_grad_enabled(gradient):
        points = points.detach().requires_grad_(gradient)
        logits = logits_of(model, points)
        losses = loss(logits)
        slope = torch.autograd.grad(losses.sum(), points)[0] if gradient else torch.zeros_like(points)
    return logits.detach(), losses.detach().to(points.dtype), slope


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int | None) -> Tensor:
    """Logits [B, classes], `batch_size` images at a time. Raises FloatingPointError as `evaluate` does."""
    size = batch_size or len(images)
    return torch.cat([logits_of(model, images[start : start + size]) for start in range(0, len(images), size)])


def batch_sizes(size: int, needed: int) -> int:
    """The smallest of `size`, 3/4 of it, 1/2, 3/8, 1/4, ... (rounded up) that holds `needed`, at least 1."""
    while size > 1:
        half, between = -(-size // 2), -(-3 * size // 4)
        if needed > half:
            return between if needed <= between else size
        size = half
    return size
