"""Gaussian blur."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep import registry


@registry.baseline("blur")
class Blur(nn.Module):
    """A Gaussian of standard deviation `sigma` pixels, cut at 3 sigma, edges reflected."""

    differentiable = True
    randomised = False
    kernel: Tensor

    def __init__(self, sigma: float = 0.7) -> None:
        super().__init__()
        self.radius = math.ceil(3 * sigma)
        offsets = torch.arange(-self.radius, self.radius + 1, dtype=torch.float32)
        line = torch.exp(-(offsets**2) / (2 * sigma**2))
        line = line / line.sum()
        self.register_buffer("kernel", (line[:, None] * line[None, :]).repeat(3, 1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> blurred."""
        padded = F.pad(images, (self.radius,) * 4, mode="reflect")
        return F.conv2d(padded, self.kernel, groups=3).clamp(0, 1)
