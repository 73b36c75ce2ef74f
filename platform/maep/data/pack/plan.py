"""Decides which of ImageNet's images goes into which Parquet shard, before any is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from maep import seeding
from maep.data.pack.archive import Archive
from maep.data.reading.class_folder import index_of
from maep.data.reading.parquet import manifest_name
from maep.data.sets.imagenet import synsets
from maep.errors import ConfigError, DataError, few

OfficialPart = Literal["train", "val"]
OFFICIAL = {"train": 1_281_167, "val": 50_000}
"""Number of images in ILSVRC2012."""
SHARD_BYTES = 256 * 2**20
"""Approximate size of a shard. It gives about 550 for train: enough for many workers, few enough to list."""
ROWS_PER_GROUP = 32
"""A streaming loader reads and shuffles whole row groups. 32 images are about 3.5 MB: large enough to amortise the
latency of a read, small enough that a worker mixes many groups."""


@dataclass(frozen=True)
class PackPlan:
    """Which images go into which shard of `folder`."""

    archive: Archive
    folder: Path
    part: OfficialPart
    num_shards: int
    seed: int

    @cached_property
    def shards(self) -> dict[str, NDArray[np.int64]]:
        """For each file name, the rows of the archive that it holds, in order."""
        indices = torch.tensor([index_of(self.archive.name(row)) for row in range(len(self.archive))])
        draws = seeding.draws(seeding.mix(self.seed), indices).numpy().view(np.uint64)
        parts = np.array_split(np.argsort(draws, kind="stable"), self.num_shards)
        return {f"{self.part}-{k:05}-of-{self.num_shards:05}.parquet": rows for k, rows in enumerate(parts)}

    @cached_property
    def labels(self) -> dict[str, int]:
        """The label of each synset."""
        return {synset: label for label, synset in enumerate(synsets())}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What two runs must share to use each other's shards."""
        return {
            "part": self.part,
            "seed": self.seed,
            "shards": self.num_shards,
            "rows_per_group": ROWS_PER_GROUP,
            "images": len(self.archive),
            "source": self.archive.digest(),
        }

    @property
    def manifest(self) -> Path:
        """The manifest's path; it is written last."""
        return self.folder / manifest_name(self.part)

    @property
    def work(self) -> Path:
        """The folder that keeps finished shards until all are done."""
        return self.folder / f".{self.part}-packing"


def plan_pack(
    archive: Archive, root: Path, part: OfficialPart, num_shards: int | None = None, seed: int = 0
) -> PackPlan:
    """Plans the packing of `archive` into `root`/imagenet, by default into shards of about SHARD_BYTES.

    Raises DataError for a class that ImageNet-1k does not have, ConfigError for more shards than images.
    """
    unknown = sorted(set(archive.synsets) - set(synsets()))
    if unknown:
        raise DataError(
            f"{archive.source}: {few(unknown)}: no synset of ImageNet-1k: give the folder or tar whose class folders "
            "are n01440764 and so on"
        )
    if num_shards is None:
        num_shards = max(1, round(int(archive.sizes.sum()) / SHARD_BYTES))
    if not 1 <= num_shards <= len(archive):
        raise ConfigError(f"--shards {num_shards}: must be in 1..{len(archive)}, the number of images")
    return PackPlan(archive, root / "imagenet", part, num_shards, seed)
