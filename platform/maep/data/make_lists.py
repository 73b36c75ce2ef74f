"""Makes the committed image lists again: `python -m maep.data.make_lists FOLDER`, with $MAEP_DATA set.

The lists never change: evaluation results name them by sha256. A test compares them with what this makes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maep.data import cifar10, datasets, digits, lists, parquet
from maep.data.image_set import ImageSet, Split
from maep.data.lists import ImageList

SEED = 20240607
NUM_DEV = 2_000


def cifar10_dev(root: Path) -> ImageList:
    """`dev` of CIFAR-10: the first 2,000 of a fixed permutation of the official test set that are in the files."""
    present = parquet.read(parquet.find([root / "cifar10"], "test")).indices
    order = np.random.default_rng(SEED).permutation(cifar10.NUM_OFFICIAL["test"])
    chosen = order[np.isin(order, present)][:NUM_DEV]
    return lists.make("cifar10-dev", "cifar10", "dev", _integers(np.sort(chosen)))


def balanced(name: str, images: ImageSet, num: int) -> ImageList:
    """`num` images from a fixed permutation, dealt in rounds of one image of each class.

    Every prefix is balanced to one image, so the shorter of two lists is the beginning of the longer.
    Images of which only a lossy copy exists are left out: an attack's budget is counted from the exact pixels.
    """
    order = np.random.default_rng(SEED).permutation(len(images))
    order = order[images.lossless[order]]
    rank = np.empty(len(order), dtype=np.int64)  # how many of its class come before it
    for k in range(len(images.classes)):
        mine = images.labels[order] == k
        rank[mine] = np.arange(mine.sum())
    dealt = order[np.argsort(rank, kind="stable")][:num]
    return lists.make(name, images.name, images.split, _integers(images.indices[dealt]))


def make_all(root: Path) -> list[ImageList]:
    """Every list, from the data under `root`. cifar10-dev comes first: it defines the splits of the others."""

    def cifar(split: Split) -> ImageSet:
        return datasets.load(datasets.DataConfig("cifar10", str(root)), split)

    def imagenet(split: Split) -> ImageSet:
        return datasets.load(datasets.DataConfig("imagenet", str(root)), split)

    made: list[Callable[[], ImageList]] = [
        lambda: cifar10_dev(root),
        lambda: balanced("cifar10-test-1000", cifar("test"), 1000),
        lambda: balanced("cifar10-test-256", cifar("test"), 256),
        lambda: balanced("cifar10-dev-1000", cifar("dev"), 1000),
        lambda: balanced("cifar10-dev-500", cifar("dev"), 500),
        lambda: _whole("digits-test", "test"),
        lambda: _whole("digits-dev", "dev"),
        lambda: balanced("imagenet-slice-test-256", imagenet("test"), 256),
        lambda: balanced("imagenet-slice-dev-128", imagenet("dev"), 128),
    ]
    return [make() for make in made]


def write(image_list: ImageList, folder: Path) -> None:
    """Writes one list file, 20 indices a line."""
    rows = [image_list.indices[start : start + 20] for start in range(0, len(image_list), 20)]
    lines = [f"{image_list.dataset} {image_list.split}", *(" ".join(map(str, row)) for row in rows)]
    (folder / f"{image_list.name}.txt").write_text("\n".join(lines) + "\n", encoding="ascii")


def _whole(name: str, split: Split) -> ImageList:
    return lists.make(name, "digits", split, _integers(digits.load(split).indices))


def _integers(values: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


if __name__ == "__main__":
    for each in make_all(datasets.data_root(datasets.DataConfig())):
        write(each, Path(sys.argv[1]))
