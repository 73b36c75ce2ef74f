"""ILSVRC2012's images as distributed, in a folder or a tar: listed once, then read by position.

  folder  SYNSET/NAME.JPEG; or NAME.JPEG and a file of labels
  tar     SYNSET.tar (the official training images), SYNSET/NAME.JPEG; or NAME.JPEG (the official validation images) and
          a file of labels

A tar is not unpacked: one pass over its headers records the offset of each image.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maep.data.reading.class_folder import is_hidden, is_image
from maep.data.reading.decoding import SUFFIXES
from maep.errors import DataError, few

Tick = Callable[[int, int, float | None], None]
"""Called with the work done, the total work (in any unit) and the seconds left, if known."""


class ArchivedImage(NamedTuple):
    """One image: path in the folder or tar, synset ('' if the path has none), offset and size in bytes."""

    path: str
    synset: str
    start: int
    size: int


@dataclass(frozen=True)
class Archive:
    """The images of a folder or tar, sorted by synset and name.

    paths    in the folder or tar
    synsets  the class of each
    starts   int64 [N], offsets in the tar; 0 in a folder
    sizes    int64 [N], bytes
    """

    source: Path
    paths: tuple[str, ...]
    synsets: tuple[str, ...]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, row: int) -> str:
        """SYNSET/NAME, the same in every layout."""
        return f"{self.synsets[row]}/{PurePosixPath(self.paths[row]).name}"

    @contextmanager
    def reader(self) -> Iterator[Callable[[int], bytes]]:
        """A thread-safe function from row to bytes; raises OSError for images that cannot be read."""
        if self.source.is_dir():
            yield lambda row: (self.source / self.paths[row]).read_bytes()
            return
        with self.source.open("rb") as file:
            yield lambda row: os.pread(file.fileno(), int(self.sizes[row]), int(self.starts[row]))

    def digest(self) -> str:
        """Hex sha256 of the names and sizes, which identifies the images without reading them."""
        digest = hashlib.sha256()
        for row in range(len(self)):
            digest.update(f"{self.name(row)} {self.sizes[row]}\n".encode())
        return digest.hexdigest()


def open_archive(source: Path, labels: Path | None = None, tick: Tick | None = None) -> Archive:
    """Lists the images of a folder or tar. `labels` gives their synsets, one per line, if folders do not.

    Raises DataError if there are none, for a damaged tar, and for labels that do not fit.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist: name the folder or the tar that holds the images")
    found = list(_in_folder(source, tick) if source.is_dir() else _in_tar(source, tick))
    if not found:
        raise DataError(
            f"{source}: no image (*{', *'.join(SUFFIXES)}) in it: name the folder that holds the class folders, "
            "or a tar of SYNSET.tar or SYNSET/NAME.JPEG"
        )
    if labels is not None:
        found = _labelled(found, labels, source)
    loose = [each.path for each in found if not each.synset]
    if loose:
        raise DataError(
            f"{source}: {_few_are(loose)} in no class folder: sort the images into folders named by synset, or give "
            "their synsets, one a line in the order of the names, with --labels FILE"
        )
    found.sort(key=lambda each: (each.synset, PurePosixPath(each.path).name))
    archive = Archive(
        source,
        tuple(each.path for each in found),
        tuple(each.synset for each in found),
        np.array([each.start for each in found], dtype=np.int64),
        np.array([each.size for each in found], dtype=np.int64),
    )
    twice = [archive.name(row) for row in range(1, len(archive)) if archive.name(row) == archive.name(row - 1)]
    if twice:
        raise DataError(f"{source}: {_few_are(twice)} there twice: keep one of each")
    return archive


def _in_folder(folder: Path, tick: Tick | None) -> Iterator[ArchivedImage]:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for done, entry in enumerate(entries, 1):
        if entry.is_dir() and not is_hidden(entry.name):
            for file in os.scandir(entry):
                if is_image(file.name):
                    yield ArchivedImage(f"{entry.name}/{file.name}", sys.intern(entry.name), 0, file.stat().st_size)
        elif is_image(entry.name):
            yield ArchivedImage(entry.name, "", 0, entry.stat().st_size)
        if tick is not None:
            tick(done, len(entries), None)


def _in_tar(source: Path, tick: Tick | None) -> Iterator[ArchivedImage]:
    total = source.stat().st_size
    with source.open("rb") as file:
        for member in _members(file, source, total):
            path = PurePosixPath(member.name)
            if path.suffix == ".tar":
                for inner in _members(file, source, member.offset_data + member.size, member.offset_data):
                    if is_image(name := PurePosixPath(inner.name).name):
                        yield ArchivedImage(f"{path.stem}/{name}", sys.intern(path.stem), inner.offset_data, inner.size)
            elif is_image(path.name):
                yield ArchivedImage(str(path), sys.intern(path.parent.name), member.offset_data, member.size)
            if tick is not None:
                tick(member.offset_data + member.size, total, None)


def _members(file: BinaryIO, source: Path, end: int, start: int = 0) -> Iterator[tarfile.TarInfo]:
    """The files of the tar between `start` and `end` of `file`."""
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None and member.offset < end:
                # tarfile would keep every header in memory: a gigabyte for ImageNet
                tar.members.clear()  # type: ignore[attr-defined]
                if member.size < 0:
                    raise DataError(
                        f"{source}: {member.name} has {member.size} bytes: the tar is damaged, fetch it again"
                    )
                if member.offset_data + member.size > end:
                    raise DataError(f"{source} ends inside {member.name}: it is truncated, fetch it again")
                if member.isreg():
                    yield member
    except tarfile.TarError as error:
        raise DataError(
            f"{source}: not a whole, uncompressed tar ({error}): fetch it again, or unpack what is compressed"
        ) from None


def _labelled(found: list[ArchivedImage], labels: Path, source: Path) -> list[ArchivedImage]:
    """`found` with the synsets of the file `labels`, which is in the order of the names."""
    if any(each.synset for each in found):
        raise DataError(f"{source} has class folders, which give the labels already: omit --labels")
    try:
        lines = labels.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise DataError(f"--labels {labels}: {reason}: it must hold one synset a line") from None
    if any(line.isdecimal() for line in lines):
        raise DataError(
            f"--labels {labels}: numbers are ambiguous (the official ones follow the development kit, not the sorted "
            "synsets): give one synset (n01440764) a line"
        )
    if len(lines) != len(found):
        raise DataError(f"--labels {labels}: {len(lines):,} labels for the {len(found):,} images of {source}")
    found = sorted(found, key=lambda each: each.path)
    return [each._replace(synset=sys.intern(line)) for each, line in zip(found, lines, strict=True)]


def _few_are(names: list[str]) -> str:
    """'a, b, c and 7 more are'"""
    return f"{few(names)} {'is' if len(names) == 1 else 'are'}"
