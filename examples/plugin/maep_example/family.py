"""A purifier family: one learned linear filter, the same for each channel, that starts at the identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep import config, registry


@dataclass(frozen=True)
class FilterConfig:
    """A linear filter."""

    name: Literal["filter"] = config.key("filter", "Model family.", decides=True)
    image_size: tuple[int, int] = config.key((16, 16), "Height and width of an image in pixels.", decides=True)
    size: int = config.key(3, "Side of the filter in pixels, odd.", decides=True)

    def __post_init__(self) -> None:
        """Raises ValueError for a filter without a middle."""
        if self.size < 1 or self.size % 2 == 0:
            raise ValueError(f"size: {self.size} must be odd")


@registry.family("filter", config=FilterConfig, title="Filter purifier")
class Filter(nn.Module):
    """float [B, 3, H, W] in [0, 1] -> filtered, same shape and range."""

    def __init__(self, settings: FilterConfig) -> None:
        super().__init__()
        self.half = settings.size // 2
        kernel = torch.zeros(settings.size, settings.size)
        kernel[self.half, self.half] = 1
        self.kernel = nn.Parameter(kernel)

    def forward(self, images: Tensor) -> Tensor:
        """The filtered images."""
        return self.unclamped(images).clamp(0, 1)

    def unclamped(self, images: Tensor) -> Tensor:
        """The output before it is cut to [0, 1]."""
        kernels = self.kernel.expand(3, 1, -1, -1)
        return F.conv2d(F.pad(images, (self.half,) * 4, mode="reflect"), kernels, groups=3)
