"""Named image lists, so that figures can be compared image by image.

Each is a file in lists/: a header line, `DATASET SPLIT`, then official indices in order. The files never change;
tests/support/make_lists.py made them.
"""

from __future__ import annotations

import functools
import hashlib
import typing
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from maep.data.image_set import ImageSet, Split
from maep.errors import ConfigError, DataError, few, nearest

PACKAGE = "maep.data"
FOLDER = "lists"


@dataclass(frozen=True)
class ImageList:
    """Official indices of one split of a data set, in a fixed order; `sha256` identifies data set, split and order."""

    name: str
    dataset: str
    split: Split
    indices: tuple[int, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.indices)


def names() -> list[str]:
    """The names of all lists, sorted."""
    files = resources.files(PACKAGE).joinpath(FOLDER).iterdir()
    return sorted(file.name.removesuffix(".txt") for file in files if file.name.endswith(".txt"))


@functools.cache
def named(name: str) -> ImageList:
    """The list called `name`, such as 'cifar10-test-1000'. Raises ConfigError for an unknown one."""
    if name not in names():
        raise ConfigError(f"there is no image list {name!r}: {nearest(name, names())}")
    text = resources.files(PACKAGE).joinpath(FOLDER, f"{name}.txt").read_text(encoding="ascii")
    header, *rows = text.splitlines()
    dataset, split = header.split()
    assert split in typing.get_args(Split), name
    indices = tuple(int(word) for row in rows for word in row.split())
    return make(name, dataset, typing.cast(Split, split), indices)


def make(name: str, dataset: str, split: Split, indices: tuple[int, ...]) -> ImageList:
    """An ImageList of any indices, with its sha256."""
    content = f"{dataset} {split}\n{' '.join(map(str, indices))}\n"
    return ImageList(name, dataset, split, indices, hashlib.sha256(content.encode("ascii")).hexdigest())


def pick(image_set: ImageSet, image_list: ImageList) -> ImageSet:
    """The images of the list, in its order. Raises DataError if the set lacks one or belongs to another split."""
    if (image_set.name, image_set.split) != (image_list.dataset, image_list.split):
        raise DataError(
            f"image list {image_list.name} is of {image_list.dataset} {image_list.split}, "
            f"not of {image_set.name} {image_set.split}"
        )
    position = {int(index): place for place, index in enumerate(image_set.indices)}
    missing = [index for index in image_list.indices if index not in position]
    if missing:
        raise DataError(
            f"image list {image_list.name}: {len(missing)} of {len(image_list)} images are not in "
            f"{image_set.name} {image_set.split} (index {few(list(map(str, missing)))}): "
            f"use a complete {image_set.name}, or a list made from this one"
        )
    return image_set.select([position[index] for index in image_list.indices])


def read_indices(name: str) -> NDArray[np.int64]:
    """int64 [N]: the indices of a list, sorted."""
    return np.sort(np.array(named(name).indices, dtype=np.int64))
