"""Median filter (feature squeezing, Xu et al. 2018, arXiv 1704.01155)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep import registry


@registry.baseline("median")
class Median(nn.Module):
    """The median of each 3 x 3 neighbourhood, channel by channel, edges reflected.

    Differentiable almost everywhere: the gradient goes to the pixel that is the median. It is attacked so.
    """

    differentiable = True
    randomised = False

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> filtered."""
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        shifted = [padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
        return torch.stack(shifted, dim=-1).median(dim=-1).values
