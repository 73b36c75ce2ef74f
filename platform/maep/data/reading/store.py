"""Lists and reads files of a data set, local or s3://, by Arrow. Reads from S3 have a deadline."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from maep import storage
from maep.errors import DataError
from maep.storage import s3

T = TypeVar("T")


@dataclass(frozen=True)
class StoredFile:
    """A file, named relative to a folder, and its size in bytes."""

    name: str
    size: int


def list_files(folder: str, timeout_s: float, pattern: str = "*", recursive: bool = False) -> list[StoredFile]:
    """The files whose last name matches, sorted; none if there is no such folder. Raises UnavailableError."""
    found = [StoredFile(name, size) for name, size in _entries(folder, timeout_s, recursive) if size is not None]
    return [file for file in found if fnmatch.fnmatchcase(PurePosixPath(file.name).name, pattern)]


def list_folders(folder: str, timeout_s: float) -> list[str]:
    """The names of the folders in `folder`, sorted; none if there is no such folder. Raises UnavailableError."""
    return [name for name, size in _entries(folder, timeout_s, recursive=False) if size is None]


def read_bytes(path: str, timeout_s: float) -> bytes:
    """A whole file. Raises DataError and UnavailableError as `within` does."""

    def read() -> bytes:
        system, inside = _system(path)
        with system.open_input_file(inside) as file:
            data: bytes = file.readall()
            return data

    return within(timeout_s, path, read)


def open_parquet(path: str, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """A Parquet file; `footer` saves reading it again. Call this and read inside `within`."""
    system, inside = _system(path)
    return pq.ParquetFile(inside, filesystem=system, metadata=footer, pre_buffer=True)


def within(timeout_s: float, path: str, action: Callable[[], T]) -> T:
    """Runs `action`, which reads `path`. A read from S3 must finish within `timeout_s`, retries included.

    Raises DataError for a file that is missing or damaged, and UnavailableError where S3 fails.
    """
    try:
        return s3.within(timeout_s, path, action) if storage.is_remote(path) else action()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def _entries(folder: str, timeout_s: float, recursive: bool) -> list[tuple[str, int | None]]:
    """(name relative to `folder`, bytes) of each file and (name, None) of each folder, sorted."""
    from pyarrow.fs import FileSelector, FileType

    def read() -> list[tuple[str, int | None]]:
        system, base = _system(folder)
        found = system.get_file_info(FileSelector(base, allow_not_found=True, recursive=recursive))
        start = len(base.rstrip("/")) + 1
        return sorted((each.path[start:], each.size if each.type == FileType.File else None) for each in found)

    return within(timeout_s, folder, read)


def _system(uri: str) -> tuple[Any, str]:
    """Arrow's file system for an address, and the path in it."""
    from pyarrow import fs

    return s3.arrow(uri) if storage.is_remote(uri) else (fs.LocalFileSystem(), uri)
