"""Encoded images that stay where they are and are read in groups: Parquet files or a folder of classes, local or s3://.

Nothing of pixels is here: a group is some rows that lie together, read in one go. A row group of Parquet is one (so
files of some hundred MB with row groups of 32 to 100 images suit best, in shuffled order, for the images of a group
share a batch); of a folder each file is one.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maep import storage
from maep.data.pack import manifest
from maep.data.reading import parquet
from maep.errors import DataError
from maep.storage import s3

T = TypeVar("T")


@dataclass(frozen=True)
class Encoded:
    """The images of one group, as they lie in storage."""

    images: list[bytes]
    """Empty where the file holds a null or cannot be read."""
    labels: NDArray[np.int64]
    """int64 [n]; -1 for a null."""
    indices: NDArray[np.int64]
    """int64 [n]: the official index of each."""


class Shards(Protocol):
    """A collection of encoded images. It is small, and travels to other processes."""

    @property
    def name(self) -> str:
        """Of the data set."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in label order."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 [G]: how many images each group has, at least 1."""

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of its manifest, else of names, sizes and numbers of rows: cheap, and not of the content."""

    def read(self, group: int) -> Encoded:
        """One group. Raises DataError where it is damaged, UnavailableError where storage does not give it."""

    def place(self, group: int, row: int) -> str:
        """Where row `row` of the group lies, for messages."""


@dataclass(frozen=True)
class File:
    """A file below a root, and its bytes."""

    name: str
    size: int


@dataclass(frozen=True, eq=False)
class Collection:
    """What shards of any kind say of themselves: the data set's name, its classes in label order, where it lies."""

    name: str
    classes: tuple[str, ...]
    root: str
    fingerprint: str
    timeout_s: float
    """For one read of S3, retries included."""


@dataclass(frozen=True, eq=False)
class ParquetShards(Collection):
    """Row groups of Parquet files; without a column `index`, the index is the row over all files."""

    files: tuple[File, ...]
    groups: NDArray[np.int64]
    """int64 [G, 4]: file, row group in it, its first row in the file, its rows."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 [G]."""
        return self.groups[:, 3]

    @functools.cached_property
    def starts(self) -> NDArray[np.int64]:
        """int64 [F]: how many rows lie in the files before each."""
        rows = np.bincount(self.groups[:, 0], weights=self.groups[:, 3], minlength=len(self.files)).astype(np.int64)
        starts: NDArray[np.int64] = np.cumsum(rows) - rows
        return starts

    def read(self, group: int) -> Encoded:
        """One row group: one request of storage, as a rule."""
        file, inside, first, rows = map(int, self.groups[group])
        path = storage.join(self.root, self.files[file].name)

        def action() -> dict[str, pa.ChunkedArray]:
            metadata = _footer(path, self.files[file].size, self.timeout_s)
            with _parquet(path, metadata) as source:
                return parquet.columns(source, path, inside)

        table = _within(self.timeout_s, path, action)
        if len(table["label"]) != rows:
            raise DataError(f"{path} was changed since it was opened: start the run again")
        indices = np.arange(rows, dtype=np.int64) + first + self.starts[file]
        return Encoded(
            [image or b"" for image in table["image"].to_pylist()],
            parquet.integers([table["label"]]),
            parquet.integers([table["index"]]) if "index" in table else indices,
        )

    def place(self, group: int, row: int) -> str:
        """FILE row R, counted from 0 inside the file."""
        file, _, first, _ = map(int, self.groups[group])
        return f"{self.files[file].name} row {first + row}"


@dataclass(frozen=True, eq=False)
class FolderShards(Collection):
    """Files of one image each, a group each: they are read one by one anyway, and so shuffled completely."""

    files: tuple[str, ...]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 [G] of ones."""
        return np.ones(len(self.files), dtype=np.int64)

    def read(self, group: int) -> Encoded:
        """One file; of a local one that cannot be read, no bytes: a corrupt image like others."""
        path = storage.join(self.root, self.files[group])
        data = b""
        if storage.is_remote(path):
            data = _within(self.timeout_s, path, functools.partial(_bytes, path))
        else:
            with suppress(OSError):
                data = Path(path).read_bytes()
        return Encoded([data], self.labels[group : group + 1], self.indices[group : group + 1])

    def place(self, group: int, row: int) -> str:
        """The path below the folder."""
        return self.files[group]


def listing(folder: str, timeout_s: float, pattern: str = "*", recursive: bool = False) -> list[File]:
    """The files of a folder whose name fits, sorted, named from the folder; none where there is no folder.

    Raises UnavailableError where S3 does not answer or refuses.
    """
    from pyarrow.fs import FileSelector, FileType

    def action() -> list[File]:
        system, base = _system(folder)
        found = system.get_file_info(FileSelector(base, allow_not_found=True, recursive=recursive))
        names = [
            File(each.path[len(base.rstrip("/")) + 1 :], each.size) for each in found if each.type == FileType.File
        ]
        return sorted((f for f in names if fnmatch.fnmatch(PurePosixPath(f.name).name, pattern)), key=lambda f: f.name)

    return _within(timeout_s, folder, action)


def open_parquet(
    name: str, classes: tuple[str, ...], root: str, files: Sequence[File], timeout_s: float
) -> ParquetShards:
    """Parquet `files` below `root` as a collection: their footers are read, nothing else.

    Raises DataError for a file without rows or that is no Parquet file of images.
    """
    parquet.refuse_missing_parts(root, [file.name for file in files])

    def groups(number: int) -> list[tuple[int, int, int, int]]:
        file = files[number]
        path = storage.join(root, file.name)
        footer = _within(timeout_s, path, lambda: _footer(path, file.size, timeout_s))
        rows = [footer.row_group(k).num_rows for k in range(footer.num_row_groups)]
        if not sum(rows):
            raise DataError(f"{path} has no rows: remove the file, or pack it again")
        return [(number, k, sum(rows[:k]), count) for k, count in enumerate(rows) if count]

    with ThreadPoolExecutor(max_workers=16) as pool:  # waiting for storage is what takes the time
        table = np.array([group for each in pool.map(groups, range(len(files))) for group in each], dtype=np.int64)
    identity = repr([(f.name, f.size) for f in files]).encode() + np.ascontiguousarray(table, "<i8").tobytes()
    found = read_manifest(storage.join(root, *PurePosixPath(files[0].name).parts[:-1]), timeout_s)
    if found is not None and manifest.shards(found).keys() == {PurePosixPath(file.name).name for file in files}:
        identity = found
    digest = hashlib.sha256(identity)
    return ParquetShards(name, classes, root, digest.hexdigest(), timeout_s, tuple(files), table)


def read_manifest(folder: str, timeout_s: float, part: str = "train") -> bytes | None:
    """What `maep data pack` wrote beside the shards of a part; None: they came otherwise."""
    path = storage.join(folder, manifest.name_of(part))
    with suppress(DataError):
        return _within(timeout_s, path, functools.partial(_bytes, path))
    return None


def _within(seconds: float, path: str, action: Callable[[], T]) -> T:
    """The result of `action`. From S3 it must come within `seconds`, retries included; a local disk has no deadline.

    Raises DataError for a file that is missing or damaged, and UnavailableError where S3 fails.
    """
    with parquet.readable(path):
        return s3.within(seconds, path, action) if storage.is_remote(path) else action()


def _bytes(path: str) -> bytes:
    system, inside = _system(path)
    with system.open_input_file(inside) as file:
        data: bytes = file.readall()
        return data


def _parquet(path: str, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    system, inside = _system(path)
    return pq.ParquetFile(inside, filesystem=system, metadata=footer, pre_buffer=True)


@functools.lru_cache(maxsize=8192)
def _footer(path: str, size: int, timeout_s: float) -> pq.FileMetaData:
    """Read once a process: a file of another size is another file."""
    with _parquet(path) as source:
        return source.metadata


def _system(uri: str) -> tuple[Any, str]:
    """Arrow's file system for an address, and the path in it."""
    from pyarrow import fs

    return s3.arrow(uri) if storage.is_remote(uri) else (fs.LocalFileSystem(), uri)
