"""A collection of encoded images, read in groups: what every layout gives to the loaders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class EncodedGroup:
    """The images of one group, still encoded."""

    images: list[bytes]
    """Empty where the file holds a null or cannot be read."""
    labels: NDArray[np.int64]
    """int64 [n]; -1 for a null."""
    indices: NDArray[np.int64]
    """int64 [n]: official indices."""
    lossless: NDArray[np.bool_]
    """bool [n], False where only a lossy copy of the official pixels was available."""


@dataclass(frozen=True, eq=False)
class Shards(ABC):
    """A collection of encoded images. The object is small, and is sent to other processes."""

    name: str
    """Of the data set."""
    classes: tuple[str, ...]
    """In label order."""
    root: str
    """The folder, local or s3://, that the files are in."""
    fingerprint: str
    """Hex sha256 of the manifest, else of names, sizes and row counts: cheap, and not of the content."""
    timeout_s: float
    """Deadline of one read from S3, retries included."""

    @property
    @abstractmethod
    def sizes(self) -> NDArray[np.int64]:
        """int64 [G]: the number of images in each group, at least 1."""

    @abstractmethod
    def read(self, group: int) -> EncodedGroup:
        """One group. Raises DataError for a damaged file, UnavailableError where storage fails."""

    @abstractmethod
    def place(self, group: int, row: int) -> str:
        """Where image `row` of the group is, for messages."""
