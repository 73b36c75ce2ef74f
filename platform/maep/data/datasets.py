"""Data sets by name."""

from __future__ import annotations

import os
from pathlib import Path

from maep import registry, storage
from maep.data.config import DataConfig
from maep.data.image_set import ImageSet, Split
from maep.errors import ConfigError

__all__ = ["DataConfig", "ImageSet", "Split", "data_root", "data_uri", "inventory", "load"]


def data_uri(config: DataConfig) -> str:
    """The folder or s3:// address that holds the data sets."""
    root = config.root or os.environ.get("MAEP_DATA") or "data"
    return root if storage.is_remote(root) else str(Path(root).expanduser())


def data_root(config: DataConfig) -> Path:
    """The same as a local folder, which also holds classifier weights. Raises ConfigError for s3://."""
    uri = data_uri(config)
    if storage.is_remote(uri):
        raise ConfigError(f"data.root: {uri}: only the training images of imagenet can be on S3: name a folder")
    return Path(uri)


def inventory(config: DataConfig) -> list[tuple[str, int]]:
    """Path (below the data root) and bytes of every file of the data set, sorted; empty for digits."""
    root = data_root(config)
    files = sorted(path for path in (root / config.name).rglob("*") if path.is_file())
    return [(path.relative_to(root).as_posix(), path.stat().st_size) for path in files]


def load(config: DataConfig, split: Split) -> ImageSet:
    """One split of a data set (maep.data.sets), uint8 [N, H, W, 3] in memory or decoded on access.

    `test` is for reported figures only; training and every choice use `train` and `dev`.
    Raises DataError when the data is missing or empty, or when more than `max_corrupt` images cannot be used.
    """
    loaded: ImageSet = registry.datasets.get(config.name)(config, split)
    return loaded
