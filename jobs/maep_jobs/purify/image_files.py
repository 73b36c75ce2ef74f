"""Pair image files with their purified files, and record in each purified file what it was made from.

A purified file is a PNG whose first chunk after the header (tEXt; PNG specification, 11.3.4.3) names the purifier and
the sha256 of the original. So an interrupted run resumes, a changed original or another purifier is purified again, and
no separate list can get out of step with the files.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from maep import storage
from maep.data.reading.decoding import SUFFIXES
from maep.errors import UserError

_AFTER_HEADER = 33  # bytes of a PNG's signature and IHDR chunk
_BEFORE_TEXT = 8  # bytes of a chunk's length and kind
_MARK = b"maep\0purifier "
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


@dataclass(frozen=True)
class FilePair:
    """An image file and the path of its purified form."""

    source: Path
    target: Path


@dataclass(frozen=True)
class FoundImages:
    """`pairs` in a fixed order, and the number of files in the folders whose names are not those of images."""

    pairs: tuple[FilePair, ...]
    num_others: int


def find(inputs: Sequence[Path], output: Path) -> FoundImages:
    """Find the images among files and folders (at any depth; hidden files and `output` itself are skipped).

    A file is purified to `output`/STEM.png, or to `output` if that ends in .png and there is no other input. A file in
    a folder keeps its path below the folder, and below the folder's name if there are several inputs.
    Raises UserError for an input that does not exist, for two with one target, for a target that is itself an input,
    and for one in folder `output` that maep did not write: it may be somebody's only copy. A file given as `output` is
    overwritten.
    """
    for path in inputs:
        if not path.exists():
            raise UserError(f"{path} does not exist: give an image or a folder of images")
    named = len(inputs) == 1 and inputs[0].is_file() and output.suffix.lower() == ".png" and not output.is_dir()
    if named:
        found = FoundImages((FilePair(inputs[0], output),), 0)
    else:
        pairs: list[FilePair] = []
        num_others = 0
        for path in inputs:
            if path.is_file():
                pairs.append(FilePair(path, output / f"{path.stem}.png"))
                continue
            below = output / path.resolve().name if len(inputs) > 1 else output
            for file in _files(path, output):
                if file.suffix.lower() in SUFFIXES:
                    pairs.append(FilePair(file, below / file.relative_to(path).with_suffix(".png")))
                else:
                    num_others += 1
        found = FoundImages(tuple(pairs), num_others)
    _check(found.pairs)
    for pair in () if named else found.pairs:
        if pair.target.is_file() and not _is_ours(pair.target):
            raise UserError(
                f"{pair.target} exists and was not made by maep purify: choose another -o, or move the file"
            )
    return found


def _files(folder: Path, output: Path) -> Iterator[Path]:
    left_out = output.resolve()
    for place, folders, names in os.walk(folder):
        inside = Path(place)
        folders[:] = sorted(name for name in folders if name[0] != "." and (inside / name).resolve() != left_out)
        yield from (inside / name for name in sorted(names) if name[0] != ".")


def _check(pairs: Sequence[FilePair]) -> None:
    sources = {pair.source.resolve() for pair in pairs}
    taken: dict[Path, Path] = {}
    for pair in pairs:
        other = taken.setdefault(pair.target, pair.source)
        if other is not pair.source:
            raise UserError(f"{other} and {pair.source} would both become {pair.target}: purify them in two runs")
        if pair.target.resolve() in sources:
            raise UserError(f"{pair.target} is also an input: choose an output folder (-o) outside the inputs")


def _is_ours(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            opened.seek(_AFTER_HEADER + _BEFORE_TEXT)
            return opened.read(len(_MARK)) == _MARK
    except OSError:
        return False


def stamp(purifier: str, source: bytes) -> bytes:
    """The PNG chunk that records that `purifier` (sha256) made a file from the bytes `source`."""
    text = _MARK + f"{purifier} source {hashlib.sha256(source).hexdigest()}".encode("latin-1")
    return struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text))


def write(target: Path, png: bytes, stamp: bytes) -> None:
    """Write the whole file, stamped, or nothing. Raises WriteError."""
    storage.write_bytes(target, png[:_AFTER_HEADER] + stamp + png[_AFTER_HEADER:])


def is_complete(target: Path, stamp: bytes) -> bool:
    """Whether `target` is a complete file with this stamp."""
    try:
        with target.open("rb") as file:
            file.seek(_AFTER_HEADER)
            if file.read(len(stamp)) != stamp:
                return False
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END
    except OSError:  # missing, or shorter than any PNG
        return False
