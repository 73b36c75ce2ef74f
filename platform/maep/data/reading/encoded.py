"""Images that stay encoded, as bytes of a table or as files, and are decoded, resized and cropped on access."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from maep.data.reading.cropping import decode_centre
from maep.data.reading.decoding import Undecodable, decode, ends_whole, open_image
from maep.data.reading.parquet import Rows
from maep.errors import DataError

HEAD, TAIL = 65_536, 64


class Source(Protocol):
    """Where the encoded bytes of row r come from."""

    def read(self, row: int) -> bytes:
        """All bytes of one image; Undecodable when they cannot be read."""

    def ends(self, row: int) -> tuple[bytes, bytes]:
        """Its first and its last bytes, cheaper than all of them."""

    def place(self, row: int) -> str:
        """Where it lies, for messages."""

    def identity(self, row: int) -> bytes:
        """What tells this image from every other, for a fingerprint."""


@dataclass(frozen=True)
class TableSource:
    """Rows of Parquet files, held in memory."""

    rows: Rows

    def read(self, row: int) -> bytes:
        """All bytes of one image."""
        return self.rows.image(row)

    def ends(self, row: int) -> tuple[bytes, bytes]:
        """All of it, for it is in memory, and its end."""
        data = self.rows.image(row)
        return data, data[-TAIL:]

    def place(self, row: int) -> str:
        """FILE row R."""
        return self.rows.place(row)

    def identity(self, row: int) -> bytes:
        """The sha256 of the bytes."""
        return hashlib.sha256(self.rows.image(row)).digest()


@dataclass(frozen=True)
class FileSource:
    """Files under a folder; `paths` are held, nothing else."""

    paths: tuple[Path, ...]
    folder: Path

    def read(self, row: int) -> bytes:
        """All bytes of one image."""
        try:
            return self.paths[row].read_bytes()
        except OSError as error:
            raise Undecodable(f"cannot be read: {error.strerror}") from None

    def ends(self, row: int) -> tuple[bytes, bytes]:
        """The first 64 KiB and the last 64 bytes."""
        try:
            with self.paths[row].open("rb") as file:
                head = file.read(HEAD)
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
                return head, file.read()
        except OSError as error:
            raise Undecodable(f"cannot be read: {error.strerror}") from None

    def place(self, row: int) -> str:
        """The path under the folder."""
        return self.paths[row].relative_to(self.folder).as_posix()

    def identity(self, row: int) -> bytes:
        """Name and size, not content: hashing 140 GB before training is nobody's wish."""
        return f"{self.place(row)} {self.paths[row].stat().st_size}\n".encode()


def verify(source: Source, row: int) -> None:
    """Raises Undecodable unless the header is that of an image and its end is there; in doubt it is decoded."""
    head, tail = source.ends(row)
    if ends_whole(tail):
        try:
            open_image(head)
        except Undecodable:
            if len(head) < HEAD:  # else the header may just be longer than what was read of it
                raise
        else:
            return
    decode(source.read(row))


@dataclass(frozen=True)
class EncodedImages:
    """LazyImages over some `rows` (int64 [N]) of a source: central squares of `image_size` pixels, by decode_centre."""

    source: Source
    rows: NDArray[np.int64]
    image_size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, image_size, image_size, 3)."""
        return len(self.rows), self.image_size, self.image_size, 3

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 [B, image_size, image_size, 3]. Raises DataError for an image that does not decode after all."""
        rows = [int(row) for row in self.rows[positions]]
        if len(rows) < 4:
            return self._stack([self._decode(row) for row in rows])
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # Pillow lets go of the GIL
            return self._stack(list(pool.map(self._decode, rows)))

    def take(self, positions: NDArray[np.int64]) -> EncodedImages:
        """The images at `positions`, still encoded."""
        return EncodedImages(self.source, self.rows[positions], self.image_size)

    def digest(self) -> str:
        """Hex sha256 over the encoded bytes (of a table) or names and sizes (of files), and the crop."""
        digest = hashlib.sha256(f"{self.image_size}\n".encode())
        for row in self.rows:
            digest.update(self.source.identity(int(row)))
        return digest.hexdigest()

    def _decode(self, row: int) -> NDArray[np.uint8]:
        try:
            return decode_centre(self.source.read(row), self.image_size)
        except Undecodable as reason:
            raise DataError(f"{self.source.place(row)}: {reason}: repair or remove this image") from None

    def _stack(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), dtype=np.uint8)
