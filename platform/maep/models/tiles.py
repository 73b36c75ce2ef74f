"""Purify images of any size with a purifier trained on one size: reflection padding and overlapping tiles.

Sides must be multiples of the purifier's `stride`, so the image is padded below and on the right by reflection and the
output is cropped. A side longer than a tile is covered by tiles that overlap by a quarter, and the purified tiles are
blended with linear ramps. Cost therefore grows with the area, not with its square.

There are two interfaces. The endpoint uses `pad`, `corners`, `cut` and `blend` on one image, whose tiles are purified
one by one. Attacks and evaluation use `Tiled`, a module for a batch, differentiable end to end.
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
    """`purifier` adapted to images of `image_size` (height, width); unchanged if that is its training size.

    tiles        purifies tiles of the training size (`Tiled`); takes any image size
    interpolate  purifies the whole image, with an autoencoder's positions scaled into the trained range; takes sizes
                 that the stride divides
    Defences without a training size (the baselines) take any size and are returned unchanged.
    Raises ConfigError if `interpolate` meets a size that the stride does not divide.
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
    max_tiles  most tiles in one forward pass, over all images of the batch
    An image smaller than a tile is padded by reflection, so that every input has the same size. Under autograd each
    chunk is recomputed in the backward pass (gradient checkpointing, Chen et al. 2016, arXiv 1604.06174): memory grows
    with `max_tiles`, not with the number of tiles, which is 81 per ImageNet image for CIFAR tiles.
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
        """Whether the purifier is; each tile then draws its own masks."""
        return bool(getattr(self.purifier, "randomised", False))

    def forward(self, images: Tensor) -> Tensor:
        """Cuts into tiles, purifies them, blends; cutting and blending are linear."""
        height, width = images.shape[-2:]
        images = _fill(images, self.image_size)
        rows, from_rows = _axis(images.shape[2], self.image_size[0])
        columns, from_columns = _axis(images.shape[3], self.image_size[1])
        mosaic = images[:, :, rows.to(images.device)][..., columns.to(images.device)]
        mosaic = self._purify(mosaic)
        blended = from_rows.to(mosaic).T @ mosaic @ from_columns.to(mosaic)
        return blended[..., :height, :width].clamp(0, 1)  # the weights add up to 1 only within rounding

    def _purify(self, mosaic: Tensor) -> Tensor:
        """[B, 3, rows * h, columns * w], tiles side by side -> the same, each tile purified."""
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
    """Tiles along one axis: the pixel at each tile position, int64 [K], and the weight of the position in each pixel.

    K is the number of tiles times `side`. The weights, float32 [K, length], add up to 1 over K: they are the ramps of
    `blend`, normalised. The normalisation factors into rows and columns because the tiles form a grid.
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
        while (missing := length - image.shape[axis]) > 0:  # one reflection adds at most size - 1 pixels
            size = image.shape[axis]
            step = min(missing, max(size - 1, 1))
            amounts = (0, 0, 0, step) if axis == 2 else (0, step, 0, 0)
            image = F.pad(image, amounts, mode="reflect" if size > 1 else "replicate")
    return image


def tile_side(image_size: tuple[int, int], stride: int, tile_size: int | None) -> int:
    """The side of a tile: `tile_size`, or 8 x the purifier's training size, rounded up to a multiple of `stride`."""
    wanted = tile_size if tile_size is not None else 8 * max(image_size)
    return max(math.ceil(wanted / stride) * stride, stride)


def corners(height: int, width: int, side: int) -> list[tuple[int, int]]:
    """Top left corners of the tiles that cover `height` x `width`; a single one if the image fits into a tile."""
    return [(top, left) for top in _starts(height, side) for left in _starts(width, side)]


def cut(image: Tensor, places: Sequence[tuple[int, int]], side: int) -> list[Tensor]:
    """The tiles of [1, C, H, W] at `places`, each [1, C, h, w] with h, w <= side."""
    return [image[..., top : top + side, left : left + side] for top, left in places]


def blend(tiles: Sequence[Tensor], places: Sequence[tuple[int, int]], shape: torch.Size) -> Tensor:
    """The image of `shape`, blended from its purified tiles; a single tile is returned unchanged, bit for bit."""
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
