"""Configuration of data sets and loaders. Imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maep import config, registry

LoaderKind = Literal["auto", "resident", "stream", "ray", "synthetic"]


@dataclass(frozen=True)
class DataConfig:
    """A data set and where it is."""

    name: str = config.key("digits", "Data set.", decides=True, choices=registry.datasets.names)
    root: str | None = config.key(
        None,
        "Folder or s3:// address that holds cifar10/, imagenet/ and so on; null: $MAEP_DATA, else ./data.",
        decides=False,
    )
    max_corrupt: int = config.key(
        0, "Number of images that may be skipped because they do not decode or have an invalid label.", decides=True
    )
    image_size: int | None = config.key(None, "imagenet: side of the centre crop, in pixels; null: 224.", decides=True)
    train_files: str | None = config.key(
        None,
        """imagenet, streamed: glob pattern, below the root, of the Parquet files to train on, such as
        imagenet_slice/val_256.parquet; null: the `train` split.""",
        decides=True,
    )
    max_corrupt_share: float = config.key(
        0.0,
        "Streamed images: largest share in [0, 1) of an epoch that may be corrupt; other images replace them.",
        decides=False,
    )
    read_timeout_s: float = config.key(
        60.0, "Streamed images: deadline of one read from S3 in seconds, retries included.", decides=False
    )

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range, and for keys that the data set does not use."""
        registry.datasets.require([self.name], "name")
        if self.max_corrupt < 0:
            raise ValueError(f"max_corrupt: {self.max_corrupt} must be at least 0")
        if self.image_size is not None and not registry.datasets.declared(self.name).cropped:
            raise ValueError(f"image_size: {self.name} images have a fixed size")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size: {self.image_size} must be at least 1")
        if self.train_files is not None and not registry.datasets.declared(self.name).streamed:
            raise ValueError(f"train_files: {self.name} is not streamed")
        if not 0 <= self.max_corrupt_share < 1 or not self.read_timeout_s > 0:
            raise ValueError("max_corrupt_share must be in [0, 1), read_timeout_s above 0")


@dataclass(frozen=True)
class LoaderConfig:
    """How images are loaded for training."""

    kind: LoaderKind = config.key(
        "auto",
        """resident: the whole set decoded in memory; stream: threads of each worker read and decode; ray: Ray tasks
        read and decode; synthetic: random images, to measure training without input; auto: resident, but for imagenet
        ray on Ray Train workers and stream elsewhere.""",
        decides=True,
    )
    threads: int = config.key(0, "stream: decoding threads; 0: one for each core.", decides=False)
    cpus: float = config.key(
        0.5,
        "ray: logical CPUs of one decoding task. With 1.0, no task fits beside two workers on two cores.",
        decides=False,
    )
    prefetch: int = config.key(
        4, "stream, ray: parts of a step kept ready, besides those being decoded.", decides=False
    )
    memory_share: float = config.key(
        0.5, "resident: share of the free memory that the copies of all workers may use.", decides=False
    )

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        if self.threads < 0 or self.prefetch < 1 or not self.cpus > 0 or not 0 < self.memory_share <= 1:
            raise ValueError("threads: at least 0; prefetch: at least 1; cpus: above 0; memory_share: in (0, 1]")
