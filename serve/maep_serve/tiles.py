"""Images of any size through a purifier that was trained on one: reflection padding, and overlapping tiles.

A side must be a multiple of the purifier's `stride`: the image is padded below and on the right by reflection
and the answer is cropped back. A side longer than the tile is cut into tiles that overlap by a quarter, and the
purified tiles are blended with linear ramps; so cost grows with the area, not with its square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F


def pad(image: torch.Tensor, stride: int) -> torch.Tensor:
    """[1, C, H, W] padded below and right by reflection so that both sides are multiples of `stride`."""
    height, width = image.shape[-2:]
    for axis, missing in ((2, -height % stride), (3, -width % stride)):
        while missing:  # a reflection is at most one pixel shorter than what it mirrors, so tiny images need several
            size = image.shape[axis]
            step = min(missing, max(size - 1, 1))
            amounts = (0, 0, 0, step) if axis == 2 else (0, step, 0, 0)
            image = F.pad(image, amounts, mode="reflect" if size > 1 else "replicate")
            missing -= step
    return image


def tile_side(image_size: tuple[int, int], stride: int, tile_size: int | None) -> int:
    """The side of a tile: `tile_size`, or 8 x the purifier's training size, as a multiple of `stride`."""
    wanted = tile_size if tile_size is not None else 8 * max(image_size)
    return max(math.ceil(wanted / stride) * stride, stride)


def corners(height: int, width: int, side: int) -> list[tuple[int, int]]:
    """Top left corners of the tiles that cover `height` x `width`; one corner where the image fits into a tile."""
    return [(top, left) for top in _starts(height, side) for left in _starts(width, side)]


def cut(image: torch.Tensor, places: Sequence[tuple[int, int]], side: int) -> list[torch.Tensor]:
    """The tiles of [1, C, H, W] at `places`, each [1, C, h, w] with h, w <= side."""
    return [image[..., top : top + side, left : left + side] for top, left in places]


def blend(tiles: Sequence[torch.Tensor], places: Sequence[tuple[int, int]], shape: torch.Size) -> torch.Tensor:
    """The image of `shape` whose tiles were purified; a single tile is returned as it is, bit for bit."""
    if len(tiles) == 1:
        return tiles[0]
    total, weight = torch.zeros(shape), torch.zeros(shape[-2:])
    for tile, (top, left) in zip(tiles, places, strict=True):
        height, width = tile.shape[-2:]
        mask_HW = _ramp(height)[:, None] * _ramp(width)[None, :]
        total[..., top : top + height, left : left + width] += tile * mask_HW
        weight[top : top + height, left : left + width] += mask_HW
    return total / weight


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    count = math.ceil((length - side) / (side - side // 4)) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def _ramp(length: int) -> torch.Tensor:
    rising = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(rising, rising.flip(0))
