"""Reads Parquet files of encoded images, with maep's columns or those of the Hugging Face hub.

  image or img  bytes, or the hub's struct<bytes, path>
  label         integer
  index         optional integer: the official index; if any file lacks it, the row number over all files
  lossless      optional bool: False where only a lossy copy of the official pixels was available

A row group is read at once and its images share a batch. Files of some hundred MB with row groups of 32 to 100 images
in shuffled order stream best.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maep import storage
from maep.data.reading import store
from maep.data.reading.shards import EncodedGroup, Shards
from maep.data.reading.store import StoredFile
from maep.errors import DataError

IMAGE_COLUMNS = ("image", "img")
COLUMN_TYPES = {"label": pa.int64(), "index": pa.int64(), "lossless": pa.bool_()}
PART = re.compile(r"-(\d+)-of-(\d+)$")


@dataclass(frozen=True, eq=False)
class ParquetShards(Shards):
    """Row groups of Parquet files."""

    files: tuple[StoredFile, ...]
    groups: NDArray[np.int64]
    """int64 [G, 4]: file, row group in it, the group's first row in the file, number of rows."""
    indexed: bool
    """Whether every file has the column index."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 [G]."""
        return self.groups[:, 3]

    @functools.cached_property
    def starts(self) -> NDArray[np.int64]:
        """int64 [F]: the number of rows in the files before each."""
        rows = np.bincount(self.groups[:, 0], weights=self.groups[:, 3], minlength=len(self.files)).astype(np.int64)
        starts: NDArray[np.int64] = np.cumsum(rows) - rows
        return starts

    def read(self, group: int) -> EncodedGroup:
        """One row group, usually in one request to storage."""
        file, inside, first, rows = map(int, self.groups[group])
        path = storage.join(self.root, self.files[file].name)

        def columns() -> dict[str, pa.ChunkedArray]:
            footer = _footer(path, self.files[file].size, self.timeout_s)
            with store.open_parquet(path, footer) as source:
                return _columns(source, path, inside)

        table = store.within(self.timeout_s, path, columns)
        if len(table["label"]) != rows:
            raise DataError(f"{path} has changed since it was opened: re-run the command to resume")
        return EncodedGroup(
            [image or b"" for image in table["image"].to_pylist()],
            _integers(table["label"]),
            _integers(table["index"]) if self.indexed else np.arange(rows, dtype=np.int64) + first + self.starts[file],
            table["lossless"].fill_null(False).to_numpy() if "lossless" in table else np.ones(rows, dtype=np.bool_),
        )

    def place(self, group: int, row: int) -> str:
        """FILE row R, counted from 0 within the file."""
        file, _, first, _ = map(int, self.groups[group])
        return f"{self.files[file].name} row {first + row}"


def find_parquet(
    name: str, classes: tuple[str, ...], folders: Sequence[str], part: str, timeout_s: float = 60.0
) -> ParquetShards | None:
    """The files PART*.parquet in the first of `folders` that has any; None if none has.

    Raises DataError as `open_parquet` does, and for files that differ from the manifest beside them.
    """
    for folder in folders:
        found = store.list_files(folder, timeout_s, f"{part}*.parquet")
        if found:
            packed = _read_manifest(folder, part, timeout_s)
            if packed is not None:
                _refuse_unlike(packed, folder, found)
            return open_parquet(name, classes, folder, found, timeout_s)
    return None


def open_parquet(
    name: str, classes: tuple[str, ...], root: str, found: Sequence[StoredFile], timeout_s: float
) -> ParquetShards:
    """Opens the Parquet files `found` below `root`; reads only their footers.

    Raises DataError for a missing or empty file, and for one that is not a Parquet file of images.
    """
    _refuse_missing_parts(root, [file.name for file in found])

    def opened(number: int) -> tuple[list[tuple[int, int, int, int]], bool]:
        file = found[number]
        path = storage.join(root, file.name)
        footer = store.within(timeout_s, path, lambda: _footer(path, file.size, timeout_s))
        names = footer.schema.to_arrow_schema().names
        _image_column(names, path)
        rows = [footer.row_group(k).num_rows for k in range(footer.num_row_groups)]
        if not sum(rows):
            raise DataError(f"{path} has no rows: remove the file, or fetch it again")
        return [(number, k, sum(rows[:k]), count) for k, count in enumerate(rows) if count], "index" in names

    with ThreadPoolExecutor(max_workers=16) as pool:  # mostly waits for storage
        each = list(pool.map(opened, range(len(found))))
    table = np.array([group for groups, _ in each for group in groups], dtype=np.int64)
    identity = repr([(file.name, file.size) for file in found]).encode() + np.ascontiguousarray(table, "<i8").tobytes()
    packed = _read_manifest(storage.join(root, *PurePosixPath(found[0].name).parts[:-1]), "train", timeout_s)
    if packed is not None and _listed(packed).keys() == {PurePosixPath(file.name).name for file in found}:
        identity = packed
    return ParquetShards(
        name=name,
        classes=classes,
        root=root,
        fingerprint=hashlib.sha256(identity).hexdigest(),
        timeout_s=timeout_s,
        files=tuple(found),
        groups=table,
        indexed=all(indexed for _, indexed in each),
    )


def manifest_name(part: str) -> str:
    """File name of the manifest that `maep data pack` writes beside the files of a part, train or val."""
    return f"{part}-manifest.json"


def _read_manifest(folder: str, part: str, timeout_s: float) -> bytes | None:
    """The manifest of a part in `folder`; None if there is none."""
    with suppress(DataError):
        return store.read_bytes(storage.join(folder, manifest_name(part)), timeout_s)
    return None


def _listed(manifest: bytes) -> dict[str, int | None]:
    """Bytes of each file that the manifest lists, None if it gives no size; empty if the manifest is damaged."""
    try:
        entries: dict[str, dict[str, Any]] = json.loads(manifest)["files"]
        return {name: entry.get("size") for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _refuse_unlike(manifest: bytes, folder: str, found: Sequence[StoredFile]) -> None:
    """Raises DataError if a listed file is missing from those `found` in `folder`, or of another size."""
    present = {file.name: file.size for file in found}
    for name, size in _listed(manifest).items():
        cure = "fetch it again, or pack again with `maep data pack`"
        if name not in present:
            raise DataError(f"{folder}/{name} is missing, though the manifest lists it: {cure}")
        if size is not None and present[name] != size:
            raise DataError(f"{folder}/{name} has {present[name]:,} bytes, the manifest says {size:,}: {cure}")


def _columns(source: pq.ParquetFile, path: str, group: int) -> dict[str, pa.ChunkedArray]:
    """Columns image, label and, where present, index and lossless, of one row group."""
    names = source.schema_arrow.names
    image = _image_column(names, path)
    typed = [name for name in COLUMN_TYPES if name in names]
    table = source.read_row_group(group, columns=[image, *typed])
    images = table[image]
    if pa.types.is_struct(images.type):  # the hub's Image feature: struct<bytes, path>
        kind = images.type.field("bytes").type
        images = pa.chunked_array([chunk.field("bytes") for chunk in images.chunks], type=kind)
    return {
        "image": images.cast(pa.large_binary()),
        **{name: table[name].cast(COLUMN_TYPES[name]) for name in typed},
    }


def _image_column(names: Sequence[str], path: str) -> str:
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    if image is None or "label" not in names:
        raise DataError(f"{path}: needs the columns image (or img) and label, has {', '.join(names) or 'none'}")
    return image


def _integers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """int64 [N], -1 for a null."""
    values: NDArray[np.int64] = column.fill_null(-1).to_numpy()
    return values


def _refuse_missing_parts(folder: str, names: Sequence[str]) -> None:
    """Raises DataError if names such as train-2-of-5.parquet show that a part is missing."""
    parts = [match for name in names if (match := PART.search(name.removesuffix(".parquet")))]
    if not parts:
        return
    present, total = {int(match[1]) for match in parts}, int(parts[0][2])
    # The hub and maep count parts from 0; a set counted from 1 is complete too.
    if len(present) < total:
        raise DataError(f"{folder}: {len(present)} of the {total} parts of {names[0]} are present: fetch the rest")


@functools.lru_cache(maxsize=8192)
def _footer(path: str, size: int, timeout_s: float) -> pq.FileMetaData:
    """Read once per process; a changed size counts as another file."""
    with store.open_parquet(path) as source:
        return source.metadata
