"""RayS (Chen and Gu 2020, arXiv 2006.12792): an Linf attack that sees only the predicted class.

Written by hand because no maintained library has it; it is small and has no parameters. It searches the directions
s in {-1, +1}^d for the one along which x + r s crosses the decision boundary at the smallest radius r. Ever smaller
blocks of signs are flipped (algorithm 3); if a flip is still misclassified at the best radius so far, bisection finds
its own radius (algorithm 2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maep import registry
from maep.attacks.query_engine import Outcome, QueryAttack
from maep.attacks.task import AttackTask

TOLERANCE = 1e-3
"""Bisection ends at this length, in L2 as in the authors' code; 1e-3 / sqrt(d) in units of the image range."""


@registry.attack("hard-label", norms=("Linf",), label="hard label", effort="queries", differentiates=False)
def hard_label(task: AttackTask) -> Tensor:
    """`queries` queries of the class that has the highest logit.

    A smaller radius is better. With `task.stop_at_success`, an image is done when its radius is within eps. Otherwise
    all queries reduce the radius, and the last one tries the full eps along the best direction, because an image just
    over the boundary rarely transfers to another model. An image whose radius stays above eps is returned at eps along
    its best direction, although it is classified correctly there. The first query is the image itself. The attack draws
    nothing, so `keys` do not matter.
    """
    return _RayS(task).run(task.config.queries)


class _RayS(QueryAttack):
    """State per image: the best signs and their radius, the block to flip, and the bracket of the bisection."""

    def __init__(self, task: AttackTask) -> None:
        super().__init__(task)
        self.size = self.images[0].numel()
        self.tolerance = TOLERANCE / math.sqrt(self.size)
        self.places = torch.arange(self.size, device=self.images.device)
        self.signs = torch.ones_like(self.images)
        self.tried = self.signs.clone()
        self.radius = torch.full_like(self.best_loss, torch.inf)
        self.inner = torch.zeros_like(self.radius)  # classified correctly (or unknown) at this radius along `tried`
        self.outer = torch.zeros_like(self.radius)  # misclassified at this radius along `tried`, while bisecting
        self.bisecting = torch.zeros_like(self.labels, dtype=torch.bool)
        self.level, self.block = torch.zeros_like(self.labels), torch.zeros_like(self.labels)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.argmax(dim=1) != labels).to(logits.dtype)  # uses nothing else of the logits

    def propose(self, which: Tensor, turn: Tensor) -> Tensor:
        bisecting = self.bisecting[which]
        along = torch.where(bisecting.view(-1, 1, 1, 1), self.tried[which], self._flipped(which))
        self.tried[which] = along
        middle = (self.inner[which] + self.outer[which]) / 2
        # no pixel can change by more than the range
        asked = torch.where(bisecting, middle, self.radius[which].clamp(max=1))
        asked = torch.where(turn == 0, 0, asked)
        last = self._last(turn)
        self.asked = torch.where(last, self.config.eps, asked)
        return self._at(which, torch.where(last.view(-1, 1, 1, 1), self.signs[which], along), self.asked)

    def learn(self, which: Tensor, turn: Tensor, outcome: Outcome) -> Tensor:
        success, asked, bisecting = outcome.success, self.asked, self.bisecting[which]
        last = self._last(turn)
        searching = ~last & (turn > 0)
        nearer = success & ~last & (asked < self.radius[which])
        self.radius[which] = torch.where(nearer, asked, self.radius[which])
        self.signs[which] = torch.where(nearer.view(-1, 1, 1, 1), self.tried[which], self.signs[which])
        self.outer[which] = torch.where(success, asked, self.outer[which])
        self.inner[which] = torch.where(success, torch.where(bisecting, self.inner[which], 0), asked)
        wide = self.outer[which] - self.inner[which] > self.tolerance
        continues = searching & (bisecting | success) & wide
        self._next_block(which[searching & ~continues])
        self.bisecting[which] = continues

        found = self.radius[which] <= self.config.eps
        at_boundary = self._at(which, self.signs[which], self.radius[which].clamp(max=self.config.eps))
        at_eps = last & (success | ~found)
        self.best[which] = torch.where(at_eps.view(-1, 1, 1, 1), outcome.candidates, at_boundary)
        return found

    def _last(self, turn: Tensor) -> Tensor:
        """bool [A]: whether this query tries the full eps; never the first query."""
        return (turn == self.config.queries - 1) & (turn > 0) & (not self.task.stop_at_success)

    def _at(self, which: Tensor, signs: Tensor, radius: Tensor) -> Tensor:
        return (self.images[which] + radius.view(-1, 1, 1, 1) * signs).clamp(0, 1)

    def _flipped(self, which: Tensor) -> Tensor:
        """The best signs with one block flipped: block number `block` of 2^level in the flattened image."""
        length = self._length(which)
        start = (self.block[which] * length)[:, None]
        inside = (self.places >= start) & (self.places < start + length[:, None])
        signs = self.signs[which]
        return torch.where(inside.view_as(signs), -signs, signs)

    def _length(self, which: Tensor) -> Tensor:
        blocks = torch.ones_like(which) << self.level[which]
        return -(-self.size // blocks)  # rounded up

    def _next_block(self, which: Tensor) -> None:
        """Moves to the next block of the level, then to the next level; the finest level (single values) repeats."""
        self.block[which] += 1
        over = which[self.block[which] * self._length(which) >= self.size]
        self.block[over] = 0
        self.level[over] = (self.level[over] + 1).clamp(max=math.ceil(math.log2(self.size)))
