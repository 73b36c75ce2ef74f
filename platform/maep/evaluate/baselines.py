"""Defences without weights that every purifier stands beside: images in [0, 1] to images in [0, 1].

Each is a module with `differentiable` (whether its gradient is its own; if not, it is attacked in the threat model
`bpda`, identity backwards, and never shown under `adaptive`) and `randomised`. None is random.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from maep import storage
from maep.data.image_set import to_float, to_uint8
from maep.errors import ConfigError, nearest


class Identity(nn.Module):
    """No defence."""

    differentiable = True
    randomised = False

    def forward(self, images: Tensor) -> Tensor:
        """The images."""
        return images


class Jpeg(nn.Module):
    """Pillow's JPEG at `quality`, chroma at half resolution (4:2:0), after rounding to 8 bits."""

    differentiable = False
    randomised = False

    def __init__(self, quality: int) -> None:
        super().__init__()
        self.quality = quality

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> the same, encoded and decoded; no gradient."""
        decoded = np.stack([self._once(pixels) for pixels in to_uint8(images).cpu().numpy()])
        return to_float(torch.from_numpy(decoded)).to(images)

    def _once(self, pixels: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=self.quality, subsampling="4:2:0")
        return np.array(Image.open(buffer))


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


_BASELINES: dict[str, Callable[[], nn.Module]] = {
    "none": Identity,
    "jpeg-q50": lambda: Jpeg(50),
    "jpeg-q75": lambda: Jpeg(75),
    "blur": Blur,
    "median": Median,
    "bits-4": lambda: Bits(4),
}
NAMES = tuple(_BASELINES)


def build(name: str) -> nn.Module:
    """The baseline of that name, in eval mode. Raises ConfigError, with the nearest name, for another."""
    if name not in _BASELINES:
        raise ConfigError(f"baselines: {name!r} is not known: {nearest(name, _BASELINES)}")
    return _BASELINES[name]().eval()


def sha256(name: str) -> str:
    """A baseline's identity in results; it has no artifact."""
    return storage.sha256(f"baseline {name}".encode())
