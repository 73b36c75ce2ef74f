"""Image sets that keep images encoded, in memory or as files, and decode and crop them on access."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maep.data.image_set import ImageSet, Split, refuse_corrupt
from maep.data.reading.class_folder import ClassFolder
from maep.data.reading.cropping import decode_centre
from maep.data.reading.decoding import Undecodable, check_label, verify
from maep.data.reading.shards import Shards
from maep.errors import DataError


class RowsInMemory:
    """All groups of a collection, read into memory and kept encoded."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        groups = [shards.read(group) for group in range(len(shards.sizes))]
        self._images = [image for group in groups for image in group.images]
        self.labels = np.concatenate([group.labels for group in groups])
        self.indices = np.concatenate([group.indices for group in groups])
        self.lossless = np.concatenate([group.lossless for group in groups])
        self._ends = np.cumsum(shards.sizes)

    def image(self, row: int) -> bytes:
        """The bytes of one image; empty for a null."""
        return self._images[row]

    def place(self, row: int) -> str:
        """The name of the image in the collection."""
        group = int(np.searchsorted(self._ends, row, side="right"))
        return self._shards.place(group, row - int(self._ends[group] - self._shards.sizes[group]))

    def identity(self, row: int) -> bytes:
        """The sha256 of the bytes."""
        return hashlib.sha256(self._images[row]).digest()


Rows = ClassFolder | RowsInMemory
"""The images of a collection by row: labels, indices and lossless as arrays, encoded bytes on demand."""


@dataclass(frozen=True)
class EncodedImages:
    """The images at `positions` (int64 [N]) of `rows`, decoded on access to central squares (`decode_centre`)."""

    rows: Rows
    positions: NDArray[np.int64]
    image_size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, image_size, image_size, 3)."""
        return len(self.positions), self.image_size, self.image_size, 3

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 [B, image_size, image_size, 3]. Raises DataError for an image that does not decode."""
        rows = self.positions[positions].tolist()
        if not rows:
            return np.empty((0, *self.shape[1:]), dtype=np.uint8)
        if len(rows) < 4:
            return np.stack([self._decode(row) for row in rows])
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # Pillow releases the GIL
            return np.stack(list(pool.map(self._decode, rows)))

    def take(self, positions: NDArray[np.int64]) -> EncodedImages:
        """The images at `positions`, still encoded."""
        return EncodedImages(self.rows, self.positions[positions], self.image_size)

    def digest(self) -> str:
        """Hex sha256 over the encoded bytes (in memory) or names and sizes (of files), and the crop."""
        digest = hashlib.sha256(f"{self.image_size}\n".encode())
        for row in self.positions.tolist():
            digest.update(self.rows.identity(row))
        return digest.hexdigest()

    def _decode(self, row: int) -> NDArray[np.uint8]:
        try:
            return decode_centre(self.rows.image(row), self.image_size)
        except Undecodable as reason:
            raise DataError(f"{self.rows.place(row)}: {reason}: repair or remove this image") from None


def open_rows(shards: Shards) -> Rows:
    """The images of a collection by row: files stay files, Parquet is read into memory, encoded."""
    return shards if isinstance(shards, ClassFolder) else RowsInMemory(shards)


def open_image_set(
    shards: Shards, split: Split, is_in_split: NDArray[np.bool_], rows: Rows, image_size: int, max_corrupt: int
) -> ImageSet:
    """The images of `rows` that `is_in_split` (bool [N]) marks, decoded on access.

    It checks the header and the end of every image at once, and decodes those that look damaged, so that a truncated
    file is reported now and not after hours of training. Raises DataError for a repeated index, for more than
    `max_corrupt` images that do not decode or have a label out of range, and if no image is left.
    """
    if len(np.unique(rows.indices)) < len(rows.indices):
        raise DataError(f"{shards.root}: an index occurs twice: number the rows of all files without repeats")
    mine = np.flatnonzero(is_in_split)
    with ThreadPoolExecutor(max_workers=16) as pool:  # most of the time is reading
        reasons = list(pool.map(functools.partial(_damage, rows, len(shards.classes)), mine.tolist()))
    corrupt = tuple(f"{rows.place(int(row))}: {reason}" for row, reason in zip(mine, reasons, strict=True) if reason)
    refuse_corrupt(corrupt, max_corrupt, shards.root)
    kept = mine[np.array([not reason for reason in reasons], dtype=np.bool_)]
    if not len(kept):
        raise DataError(
            f"{shards.root}: no image of the split {split}: set $MAEP_DATA or --data.root to a full data set"
        )
    return ImageSet(
        name=shards.name,
        split=split,
        images=EncodedImages(rows, kept, image_size),
        labels=rows.labels[kept],
        indices=rows.indices[kept],
        classes=shards.classes,
        lossless=rows.lossless[kept],
        corrupt=corrupt,
    )


def first_images(
    shards: Shards, count: int, side: int, keep: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None
) -> NDArray[np.uint8]:
    """The first images whose indices `keep` marks, at most `count`, for an example image: uint8 [n, side, side, 3].

    Reads no more groups than needed, and skips corrupt images. Raises DataError if there is none, and as `Shards.read`.
    """
    found: list[NDArray[np.uint8]] = []
    for group in range(len(shards.sizes)):
        encoded = shards.read(group)
        rows = range(len(encoded.images)) if keep is None else np.flatnonzero(keep(encoded.indices)).tolist()
        for row in rows:
            with suppress(Undecodable):
                found.append(decode_centre(encoded.images[row], side))
            if len(found) == count:
                return np.stack(found)
    if not found:
        raise DataError(f"{shards.root}: no image can be decoded: fetch the files again")
    return np.stack(found)


def _damage(rows: Rows, num_classes: int, row: int) -> str:
    """Why an image cannot be used; '' if it can."""
    try:
        check_label(int(rows.labels[row]), num_classes)
        verify(rows.image(row))
    except Undecodable as reason:
        return str(reason)
    return ""
