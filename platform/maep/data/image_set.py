"""Labelled images of one split, in memory or decoded on access."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from maep.errors import DataError, few

if TYPE_CHECKING:
    from maep.data.reading.encoded import EncodedImages

Split = Literal["train", "dev", "test"]
Positions = Sequence[int] | NDArray[np.integer] | NDArray[np.bool_] | torch.Tensor


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """The images of one split of a data set.

    images    uint8 [N, H, W, 3] RGB array, or EncodedImages, which returns such arrays when indexed
    labels    int64 [N], positions in `classes`
    indices   int64 [N], official index of each image in its data set, used by image lists and augmentation
    lossless  bool [N], False where only a lossy copy of the official pixels was available
    corrupt   one line for each image that was left out: file, row, reason
    """

    name: str
    split: Split
    images: NDArray[np.uint8] | EncodedImages
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    classes: tuple[str, ...]
    lossless: NDArray[np.bool_]
    corrupt: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        assert len(self.images) == len(self.labels) == len(self.indices) == len(self.lossless)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        height, width = self.image_shape
        return (
            f"ImageSet({self.name} {self.split}, {len(self)} images of {height}x{width}, {len(self.corrupt)} corrupt)"
        )

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W) of every image."""
        return int(self.images.shape[1]), int(self.images.shape[2])

    def select(self, positions: Positions) -> ImageSet:
        """The images at `positions` (integers or a mask over this set, not official indices), in that order."""
        where = _positions(positions, len(self))
        images = self.images[where] if isinstance(self.images, np.ndarray) else self.images.take(where)
        return replace(
            self,
            images=images,
            labels=self.labels[where],
            indices=self.indices[where],
            lossless=self.lossless[where],
        )

    def pixels(self, positions: Positions) -> NDArray[np.uint8]:
        """uint8 [B, H, W, 3]: the decoded images at `positions`."""
        return self.images[_positions(positions, len(self))]

    def batch(self, positions: Positions) -> tuple[torch.Tensor, torch.Tensor]:
        """(float32 [B, 3, H, W] in [0, 1], int64 [B]): images and labels at `positions`, on the CPU."""
        where = _positions(positions, len(self))
        return to_float(torch.from_numpy(self.images[where])), torch.from_numpy(self.labels[where])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex sha256 over images, labels and indices: equal sets have equal fingerprints."""
        digest = hashlib.sha256(repr((self.name, tuple(self.images.shape))).encode())
        if isinstance(self.images, np.ndarray):
            digest.update(np.ascontiguousarray(self.images).data)
        else:
            digest.update(self.images.digest().encode())
        for numbers in (self.labels, self.indices):
            digest.update(np.ascontiguousarray(numbers, dtype="<i8").data)
        return digest.hexdigest()


def to_float(images: torch.Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [0, 1] in a memory format, on the same device."""
    # Permutes bytes rather than floats, in one pass; the bytes are channels_last already.
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=memory_format).div_(255)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """float32 [B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3], rounded to the nearest grey level."""
    return images.detach().clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def refuse_corrupt(corrupt: Sequence[str], max_corrupt: int, where: str) -> None:
    """Raises DataError, naming the first few, if more than `max_corrupt` images had to be left out."""
    if len(corrupt) > max_corrupt:
        raise DataError(
            f"{where}: {corrupt_images(corrupt)}: repair the files, or leave them out with --data.max_corrupt "
            f"{len(corrupt)}"
        )


def corrupt_images(lines: Sequence[str]) -> str:
    """The part of an error line that counts corrupt images (a line each) and names the first ones."""
    return f"{len(lines):,} corrupt {'image' if len(lines) == 1 else 'images'} ({few(lines, '; ')})"


def _positions(positions: Positions, length: int) -> NDArray[np.int64]:
    array = positions.cpu().numpy() if isinstance(positions, torch.Tensor) else np.asarray(positions)
    if array.dtype == np.bool_:
        assert len(array) == length, "a mask covers the whole set"
        return np.flatnonzero(array)
    return array.reshape(-1).astype(np.int64)
