"""Square Attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search with squares, no gradient.

Untargeted on the margin, in Linf (algorithm 2) and L2 (algorithm 3), with the schedule and the distributions of the
authors' code in AutoAttack. It differs in two points: each image draws its own square and signs from its key, where the
authors draw one for the batch, and `queries` counts the start. Written by hand for speed.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import lru_cache

import torch
from torch import Tensor

from maep import registry, seeding
from maep.attacks.query_engine import QueryAttack, squares
from maep.attacks.task import AttackTask

P_INIT = 0.8
"""Share of the pixels in the first squares."""
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which that share halves (section 5). As in AutoAttack, they do not scale with the budget, so a shorter
run is the beginning of a longer one."""
_TINY = 1e-12


@registry.attack("square", norms=("Linf", "L2"), label="Square", effort="queries", differentiates=False)
def square(task: AttackTask) -> Tensor:
    """The candidate of highest margin after `queries` queries."""
    return {"Linf": _Linf, "L2": _L2}[task.config.norm](task).run(task.config.queries)


def share(query: int) -> float:
    """The share of the pixels that query number `query` (from 0) changes."""
    return P_INIT / 2.0 ** sum(query > bound for bound in _HALVINGS)


class _Square(QueryAttack):
    smallest = 1

    def __init__(self, task: AttackTask) -> None:
        super().__init__(task)
        self.channels, self.height, self.width = self.images.shape[1:]
        self.sides = torch.tensor([self._side(turn) for turn in range(self.config.queries)], device=self.images.device)

    def _side(self, turn: int) -> int:
        pixels = self.height * self.width
        side = max(round(math.sqrt(share(turn - 1) * pixels)), self.smallest)
        return min(self._fitting(side), self.height, self.width)

    def _fitting(self, side: int) -> int:
        return side

    def propose(self, which: Tensor, turn: Tensor) -> Tensor:
        """The start for images in their first turn, one more square for the others."""
        start = turn == 0
        if start.all():
            return self._start(which)
        candidates = torch.empty_like(self.images[which])
        if start.any():
            candidates[start] = self._start(which[start])
        candidates[~start] = self._change(which[~start], turn[~start])
        return candidates

    @abstractmethod
    def _start(self, which: Tensor) -> Tensor:
        """The first candidates [A, 3, H, W]."""

    @abstractmethod
    def _change(self, which: Tensor, turn: Tensor) -> Tensor:
        """The best so far with one more square, [A, 3, H, W]."""

    def _signs(self, draws: Tensor) -> Tensor:
        """-1 or +1 from draws in [0, 1)."""
        return torch.where(draws < 0.5, -1.0, 1.0).to(self.images.dtype)

    def _corner(self, draws: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """Top row and left column, int64 [A] each, from draws [A, 2]; as in the authors' code, never the last ones."""
        return (draws[:, 0] * (self.height - side)).long(), (draws[:, 1] * (self.width - side)).long()


class _Linf(_Square):
    def _start(self, which: Tensor) -> Tensor:
        """Vertical stripes of +-eps, one pixel wide, independent in each channel."""
        draws = seeding.uniform(seeding.mix(self.keys[which], 0), self.channels * self.width)
        stripes = self._signs(draws).view(-1, self.channels, 1, self.width)
        return (self.images[which] + self.config.eps * stripes).clamp(0, 1)

    def _change(self, which: Tensor, turn: Tensor) -> Tensor:
        """One square set to +eps or -eps in each channel."""
        images, eps, side = self.images[which], self.config.eps, self.sides[turn]
        draws = seeding.uniform(seeding.mix(self.keys[which], turn), 2 + self.channels)
        inside = squares(images.shape[-2:], *self._corner(draws, side), side)
        painted = (images + eps * self._signs(draws[:, 2:]).view(-1, self.channels, 1, 1)).clamp(0, 1)
        return torch.where(inside, painted, self.best[which])


class _L2(_Square):
    smallest = 3

    def _fitting(self, side: int) -> int:
        return side + (side % 2 == 0)

    def _start(self, which: Tensor) -> Tensor:
        """A grid of bumps, about five per side, of random sign and direction, scaled to eps."""
        side = max(self.height // 5, 1)
        rows, columns = self.height // side, self.width // side
        top = (self.height - 5 * side) // 2 if rows >= 5 else 0
        tiles = rows * columns
        draws = seeding.uniform(seeding.mix(self.keys[which], 0), tiles * (self.channels + 1))
        upright = draws[:, :tiles] < 0.5
        signs = self._signs(draws[:, tiles:]).view(-1, self.channels, tiles)
        delta = torch.zeros_like(self.images[which])
        for tile in range(tiles):
            row, column = top + tile // columns * side, top + tile % columns * side
            bump = self._bump(side, upright[:, tile]) * signs[:, :, tile, None, None]
            window = delta[:, :, row : row + side, column : column + side]
            window += bump[:, :, : window.shape[2], : window.shape[3]]
        return self._scaled(which, delta)

    def _change(self, which: Tensor, turn: Tensor) -> Tensor:
        """Computes windows of equal size together: most images are at the same point of the schedule."""
        candidates = torch.empty_like(self.images[which])
        sides = self.sides[turn]
        for side in torch.unique(sides).tolist():
            group = sides == side
            candidates[group] = self._moved(which[group], turn[group], side)
        return candidates

    def _moved(self, which: Tensor, turn: Tensor, side: int) -> Tensor:
        """Moves the mass of one window into another, and adds a bump there."""
        images = self.images[which]
        delta = self.best[which] - images
        draws = seeding.uniform(seeding.mix(self.keys[which], turn), 5 + self.channels)
        length = torch.full_like(which, side)
        into, out_of = self._corner(draws[:, :2], length), self._corner(draws[:, 2:4], length)
        union = squares(images.shape[-2:], *into, length) | squares(images.shape[-2:], *out_of, length)
        steps = torch.arange(side, device=images.device)
        image = torch.arange(len(which), device=images.device)[:, None, None, None]
        channel = torch.arange(self.channels, device=images.device)[:, None, None]
        window = (
            image,
            channel,
            (into[0][:, None] + steps)[:, None, :, None],
            (into[1][:, None] + steps)[:, None, None],
        )

        old = delta[window]  # [A, C, side, side]
        bump = self._bump(side, draws[:, 4] < 0.5) * self._signs(draws[:, 5:]).view(-1, self.channels, 1, 1)
        new = bump + old / (_TINY + _length(old, (2, 3)))
        left = (self.config.eps**2 - _length(delta, (1, 2, 3)) ** 2).clamp_min(0)
        mass = (left / self.channels + _length(delta * union, (2, 3)) ** 2).sqrt()
        delta = torch.where(squares(images.shape[-2:], *out_of, length), 0, delta)
        delta[window] = new / (_TINY + _length(new, (2, 3))) * mass
        return self._scaled(which, delta)

    def _scaled(self, which: Tensor, delta: Tensor) -> Tensor:
        return (self.images[which] + delta / (_TINY + _length(delta, (1, 2, 3))) * self.config.eps).clamp(0, 1)

    def _bump(self, side: int, upright: Tensor) -> Tensor:
        """[A, 1, side, side]: a positive and a negative half, one above the other or (not `upright`) side by side."""
        bump = _bump(side).to(self.images)
        return torch.where(upright.view(-1, 1, 1, 1), bump, bump.T)


def _length(delta: Tensor, dims: tuple[int, ...]) -> Tensor:
    return delta.square().sum(dim=dims, keepdim=True).sqrt()


@lru_cache(maxsize=64)
def _bump(side: int) -> Tensor:
    """eta in the paper's section 3.4, [side, side]: two pyramids of opposite sign, of L2 length 1."""
    half = side // 2
    bump = torch.cat([_pyramid(half, side), -_pyramid(side - half, side)])
    return bump / bump.square().sum().sqrt()


def _pyramid(height: int, width: int) -> Tensor:
    """[height, width]: nested rectangles about the centre, ring after ring adding 1 / ring^2 (equation 2); length 1."""
    pyramid = torch.zeros(height, width)
    top, left = height // 2, width // 2
    for ring in range(max(top, left) + 1):
        rows = slice(max(top - ring, 0), min(top + ring + 1, height))
        columns = slice(max(left - ring, 0), min(left + ring + 1, width))
        pyramid[rows, columns] += 1.0 / (ring + 1) ** 2
    return pyramid / pyramid.square().sum().sqrt().clamp_min(_TINY)
