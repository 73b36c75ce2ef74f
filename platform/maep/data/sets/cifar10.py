"""CIFAR-10 (A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009) in one of three layouts.

Under <root>/cifar10:
  our Parquet          train*.parquet and test*.parquet with the columns image (PNG), label, index, lossless
  the hub's Parquet    (Hugging Face, uoft-cs/cifar10) the same names, here or in plain_text/ or data/; img and label
  torchvision's folder cifar-10-batches-py

train is the official training set. The official test set is split once by index: `dev` is the committed list
lists/cifar10-dev.txt (2,000 images, for every choice), `test` is every other image (for reported figures only).
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maep import registry
from maep.data.config import DataConfig
from maep.data.datasets import data_root
from maep.data.image_set import ImageSet, Split, refuse_corrupt
from maep.data.lists import read_indices
from maep.data.reading.decoding import Undecodable, check_label, decode_exact
from maep.data.reading.encoded import RowsInMemory
from maep.data.reading.parquet import ParquetShards, find_parquet
from maep.errors import DataError

SIZE = (32, 32)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUM_OFFICIAL = {"train": 50_000, "test": 10_000}
BATCHES = "cifar-10-batches-py"


@registry.dataset("cifar10", num_classes=10, side=32)
def load(config: DataConfig, split: Split) -> ImageSet:
    """The split, decoded: uint8 [N, 32, 32, 3]. Raises DataError if it is missing, empty or damaged."""
    folder = data_root(config) / "cifar10"
    official = "train" if split == "train" else "test"
    shards = find_parquet("cifar10", CLASSES, [str(folder / name) for name in ("", "plain_text", "data")], official)
    if shards is not None:
        found = _from_parquet(shards, split, official)
    elif (folder / BATCHES).is_dir():
        found = _from_batches(folder, split, official)
    else:
        raise DataError(
            f"no CIFAR-10 ({official}) in {folder}: set $MAEP_DATA or --data.root to the folder that holds cifar10/, "
            "or fetch it with `maep data get cifar10`"
        )
    refuse_corrupt(found.corrupt, config.max_corrupt, str(folder))
    if not len(found):
        raise DataError(
            f"{folder}: no image of the split {split}: set $MAEP_DATA or --data.root to a complete CIFAR-10, "
            "or fetch it with `maep data get cifar10`"
        )
    return found


def of_split(indices: NDArray[np.int64], split: Split) -> NDArray[np.bool_]:
    """Bool [N]: which official indices of the split's files belong to `split`."""
    if split == "train":
        return np.ones(len(indices), dtype=np.bool_)
    is_dev: NDArray[np.bool_] = np.isin(indices, dev_indices())
    return is_dev if split == "dev" else ~is_dev


def dev_indices() -> NDArray[np.int64]:
    """int64 [2000]: the official test indices of `dev`, sorted."""
    return read_indices("cifar10-dev")


def dev_labels() -> NDArray[np.int64]:
    """int64 [2000]: the official labels of `dev_indices`."""
    text = resources.files("maep.data").joinpath("lists", "cifar10-dev.labels").read_text(encoding="ascii")
    return np.array([int(digit) for digit in "".join(text.split())], dtype=np.int64)


def _from_parquet(shards: ParquetShards, split: Split, official: str) -> ImageSet:
    rows = RowsInMemory(shards)
    if official == "test" and not shards.indexed:
        _check_official_order(rows.labels, shards.root)
    images = np.empty((len(rows.labels), *SIZE, 3), dtype=np.uint8)
    corrupt: list[str] = []
    kept: list[int] = []
    seen: set[int] = set()
    for row in np.flatnonzero(of_split(rows.indices, split)):
        index = int(rows.indices[row])
        try:
            if not 0 <= index < NUM_OFFICIAL[official]:
                raise Undecodable(f"index {index} is not in 0..{NUM_OFFICIAL[official] - 1}")
            if index in seen:
                raise Undecodable(f"index {index} occurs twice")
            check_label(int(rows.labels[row]), len(CLASSES))
            images[len(kept)] = decode_exact(rows.image(int(row)), SIZE)
        except Undecodable as reason:
            corrupt.append(f"{rows.place(int(row))}: {reason}")
            continue
        seen.add(index)
        kept.append(int(row))
    where = np.array(kept, dtype=np.int64)
    return ImageSet(
        name="cifar10",
        split=split,
        images=images[: len(kept)].copy() if len(kept) < len(images) else images,
        labels=rows.labels[where],
        indices=rows.indices[where],
        classes=CLASSES,
        lossless=rows.lossless[where],
        corrupt=tuple(corrupt),
    )


def _check_official_order(labels: NDArray[np.int64], folder: str) -> None:
    """Raises DataError unless row numbers are official test indices, where the files have no column index.

    They are in the hub's test set. In any other order, `dev` and `test` would mix images used for choices with images
    used for reporting. (The hub's training set orders the five batches differently, which affects only the draws of
    the augmentation.)
    """
    here = dev_indices()[dev_indices() < len(labels)]
    if not np.array_equal(labels[here], dev_labels()[: len(here)]):
        raise DataError(
            f"{folder}: the test set has no column index, and its rows are not in the official order: "
            "add the column index (0..9999), or fetch the set again with `maep data get cifar10`"
        )


def _from_batches(folder: Path, split: Split, official: str) -> ImageSet:
    # The batches are pickles, which can run code when read. torchvision checks the md5 sum of each before unpickling.
    from torchvision.datasets import CIFAR10

    try:
        source = CIFAR10(str(folder), train=official == "train", download=False)
    except RuntimeError:
        raise DataError(
            f"{folder / BATCHES}: files are missing or differ from the official ones (md5): "
            "fetch them again with `maep data get cifar10`"
        ) from None
    indices = np.arange(len(source.data), dtype=np.int64)
    where = np.flatnonzero(of_split(indices, split))
    return ImageSet(
        name="cifar10",
        split=split,
        images=np.ascontiguousarray(source.data[where]),
        labels=np.asarray(source.targets, dtype=np.int64)[where],
        indices=indices[where],
        classes=CLASSES,
        lossless=np.ones(len(where), dtype=np.bool_),
    )
