"""How the committed image lists were made; to write them again: `python tests/support/make_lists.py FOLDER`.

Needs $MAEP_DATA. The lists never change, because evaluation results name them by sha256: test_lists.py compares them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maep.data import datasets, lists
from maep.data.image_set import ImageSet, Split
from maep.data.lists import ImageList
from maep.data.reading.encoded import RowsInMemory
from maep.data.reading.parquet import find_parquet
from maep.data.sets import cifar10, digits

SEED = 20240607
NUM_DEV = 2_000
NUM_DIGITS = 300


def cifar10_dev(root: Path) -> ImageList:
    """`dev` of CIFAR-10: the first 2,000 of a fixed permutation of the official test set that are in the files."""
    present = _official_test(root).indices
    order = np.random.default_rng(SEED).permutation(cifar10.NUM_OFFICIAL["test"])
    chosen = order[np.isin(order, present)][:NUM_DEV]
    return lists.make("cifar10-dev", "cifar10", "dev", _integers(np.sort(chosen)))


def cifar10_dev_labels(root: Path) -> str:
    """The official labels of `dev`, one digit each: they show whether a file without indices is in official order."""
    rows = _official_test(root)
    label = dict(zip(rows.indices.tolist(), rows.labels.tolist(), strict=True))
    digits_in_order = "".join(str(label[index]) for index in cifar10_dev(root).indices)
    return "".join(digits_in_order[start : start + 100] + "\n" for start in range(0, NUM_DEV, 100))


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


def digits_part(split: Split) -> ImageList:
    """All 300 images of `dev` or `test` of the digits, stratified by class.

    Within each class a fixed permutation is dealt to dev and to test in proportion to the size of the class, by largest
    remainder, so that each of the two has exactly 300; the rest is train.
    """
    labels = digits.labels()
    order = np.random.default_rng(SEED).permutation(len(labels))
    by_class = [order[labels[order] == k] for k in range(len(digits.CLASSES))]
    sizes = np.array([len(members) for members in by_class])
    quota = sizes * NUM_DIGITS / sizes.sum()
    counts = np.floor(quota).astype(int)
    counts[np.argsort(counts - quota, kind="stable")[: NUM_DIGITS - counts.sum()]] += 1
    first = [0 if split == "dev" else n for n in counts]
    chosen = [members[start : start + n] for members, start, n in zip(by_class, first, counts, strict=True)]
    return lists.make(f"digits-{split}", "digits", split, _integers(np.sort(np.concatenate(chosen))))


def make_all(root: Path) -> list[ImageList]:
    """Every list, from the data under `root`. cifar10-dev comes first: it defines the splits of the others."""

    @functools.cache
    def cifar(split: Split) -> ImageSet:
        return datasets.load(datasets.DataConfig("cifar10", str(root)), split)

    @functools.cache
    def imagenet(split: Split) -> ImageSet:
        return datasets.load(datasets.DataConfig("imagenet", str(root)), split)

    made: list[Callable[[], ImageList]] = [
        lambda: cifar10_dev(root),
        lambda: balanced("cifar10-test-1000", cifar("test"), 1000),
        lambda: balanced("cifar10-test-256", cifar("test"), 256),
        lambda: balanced("cifar10-dev-1000", cifar("dev"), 1000),
        lambda: balanced("cifar10-dev-500", cifar("dev"), 500),
        lambda: digits_part("test"),
        lambda: digits_part("dev"),
        lambda: balanced("imagenet-slice-test-256", imagenet("test"), 256),
        lambda: balanced("imagenet-slice-dev-128", imagenet("dev"), 128),
    ]
    return [make() for make in made]


def write(image_list: ImageList, folder: Path) -> None:
    """Writes one list file, 20 indices a line."""
    rows = [image_list.indices[start : start + 20] for start in range(0, len(image_list), 20)]
    lines = [f"{image_list.dataset} {image_list.split}", *(" ".join(map(str, row)) for row in rows)]
    (folder / f"{image_list.name}.txt").write_text("\n".join(lines) + "\n", encoding="ascii")


def _official_test(root: Path) -> RowsInMemory:
    shards = find_parquet("cifar10", cifar10.CLASSES, [str(root / "cifar10")], "test")
    assert shards is not None
    assert shards.indexed, "the files say which image is which"
    return RowsInMemory(shards)


def _integers(values: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


if __name__ == "__main__":
    data, target = datasets.data_root(datasets.DataConfig()), Path(sys.argv[1])
    (target / "cifar10-dev.labels").write_text(cifar10_dev_labels(data), encoding="ascii")
    for each in make_all(data):
        write(each, target)
