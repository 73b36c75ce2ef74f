"""Fewer grey levels (feature squeezing, Xu et al. 2018, arXiv 1704.01155)."""

from __future__ import annotations

from torch import Tensor, nn

from maep import registry


@registry.baseline("bits-4", count=4)
class Bits(nn.Module):
    """Fewer grey levels: `count` bits a channel (feature squeezing, Xu et al. 2018, arXiv 1704.01155)."""

    differentiable = False
    randomised = False

    def __init__(self, count: int) -> None:
        super().__init__()
        self.steps = 2**count - 1

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> rounded; its gradient is zero, so it counts as none."""
        rounded: Tensor = (images * self.steps).round() / self.steps
        return rounded
