"""Images of any size through a purifier that was trained on one: reflection padding, and overlapping tiles.

A side must be a multiple of the purifier's `stride`: the image is padded below and on the right by reflection
and the answer is cropped back. A side longer than the tile is cut into tiles that overlap by a quarter, and the
purified tiles are blended with linear ramps; so cost grows with the area, not with its square.

Two ways in: `pad`, `corners`, `cut` and `blend` work on one image, whose tiles may come back one by one (the endpoint);
`Tiled` is a module for a batch, differentiable end to end (attacks and evaluation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maep.errors import ConfigError


def for_size(purifier: nn.Module, image_size: tuple[int, int], how: Literal["tiles", "interpolate"]) -> nn.Module:
    """`purifier` made to take images of `image_size` (height, width); itself where that is its own size.

    tiles        it sees tiles of the size it was trained on (`Tiled`); any image size
    interpolate  it sees the whole image, an autoencoder's positions scaled into the trained range; sizes that its
                 stride divides
    Defences without a size of their own (the baselines) take any and are returned as they are.
    Raises ConfigError where the stride does not divide the size.
    """
    own = getattr(purifier, "image_size", None)
    if own is None or tuple(own) == tuple(image_size):
        return purifier
    if how == "tiles":
        return Tiled(purifier, own)
    stride = int(getattr(purifier, "stride", 1))
    if any(side % stride for side in image_size):
        height, width = image_size
        raise ConfigError(
            f"sizes: interpolate needs image sides that are multiples of {stride}, not {height}x{width}: use tiles"
        )
    return purifier


class Tiled(nn.Module):
    """A purifier on overlapping tiles of one size: float [B, 3, H, W] in [0, 1], any H and W -> the same, purified.

    side       height and width of the tiles (one number: both), multiples of the purifier's stride
    max_tiles  so many go through the purifier at once, whichever images they are of
    An image shorter than a tile is filled up by reflection, so that the purifier never sees another size. Under
    autograd each chunk is computed anew on the way back (Chen et al. 2016, arXiv 1604.06174): memory follows
    `max_tiles`, not the number of tiles, which for CIFAR tiles on ImageNet images is 81 each.
    """

    def __init__(self, purifier: nn.Module, side: int | tuple[int, int], max_tiles: int = 128) -> None:
        super().__init__()
        self.purifier = purifier
        self.image_size = (side, side) if isinstance(side, int) else (side[0], side[1])
        self.stride = int(getattr(purifier, "stride", 1))
        if min(self.image_size) < 1 or any(length % self.stride for length in self.image_size) or max_tiles < 1:
            raise ConfigError(f"tiles: {side} must be a multiple of the purifier's stride, {self.stride}")
        self.max_tiles = max_tiles
        self.train(purifier.training)

    @property
    def randomised(self) -> bool:
        """Whether the purifier is; then every tile has masks of its own."""
        return bool(getattr(self.purifier, "randomised", False))

    def forward(self, images: Tensor) -> Tensor:
        """Cut, purify, blend: the cut and the blend are linear, so gradients pass as through one convolution."""
        height, width = images.shape[-2:]
        images = _fill(images, self.image_size)
        rows, from_rows = _axis(images.shape[2], self.image_size[0])
        columns, from_columns = _axis(images.shape[3], self.image_size[1])
        mosaic = images[:, :, rows.to(images.device)][..., columns.to(images.device)]
        mosaic = self._purify(mosaic)
        blended = from_rows.to(mosaic).T @ mosaic @ from_columns.to(mosaic)
        return blended[..., :height, :width].clamp(0, 1)  # weights add up to 1 within rounding

    def _purify(self, mosaic: Tensor) -> Tensor:
        """[B, 3, rows * h, columns * w], tiles side by side -> the same, each tile purified by itself."""
        height, width = self.image_size
        batch, channels = mosaic.shape[:2]
        cells = mosaic.reshape(batch, channels, -1, height, mosaic.shape[3] // width, width).permute(0, 2, 4, 1, 3, 5)
        chunks = torch.split(cells.flatten(0, 2), self.max_tiles)
        again = torch.is_grad_enabled() and len(chunks) > 1
        purified = [
            checkpoint(self.purifier, chunk, use_reentrant=False) if again else self.purifier(chunk) for chunk in chunks
        ]
        return torch.cat(purified).reshape(cells.shape).permute(0, 3, 1, 4, 2, 5).reshape(mosaic.shape)


def _axis(length: int, side: int) -> tuple[Tensor, Tensor]:
    """Tiles along one axis: the pixel under each of their places, int64 [K], and the places' shares in each pixel.

    K is the number of tiles times `side`. The shares, float32 [K, length], add up to 1 over K: the ramps of `blend`,
    divided by their sum, which factors into rows and columns because the tiles are a grid.
    """
    starts = torch.tensor(_starts(length, side))
    pixels = (starts[:, None] + torch.arange(side)).flatten()
    shares = torch.zeros(len(pixels), length)
    shares[torch.arange(len(pixels)), pixels] = _ramp(side).repeat(len(starts))
    return pixels, shares / shares.sum(dim=0)


def pad(image: Tensor, stride: int) -> Tensor:
    """[B, C, H, W] padded below and right by reflection so that both sides are multiples of `stride`."""
    height, width = image.shape[-2:]
    return _fill(image, (height + -height % stride, width + -width % stride))


def _fill(image: Tensor, least: tuple[int, int]) -> Tensor:
    """[B, C, H, W] padded below and right by reflection to at least `least` (height, width)."""
    for axis, length in zip((2, 3), least, strict=True):
        while (missing := length - image.shape[axis]) > 0:  # a reflection is a pixel shorter than what it mirrors
            size = image.shape[axis]
            step = min(missing, max(size - 1, 1))
            amounts = (0, 0, 0, step) if axis == 2 else (0, step, 0, 0)
            image = F.pad(image, amounts, mode="reflect" if size > 1 else "replicate")
    return image


def tile_side(image_size: tuple[int, int], stride: int, tile_size: int | None) -> int:
    """The side of a tile: `tile_size`, or 8 x the purifier's training size, as a multiple of `stride`."""
    wanted = tile_size if tile_size is not None else 8 * max(image_size)
    return max(math.ceil(wanted / stride) * stride, stride)


def corners(height: int, width: int, side: int) -> list[tuple[int, int]]:
    """Top left corners of the tiles that cover `height` x `width`; one corner where the image fits into a tile."""
    return [(top, left) for top in _starts(height, side) for left in _starts(width, side)]


def cut(image: Tensor, places: Sequence[tuple[int, int]], side: int) -> list[Tensor]:
    """The tiles of [1, C, H, W] at `places`, each [1, C, h, w] with h, w <= side."""
    return [image[..., top : top + side, left : left + side] for top, left in places]


def blend(tiles: Sequence[Tensor], places: Sequence[tuple[int, int]], shape: torch.Size) -> Tensor:
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


def _ramp(length: int) -> Tensor:
    rising = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(rising, rising.flip(0))
