"""Random crops and flips, and the order of an epoch, as pure functions of (seed, epoch, image).

Nothing depends on which images share a batch or which worker makes it: one worker or eight, resumed or not, an image is
augmented alike. So no generator is kept; the draws are hashes (maep.seeding).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from maep import seeding

CROP, ORDER = 1, 2  # keep the draws for one purpose apart from those for another


def crop_and_flip(
    images: torch.Tensor,
    indices: torch.Tensor,
    seed: int,
    epoch: int,
    pad: int = 4,
    padding: Literal["reflect", "zero"] = "reflect",
) -> torch.Tensor:
    """Pads each image by `pad`, crops it back at random, and mirrors every other one left to right.

    images   uint8 [B, H, W, 3], on any device; any other dtype works too
    indices  int64 [B], each image's official index, on the same device
    Returns the same shape, dtype and device. Offsets are uniform on -pad..pad in each direction. Reflection (without
    repeating the edge) is the default, because a purifier that learns pixels would learn black borders as well;
    `zero` is the usual choice for classifiers (K. He et al., Deep Residual Learning, 2016, section 4.2).
    """
    num, height, width = images.shape[:3]
    assert 0 <= pad < min(height, width), f"pad {pad} must be smaller than the images, {height}x{width}"
    draws = _draws(indices, seed, epoch, CROP)
    down, right = (seeding.bits(draws, start, 24) % (2 * pad + 1) - pad for start in (0, 24))
    columns = torch.arange(width, device=images.device)
    columns = torch.where(seeding.bits(draws, 48, 1).bool()[:, None], columns.flip(0), columns) + right[:, None]
    rows = torch.arange(height, device=images.device) + down[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    place = _reflect(rows, height)[:, :, None] * width + _reflect(columns, width)[:, None, :]
    start = torch.arange(num, device=images.device)[:, None, None] * (height * width)
    cropped = images.reshape(num * height * width, -1)[(start + place).reshape(-1)].reshape(images.shape)
    return cropped if padding == "reflect" else cropped * inside[..., None].to(images.dtype)


def epoch_order(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """int64 [num_images]: a random permutation of the positions, for one epoch."""
    draws = _draws(torch.arange(num_images), seed, epoch, ORDER)
    return np.argsort(draws.numpy().view(np.uint64), kind="stable").astype(np.int64)


def _draws(places: torch.Tensor, seed: int, epoch: int, purpose: int) -> torch.Tensor:
    """int64 [N], 64 random bits for each of int64 `places` [N]."""
    key = seeding.mix(seeding.mix(seed, epoch, purpose))  # twice for ever: runs that are resumed rely on the values
    return seeding.draws(key, places)


def _reflect(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Positions from -size+1 to 2*size-2 folded back into 0..size-1."""
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)
