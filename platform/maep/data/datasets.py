"""Data sets by name."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from maep import storage
from maep.data.image_set import ImageSet, Split
from maep.data.sets import cifar10, digits, imagenet
from maep.errors import ConfigError

__all__ = ["DataConfig", "ImageSet", "Split", "data_root", "data_uri", "deciding", "inventory", "load"]


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and where it lies.

    root         the folder that holds cifar10/, imagenet/ ...; None: $MAEP_DATA, else ./data
    max_corrupt  so many images may be left out because they do not decode or have a label out of range
    image_size   ImageNet only: side of the centre crop in pixels, 224 by default
    train_files  ImageNet only, streamed: train on the Parquet files of this pattern below the root, such as
                 imagenet_slice/val_256.parquet; None: the part train
    max_corrupt_share   streamed images: this share of an epoch's may be corrupt, and is replaced by others
    read_timeout_s      streamed images: so long may one read from S3 take, retries included
    """

    name: Literal["digits", "cifar10", "imagenet"] = "digits"
    root: str | None = None
    max_corrupt: int = 0
    image_size: int | None = None
    train_files: str | None = None
    max_corrupt_share: float = 0.0
    read_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.max_corrupt < 0:
            raise ValueError(f"max_corrupt: at least 0, not {self.max_corrupt}")
        if self.image_size is not None and self.name != "imagenet":
            raise ValueError(f"image_size: {self.name} has one size; only imagenet is cropped")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size: at least 1, not {self.image_size}")
        if self.train_files is not None and self.name != "imagenet":
            raise ValueError(f"train_files: {self.name} has its own; only imagenet is streamed")
        if not 0 <= self.max_corrupt_share < 1 or self.read_timeout_s <= 0:
            raise ValueError("max_corrupt_share must be in [0, 1), read_timeout_s above 0")


def data_uri(config: DataConfig) -> str:
    """The folder, or the s3:// address, that data sets are looked for in."""
    root = config.root or os.environ.get("MAEP_DATA") or "data"
    return root if storage.is_remote(root) else str(Path(root).expanduser())


def data_root(config: DataConfig) -> Path:
    """The same, where it must be a folder: for classifier weights too. Raises ConfigError for s3://."""
    uri = data_uri(config)
    if storage.is_remote(uri):
        raise ConfigError(f"data.root: {uri} can only be streamed, as what imagenet is trained on: name a folder")
    return Path(uri)


def deciding(config: DataConfig) -> dict[str, Any]:
    """The settings that say which images there are: not where they lie, nor how much trouble is put up with."""
    values = asdict(config)
    for key in ("root", "max_corrupt_share", "read_timeout_s"):
        del values[key]
    if values["train_files"] is None:
        del values["train_files"]
    return values


def inventory(config: DataConfig) -> list[tuple[str, int]]:
    """Path (below the data root) and bytes of every file of the data set, sorted; empty for what scikit-learn ships."""
    root = data_root(config)
    files = sorted(path for path in (root / config.name).rglob("*") if path.is_file())
    return [(path.relative_to(root).as_posix(), path.stat().st_size) for path in files]


def load(config: DataConfig, split: Split) -> ImageSet:
    """One split of a data set.

    digits   uint8 [N, 16, 16, 3], in memory
    cifar10  uint8 [N, 32, 32, 3], decoded once into memory
    imagenet uint8 [N, S, S, 3], decoded on access
    `test` is for reported figures only: training and choosing load `train` and `dev`.
    Raises DataError when the data is missing or empty, or when more than `max_corrupt` images cannot be used.
    """
    root = data_root(config)
    match config.name:
        case "digits":
            return digits.load(split)
        case "cifar10":
            return cifar10.load(root, split, config.max_corrupt)
        case "imagenet":
            return imagenet.load(root, split, config.max_corrupt, config.image_size or imagenet.IMAGE_SIZE)
