"""An adversarial patch: one square of the image changes freely, the rest not at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maep import registry, seeding
from maep.attacks.query_engine import Outcome, QueryAttack, squares
from maep.attacks.task import AttackTask


@registry.attack("patch", norms=("patch",), label="Patch")
def patch(task: AttackTask) -> Tensor:
    """Images with one changed square, of side eps x the shorter side (at least one pixel).

    The square is placed where the gradient of the cross-entropy at the image has the largest sum of absolute values,
    found by one forward and backward pass. Inside it, PGD (Madry et al. 2018) uses the whole range [0, 1]:
    `config.steps` signed steps of `config.step_size` (None: 2.5 / steps) from a uniform draw, or from the image without
    `random_start`.
    """
    return _Patch(task).run(task.config.steps + 2)  # the image, the start, and the result of each step


class _Patch(QueryAttack):
    differentiates = True

    def __init__(self, task: AttackTask) -> None:
        super().__init__(task)
        self.side = max(1, round(self.config.eps * min(self.images.shape[-2:])))
        self.step = 2.5 / self.config.steps if self.config.step_size is None else self.config.step_size
        self.inside = torch.zeros_like(self.images[:, :1], dtype=torch.bool)  # [B, 1, H, W]
        self.current = self.images.clone()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    def propose(self, which: Tensor, turn: Tensor) -> Tensor:
        del turn
        return self.current[which]

    def learn(self, which: Tensor, turn: Tensor, outcome: Outcome) -> Tensor:
        first = turn == 0
        if first.any():
            self._place(which[first], outcome.gradient[first])
        stepped = (outcome.candidates + self.step * outcome.gradient.sign()).clamp(0, 1)
        following = torch.where(first.view(-1, 1, 1, 1), self._start(which), stepped)
        self.current[which] = torch.where(self.inside[which], following, self.images[which])
        return super().learn(which, turn, outcome)

    def _start(self, which: Tensor) -> Tensor:
        images = self.images[which]
        if not self.config.random_start:
            return images
        return seeding.uniform(self.keys[which], images[0].numel()).to(images.dtype).view_as(images)

    def _place(self, which: Tensor, gradient: Tensor) -> None:
        sums = F.avg_pool2d(gradient.abs().sum(dim=1, keepdim=True), self.side, stride=1)
        place = sums.flatten(1).argmax(dim=1)
        top, left = place // sums.shape[-1], place % sums.shape[-1]
        self.inside[which] = squares(self.images.shape[-2:], top, left, torch.full_like(top, self.side))
