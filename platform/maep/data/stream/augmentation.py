"""Random crops and flips, and the order of an epoch, as pure functions of (seed, epoch, image).

An image is augmented identically in any batch, on any number of workers, resumed or not. So there is no generator; the
draws are hashes (maep.seeding).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray

from maep import seeding
from maep.data.reading.cropping import CropBox

CROP, ORDER, RESIZED_CROP = 1, 2, 3  # keep draws for different purposes apart
SCALE = (0.2, 1.0)
"""Share of the image's area that a random resized crop takes (He et al., Masked Autoencoders, 2022, appendix A.1)."""
RATIO = (3 / 4, 4 / 3)
"""Width over height of a random resized crop."""
TRIES = 10


def crop_and_flip(
    images: torch.Tensor,
    indices: torch.Tensor,
    seed: int,
    epoch: int,
    pad: int = 4,
) -> torch.Tensor:
    """Pads each image by `pad`, crops it back at random, and mirrors it left to right with probability 1/2.

    images   uint8 [B, H, W, 3], on any device; any other dtype works too
    indices  int64 [B], each image's official index, on the same device
    Returns the same shape, dtype and device. Offsets are uniform on -pad..pad in each direction. Padding is by
    reflection (without repeating the edge), because a purifier would learn to reproduce black borders.
    """
    num, height, width = images.shape[:3]
    assert 0 <= pad < min(height, width), f"pad {pad} must be smaller than the images, {height}x{width}"
    draws = _draws(indices, seed, epoch, CROP)
    down, right = (seeding.bits(draws, start, 24) % (2 * pad + 1) - pad for start in (0, 24))
    columns = torch.arange(width, device=images.device)
    columns = torch.where(seeding.bits(draws, 48, 1).bool()[:, None], columns.flip(0), columns) + right[:, None]
    rows = torch.arange(height, device=images.device) + down[:, None]
    place = _reflect(rows, height)[:, :, None] * width + _reflect(columns, width)[:, None, :]
    start = torch.arange(num, device=images.device)[:, None, None] * (height * width)
    flat = images.reshape(num * height * width, -1)
    return flat.index_select(0, (start + place).reshape(-1)).reshape(images.shape)  # three times as fast as indexing


def crop_box(index: int, seed: int, epoch: int, size: tuple[int, int]) -> CropBox:
    """A random box to be resized to a square, and whether to mirror it: MAE's augmentation at 224 px.

    index   the image's official index
    size    (height, width) of the image, in pixels
    The box is drawn as torchvision's RandomResizedCrop draws it: area uniform in SCALE of the image's, ratio
    log-uniform in RATIO, place uniform; after TRIES boxes that do not fit, the largest central one whose ratio is in
    RATIO. The probability of mirroring is 1/2.
    """
    height, width = size
    uniform = seeding.stream(seeding.draw(int(_key(seed, epoch, RESIZED_CROP)), index))
    flip = next(uniform) < 0.5
    for _ in range(TRIES):
        area, ratio, down, right = (next(uniform) for _ in range(4))
        box_area = height * width * (SCALE[0] + area * (SCALE[1] - SCALE[0]))
        box_ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** ratio
        box_height, box_width = round(math.sqrt(box_area / box_ratio)), round(math.sqrt(box_area * box_ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = int(down * (height - box_height + 1)), int(right * (width - box_width + 1))
            return CropBox(top, left, box_height, box_width, flip)
    box_height, box_width = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    return CropBox((height - box_height) // 2, (width - box_width) // 2, box_height, box_width, flip)


def epoch_order(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """int64 [num_images]: a random permutation of the positions, for one epoch."""
    draws = _draws(torch.arange(num_images), seed, epoch, ORDER)
    return np.argsort(draws.numpy().view(np.uint64), kind="stable").astype(np.int64)


def _draws(places: torch.Tensor, seed: int, epoch: int, purpose: int) -> torch.Tensor:
    """int64 [N], 64 random bits for each of int64 `places` [N]."""
    return seeding.draws(_key(seed, epoch, purpose), places)


@functools.lru_cache(maxsize=64)  # called for each image of an epoch
def _key(seed: int, epoch: int, purpose: int) -> torch.Tensor:
    return seeding.mix(seeding.mix(seed, epoch, purpose))  # mixed twice; keep it so, as resumed runs rely on the values


def _reflect(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Positions from -size+1 to 2*size-2 folded back into 0..size-1."""
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)
