"""ImageNet-1k, or a slice of it, from Parquet of JPEG bytes or from class folders; decoded on access.

  Parquet        {train,val}*.parquet in <root>/imagenet, else in <root>/imagenet_slice: columns image, label
  class folders  <root>/imagenet/{train,val}/<synset>/*.JPEG; label order is sorted-synset order

`train` is train; `dev` and `test` are 2/9 and 7/9 of val, separated by a hash of the image's index, so that an image
never changes sides. The index is the column `index`, else the row; for a file, it is a hash of SYNSET/NAME.
`load` holds Parquet in memory, encoded (about 6.7 GB for the 50,000 of val). Training on the whole set streams it from
either layout, local or on S3 (`train_shards`). `maep data pack` makes such Parquet files from the official archives.
"""

from __future__ import annotations

import functools
from pathlib import PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray

from maep import registry, seeding, storage
from maep.data.config import DataConfig
from maep.data.datasets import data_root
from maep.data.image_set import ImageSet, Split
from maep.data.reading import store
from maep.data.reading.class_folder import find_class_folder
from maep.data.reading.encoded import first_images, open_image_set, open_rows
from maep.data.reading.parquet import find_parquet, open_parquet
from maep.data.reading.shards import Shards
from maep.errors import DataError

IMAGE_SIZE = 224
NUM_CLASSES = 1000
SPLIT_SEED = 20240607
PARTS = ("train", "val")


@registry.dataset("imagenet", num_classes=1000, side=224, cropped=True, streamed=True)
def load(config: DataConfig, split: Split) -> ImageSet:
    """The split, uint8 [N, S, S, 3] on access, S = `config.image_size`.

    Raises DataError when it is missing, empty or damaged.
    """
    shards = _part_shards(str(data_root(config)), "train" if split == "train" else "val")
    rows = open_rows(shards)
    return open_image_set(
        shards, split, of_split(rows.indices, split), rows, config.image_size or IMAGE_SIZE, config.max_corrupt
    )


def train_shards(root: str, files: str | None = None, timeout_s: float = 60.0) -> Shards:
    """The training images, for streaming: the part train, or the Parquet files that match `files` (below `root`).

    `root` may be s3://, with a deadline of `timeout_s` per read. Images are checked only when they are read.
    Raises DataError if there are none or a file is damaged, UnavailableError if S3 fails.
    """
    if files is None:
        return _part_shards(root, "train", timeout_s)
    path = PurePosixPath(files)
    folder = storage.join(root, *path.parts[:-1])
    found = store.list_files(folder, timeout_s, path.name)
    if not found:
        raise DataError(f"data.train_files: no file {files} in {root}")
    return open_parquet("imagenet", class_names(), folder, found, timeout_s)


def first_of_dev(root: str, count: int, image_size: int = IMAGE_SIZE, timeout_s: float = 60.0) -> NDArray[np.uint8]:
    """The first images of dev, for an example image: uint8 [n, image_size, image_size, 3], n <= `count`.

    `root` may be s3://: only the groups that hold them are read, and no image of test is decoded. Corrupt images are
    skipped. Raises as `train_shards` does, and DataError where there are none.
    """
    return first_images(
        _part_shards(root, "val", timeout_s), count, image_size, lambda indices: of_split(indices, "dev")
    )


def _part_shards(root: str, part: str, timeout_s: float = 60.0) -> Shards:
    """All images of the part train or val, wherever below `root` they are."""
    folders = [storage.join(root, name) for name in ("imagenet", "imagenet_slice")]
    found = find_parquet("imagenet", class_names(), folders, part, timeout_s) or find_class_folder(
        "imagenet", folders[0], part, PARTS, label_order, timeout_s
    )
    if found is None:
        raise DataError(
            f"no ImageNet ({part}) in {' or '.join(folders)}: set $MAEP_DATA or --data.root to the folder that holds"
            f" imagenet/, with {part}*.parquet or {part}/SYNSET/*.JPEG in it"
            + (", or name other files by --data.train_files" if part == "train" else "")
        )
    return found


@functools.cache
def class_names() -> tuple[str, ...]:
    """The 1,000 names in label order."""
    from torchvision.models import SqueezeNet1_0_Weights  # slow to import

    return tuple(SqueezeNet1_0_Weights.IMAGENET1K_V1.meta["categories"])


def of_split(indices: NDArray[np.int64], split: Split) -> NDArray[np.bool_]:
    """Bool [N]: which indices of the split's part belong to `split`."""
    if split == "train":
        return np.ones(len(indices), dtype=np.bool_)
    draws = seeding.draws(seeding.mix(SPLIT_SEED), torch.from_numpy(indices)).numpy().view(np.uint64)
    is_dev: NDArray[np.bool_] = draws % np.uint64(9) < 2
    return is_dev if split == "dev" else ~is_dev


def label_order(classes: list[str]) -> list[str]:
    """Class names in label order: all of ImageNet-1k's even if only some are present, so that its classifiers fit."""
    if len(classes) == NUM_CLASSES:
        return classes
    official = synsets()
    return official if set(classes) <= set(official) else classes


def synsets() -> list[str]:
    """ImageNet-1k's 1,000 synsets in label order."""
    from timm.data import ImageNetInfo

    official: list[str] = ImageNetInfo("imagenet-1k").label_names()
    return official
