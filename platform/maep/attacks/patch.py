"""An adversarial patch: a square of the image may be painted at will, everything else stays."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep import seeding
from maep.attacks.config import AttackConfig
from maep.attacks.query_engine import Answer, Search


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: AttackConfig,
    keys: Tensor,
    stop_when_broken: bool = False,
    batch_size: int | None = None,
) -> Tensor:
    """Images with a painted square of side eps x the shorter side (at least one pixel), as the door in run.py has it.

    The square lies where the gradient of the cross-entropy at the image has the largest sum of absolute values; one
    forward and backward pass finds it. Inside, PGD (Madry et al. 2018) over the whole range [0, 1]: `config.steps`
    signed steps of `config.step_size` (None: 2.5 / steps) from a uniform draw, or from the image itself without
    `random_start`. An image that is wrong to begin with is done if one success is all that counts.
    """
    # the image itself, the start, and where each step leads
    return _Patch(model, images, labels, config, keys, stop_when_broken).run(config.steps + 2, batch_size)


class _Patch(Search):
    differentiates = True

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, config: AttackConfig, keys: Tensor, stop: bool
    ) -> None:
        super().__init__(model, images, labels, config, keys, stop)
        self.side = max(1, round(config.eps * min(images.shape[-2:])))
        self.step = 2.5 / config.steps if config.step_size is None else config.step_size
        self.inside = torch.zeros_like(images[:, :1], dtype=torch.bool)  # [B, 1, H, W]
        self.current = self.images.clone()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    def propose(self, which: Tensor, turn: Tensor) -> Tensor:
        del turn
        return self.current[which]

    def learn(self, which: Tensor, turn: Tensor, answer: Answer) -> Tensor:
        assert answer.slope is not None
        first = turn == 0
        if first.any():
            self._place(which[first], answer.slope[first])
        stepped = (answer.candidates + self.step * answer.slope.sign()).clamp(0, 1)
        following = torch.where(first.view(-1, 1, 1, 1), self._start(which), stepped)
        self.current[which] = torch.where(self.inside[which], following, self.images[which])
        return super().learn(which, turn, answer)

    def _start(self, which: Tensor) -> Tensor:
        images = self.images[which]
        if not self.config.random_start:
            return images
        return seeding.uniform(self.keys[which], images[0].numel()).to(images.dtype).view_as(images)

    def _place(self, which: Tensor, slope: Tensor) -> None:
        sums = F.avg_pool2d(slope.abs().sum(dim=1, keepdim=True), self.side, stride=1)
        place = sums.flatten(1).argmax(dim=1)
        top, left = place // sums.shape[-1], place % sums.shape[-1]
        self.inside[which] = squares(self.images.shape[-2:], top, left, torch.full_like(top, self.side))


def squares(size: torch.Size, top: Tensor, left: Tensor, side: Tensor) -> Tensor:
    """bool [B, 1, H, W], true in one square of each image: its upper row, left column and side in pixels, int64 [B]."""
    height, width = (torch.arange(length, device=top.device) for length in size)
    rows = (height >= top[:, None]) & (height < (top + side)[:, None])
    columns = (width >= left[:, None]) & (width < (left + side)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]
