"""Encoded images and labels in Parquet files: our own columns and those of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maep.errors import DataError

IMAGE_COLUMNS = ("image", "img")
COLUMN_TYPES = {"label": pa.int64(), "index": pa.int64(), "lossless": pa.bool_()}
PART = re.compile(r"-(\d+)-of-(\d+)$")


@dataclass(frozen=True)
class Rows:
    """The rows of some Parquet files, images still encoded.

    images    binary column, N values; None where the file holds a null
    labels    int64 [N]; -1 where the file holds a null
    indices   int64 [N], or None where the files have no column `index`
    lossless  bool [N]
    files, starts   the row of files[k] that comes first is starts[k]
    """

    images: pa.ChunkedArray
    labels: NDArray[np.int64]
    indices: NDArray[np.int64] | None
    lossless: NDArray[np.bool_]
    files: tuple[Path, ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, row: int) -> bytes:
        """The encoded bytes of one row; empty where the file holds a null."""
        return self.images[row].as_py() or b""

    def place(self, row: int) -> str:
        """'FILE row R', R counted from 0 inside its file."""
        k = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.files[k].name} row {row - self.starts[k]}"


def find(folders: Sequence[Path], stem: str) -> list[Path]:
    """The files `stem`*.parquet of the first folder that has any, in order.

    Raises DataError when names such as train-2-of-5.parquet say that a part is missing.
    """
    for folder in folders:
        files = sorted(folder.glob(f"{stem}*.parquet"))
        if files:
            refuse_missing_parts(str(folder), [file.name for file in files])
            return files
    return []


def read(files: Sequence[Path]) -> Rows:
    """The rows of `files`, one after the other. Raises DataError for a file that is no such Parquet."""
    tables = [_table(file) for file in files]
    lengths = [len(table["label"]) for table in tables]
    starts = tuple(int(start) for start in np.cumsum([0, *lengths[:-1]]))
    indexed = all("index" in table for table in tables)
    return Rows(
        images=pa.chunked_array([chunk for table in tables for chunk in table["image"].chunks], type=pa.large_binary()),
        labels=integers([table["label"] for table in tables]),
        indices=integers([table["index"] for table in tables]) if indexed else None,
        lossless=np.concatenate(
            [
                table["lossless"].fill_null(False).to_numpy()
                if "lossless" in table
                else np.ones(length, dtype=np.bool_)
                for table, length in zip(tables, lengths, strict=True)
            ]
        ),
        files=tuple(files),
        starts=starts,
    )


def columns(source: pq.ParquetFile, file: str | Path, group: int | None = None) -> dict[str, pa.ChunkedArray]:
    """Columns image, label and, where there are, index and lossless: of one row group, or (None) of all.

    Raises DataError, which names `file`, where image or label are missing.
    """
    names = source.schema_arrow.names
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    if image is None or "label" not in names:
        raise DataError(f"{file}: needs the columns image (or img) and label, has {', '.join(names) or 'none'}")
    wanted = [image, *(name for name in COLUMN_TYPES if name in names)]
    table = source.read(columns=wanted) if group is None else source.read_row_group(group, columns=wanted)
    images = table[image]
    if pa.types.is_struct(images.type):  # the hub's Image feature: struct<bytes, path>
        images = pa.chunked_array(
            [chunk.field("bytes") for chunk in images.chunks], type=images.type.field("bytes").type
        )
    typed = {name: table[name].cast(kind) for name, kind in COLUMN_TYPES.items() if name in names}
    return {**typed, "image": images.cast(pa.large_binary())}


@contextmanager
def readable(file: str | Path) -> Iterator[None]:
    """Turns what pyarrow raises in the block into a DataError that names `file`."""
    try:
        yield
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"{file}: not a readable Parquet file of images: {' '.join(str(error).split())}") from None


def integers(columns: Sequence[pa.ChunkedArray]) -> NDArray[np.int64]:
    """int64 [N]: columns one after the other, -1 for a null."""
    values = [column.fill_null(-1).to_numpy() for column in columns]
    return np.concatenate(values).astype(np.int64)


def refuse_missing_parts(folder: str, names: Sequence[str]) -> None:
    """Raises DataError when names such as train-2-of-5.parquet say that a part is missing."""
    parts = [match for name in names if (match := PART.search(name.removesuffix(".parquet")))]
    if not parts:
        return
    present, total = {int(match[1]) for match in parts}, int(parts[0][2])
    # The hub counts parts from 0, and so do we; a set counted from 1 is complete too.
    if len(present) < total:
        raise DataError(f"{folder}: {len(present)} of the {total} parts of {names[0]} are there: fetch the rest")


def _table(file: Path) -> dict[str, pa.ChunkedArray]:
    with readable(file), pq.ParquetFile(file) as source:
        return columns(source, file)
