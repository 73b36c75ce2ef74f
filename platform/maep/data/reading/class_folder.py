"""Reads class folders: ROOT/PART/CLASS/NAME.JPEG, one image per file, labels by class name.

The classes are the folders of all parts together, so labels agree even where a part lacks a class. It skips hidden
folders and files (names that begin with a dot), deeper folders, and suffixes other than SUFFIXES.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from maep import storage
from maep.data.reading import store
from maep.data.reading.decoding import SUFFIXES, Undecodable
from maep.data.reading.shards import EncodedGroup, Shards


@dataclass(frozen=True, eq=False)
class ClassFolder(Shards):
    """The images of one part. Each file is a group, so that streaming shuffles them completely."""

    files: tuple[str, ...]
    """CLASS/NAME, sorted by class, then by name."""
    num_bytes: NDArray[np.int64]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 [G] of ones."""
        return np.ones(len(self.files), dtype=np.int64)

    @property
    def lossless(self) -> NDArray[np.bool_]:
        """bool [N]: all of them."""
        return np.ones(len(self.files), dtype=np.bool_)

    def read(self, group: int) -> EncodedGroup:
        """One file. A local file that cannot be read gives no bytes and counts as corrupt."""
        try:
            data = self.image(group)
        except Undecodable:
            data = b""
        one = slice(group, group + 1)
        return EncodedGroup([data], self.labels[one], self.indices[one], self.lossless[one])

    def place(self, group: int, row: int = 0) -> str:
        """CLASS/NAME."""
        return self.files[group]

    def image(self, row: int) -> bytes:
        """The bytes of one file. Raises Undecodable for a local one that cannot be read."""
        path = storage.join(self.root, self.files[row])
        if storage.is_remote(path):
            return store.read_bytes(path, self.timeout_s)
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise Undecodable(f"cannot be read: {error.strerror}") from None

    def identity(self, row: int) -> bytes:
        """Name and size; hashing the content of 140 GB before training would take too long."""
        return f"{self.files[row]} {self.num_bytes[row]}\n".encode()


def find_class_folder(
    name: str,
    root: str,
    part: str,
    parts: Sequence[str],
    label_order: Callable[[list[str]], list[str]] = list,
    timeout_s: float = 60.0,
) -> ClassFolder | None:
    """The images of `part` below `root`, local or s3://; None if there are none.

    parts        all parts, whose class folders are numbered together
    label_order  maps the sorted class names to all classes in label order, which may be more
    """
    folder = storage.join(root, part)
    found = [file for file in store.list_files(folder, timeout_s, recursive=True) if _is_image_of_class(file.name)]
    if not found:
        return None
    found.sort(key=lambda file: file.name.split("/"))
    folders = {name for each in parts for name in store.list_folders(storage.join(root, each), timeout_s)}
    classes = label_order(sorted(name for name in folders if not is_hidden(name)))
    number = {name: label for label, name in enumerate(classes)}
    return ClassFolder(
        name=name,
        classes=tuple(classes),
        root=folder,
        fingerprint=hashlib.sha256(repr([(file.name, file.size) for file in found]).encode()).hexdigest(),
        timeout_s=timeout_s,
        files=tuple(file.name for file in found),
        num_bytes=np.array([file.size for file in found], dtype=np.int64),
        labels=np.array([number[file.name.partition("/")[0]] for file in found], dtype=np.int64),
        indices=np.array([index_of(file.name) for file in found], dtype=np.int64),
    )


def index_of(name: str) -> int:
    """The official index of a file CLASS/NAME: a hash, in [0, 2**63)."""
    # Not the position: removing a file would then change later indices, and move images from test to dev.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden by its name, such as `.ipynb_checkpoints`."""
    return name.startswith(".")


def is_image(name: str) -> bool:
    """Whether a file counts as an image, by its name."""
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def _is_image_of_class(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return len(parts) == 2 and not is_hidden(parts[0]) and is_image(parts[1])
