"""A collection of encoded images, read in groups: the interface of every layout to the loaders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class EncodedGroup:
    """The images of one group, still encoded."""

    images: list[bytes]
    """Empty bytes for a null and for a file that cannot be read."""
    labels: NDArray[np.int64]
    """int64 [n]; -1 for a null."""
    indices: NDArray[np.int64]
    """int64 [n]: official indices."""
    lossless: NDArray[np.bool_]
    """bool [n], False where only a lossy copy of the official pixels was available."""


@dataclass(frozen=True, eq=False)
class Shards(ABC):
    """A collection of encoded images. The object itself is small and can be sent to other processes."""

    name: str
    """Name of the data set."""
    classes: tuple[str, ...]
    """In label order."""
    root: str
    """The folder, local or s3://, that the files are in."""
    fingerprint: str
    """Hex sha256 of the manifest, else of names, sizes and row counts; never of the content, which would be slow."""
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
        """The name of image `row` of the group, for messages."""
