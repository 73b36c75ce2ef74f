"""Small data sets in the layouts that the loaders read, from seeded noise."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

Write = Callable[..., Path]


@pytest.fixture
def noise() -> Callable[..., NDArray[np.uint8]]:
    def make(num: int, height: int = 32, width: int = 32, seed: int = 0) -> NDArray[np.uint8]:
        return np.random.default_rng(seed).integers(0, 256, (num, height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture
def encode() -> Callable[..., bytes]:
    def make(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format=kind)
        return buffer.getvalue()

    return make


@pytest.fixture
def write_parquet() -> Write:
    """Writes columns to a file; `image` and `img` may be lists of bytes or of {bytes, path}."""

    def write(file: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), file, row_group_size=16)
        return file

    return write


@pytest.fixture
def cifar_root(tmp_path: Path, noise: Any, encode: Any, write_parquet: Write) -> Callable[..., Path]:
    """A root with a CIFAR-10 of our layout: 20 training images and official test images 0..39."""

    def make(**changes: Any) -> Path:
        train, test = noise(20, seed=1), noise(40, seed=2)
        for name, images in (("train-0-of-1", train), ("test", test)):
            columns: dict[str, Any] = {
                "image": [encode(each) for each in images],
                "label": [k % 10 for k in range(len(images))],
                "index": list(range(len(images))),
                "lossless": [True] * len(images),
            }
            if name == "test":
                for key, edits in changes.items():
                    for row, value in edits.items():
                        columns[key][row] = value
            write_parquet(tmp_path / "cifar10" / f"{name}.parquet", columns)
        return tmp_path

    return make
