"""A baseline: the mean of each 3 x 3 neighbourhood."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maep import registry


@registry.baseline("average", side=3)
class Average(nn.Module):
    """float [B, 3, H, W] in [0, 1] -> the same, averaged over `side` x `side` pixels."""

    differentiable = True
    randomised = False

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """Edges are reflected."""
        return F.avg_pool2d(F.pad(images, (self.side // 2,) * 4, mode="reflect"), self.side, stride=1)
