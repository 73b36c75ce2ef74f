"""ImageNet-1k, or a slice of it, from Parquet of JPEG bytes or from a folder of classes; decoded on access.

  Parquet      {train,val}*.parquet in <root>/imagenet, else in <root>/imagenet_slice: columns image, label
  ImageFolder  <root>/imagenet/{train,val}/<synset>/*.JPEG; label order is sorted-synset order

train comes from train; dev and test are the two parts (2/9 and 7/9) of val, told apart by a hash of the image's index,
so that an image never changes sides. The index is the column `index`, else the row; of a file, a hash of SYNSET/NAME.
`load` holds Parquet in memory, encoded (the 50,000 of val are about 6.7 GB); training on the whole set streams it from
either layout, local or on S3 (`train_shards`). pack.py makes such Parquet files of the official archives.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray

from maep import seeding, storage
from maep.data.image_set import ImageSet, Split, refuse_corrupt
from maep.data.pack import manifest
from maep.data.reading import parquet, shards
from maep.data.reading.cropping import decode_centre
from maep.data.reading.decoding import SUFFIXES, Undecodable
from maep.data.reading.encoded import EncodedImages, FileSource, Source, TableSource, verify
from maep.data.reading.shards import File, FolderShards, Shards
from maep.errors import DataError

IMAGE_SIZE = 224
NUM_CLASSES = 1000
SPLIT_SEED = 20240607


def load(root: Path, split: Split, max_corrupt: int = 0, image_size: int = IMAGE_SIZE) -> ImageSet:
    """The split, uint8 [N, image_size, image_size, 3] on access. Raises DataError when missing, empty or damaged.

    Every image's header and end are read here, and whatever looks damaged is decoded, so that a truncated file is named
    now and not after hours of training.
    """
    part = "train" if split == "train" else "val"
    folder = root / "imagenet"
    files = parquet.find([folder, root / "imagenet_slice"], part)
    if files:
        _refuse_unlike_manifest(files[0].parent, part)
        source, labels, indices, lossless, classes = _from_rows(parquet.read(files))
        where = str(files[0].parent)
    elif (folder / part).is_dir():
        source, labels, indices, lossless, classes = _from_folder(folder, part)
        where = str(folder / part)
    else:
        raise DataError(
            f"no ImageNet ({part}) in {folder} or {root / 'imagenet_slice'}: set $MAEP_DATA or --data.root to the "
            f"folder that holds imagenet/, with {part}*.parquet or {part}/SYNSET/*.JPEG in it"
        )
    if len(np.unique(indices)) < len(indices):
        raise DataError(f"{where}: the column index names an image twice: number the rows of all files without repeats")
    mine = np.flatnonzero(of_split(indices, split))
    reasons = _reasons(source, labels, mine, len(classes))
    corrupt = tuple(f"{source.place(int(row))}: {reason}" for row, reason in zip(mine, reasons, strict=True) if reason)
    refuse_corrupt(corrupt, max_corrupt, where)
    kept = mine[np.array([not reason for reason in reasons], dtype=np.bool_)]
    if not len(kept):
        raise DataError(f"{where}: no image of the split {split}: set $MAEP_DATA or --data.root to a filled folder")
    return ImageSet(
        name="imagenet",
        split=split,
        images=EncodedImages(source, kept, image_size),
        labels=labels[kept],
        indices=indices[kept],
        classes=classes,
        lossless=lossless[kept],
        corrupt=corrupt,
    )


def train_shards(root: str, files: str | None = None, timeout_s: float = 60.0) -> Shards:
    """What is trained on, to be streamed: the part train, or the Parquet files of pattern `files` (below `root`).

    `root` may be s3://; a read from there may take `timeout_s`. Images are not looked at before they come.
    Raises DataError when there are none or a file is damaged, UnavailableError where S3 does not give them.
    """
    if files is None:
        return _part_shards(root, "train", timeout_s)
    path = PurePosixPath(files)
    folder = storage.join(root, *path.parts[:-1])
    found = shards.listing(folder, timeout_s, path.name)
    if not found:
        raise DataError(f"data.train_files: no file {files} in {root}")
    return shards.open_parquet("imagenet", class_names(), folder, found, timeout_s)


def first_of_dev(root: str, count: int, image_size: int = IMAGE_SIZE, timeout_s: float = 60.0) -> NDArray[np.uint8]:
    """The first images of dev, for a picture: uint8 [n, image_size, image_size, 3], n <= `count`.

    `root` may be s3://: only the groups that they lie in are read, and of these no image of test is decoded. Corrupt
    ones are passed over. Raises as `train_shards` does, and DataError where there are none.
    """
    return first_of(_part_shards(root, "val", timeout_s), "dev", count, image_size)


def first_of(source: Shards, split: Split, count: int, image_size: int) -> NDArray[np.uint8]:
    """The first images of a split in the shards of its part, as `first_of_dev` gives them."""
    found: list[NDArray[np.uint8]] = []
    for group in range(len(source.sizes)):
        rows = source.read(group)
        for row in np.flatnonzero(of_split(rows.indices, split)):
            with suppress(Undecodable):
                found.append(decode_centre(rows.images[row], image_size))
            if len(found) == count:
                return np.stack(found)
    if not found:
        raise DataError(f"{source.place(0, 0)}: neither this image nor any other of {split} can be decoded")
    return np.stack(found)


def _part_shards(root: str, part: str, timeout_s: float) -> Shards:
    """All of the part train or val, wherever below `root` it lies."""
    folders = [storage.join(root, name) for name in ("imagenet", "imagenet_slice")]
    for folder in folders:
        found = shards.listing(folder, timeout_s, f"{part}*.parquet")
        if found:
            text = shards.read_manifest(folder, timeout_s, part)
            if text is not None:
                manifest.refuse_unlike(text, folder, {file.name: file.size for file in found})
            return shards.open_parquet("imagenet", class_names(), folder, found, timeout_s)
    inside = storage.join(folders[0], part)
    found = [file for file in shards.listing(inside, timeout_s, recursive=True) if _is_image(file)]
    if found:
        return _folder_shards(inside, found, timeout_s)
    raise DataError(
        f"no ImageNet ({part}) in {' or '.join(folders)}: set $MAEP_DATA or --data.root to the folder that holds"
        f" imagenet/, with {part}*.parquet or {part}/SYNSET/*.JPEG in it"
        + (", or name other files by --data.train_files" if part == "train" else "")
    )


def _refuse_unlike_manifest(folder: Path, part: str) -> None:
    path = folder / manifest.name_of(part)
    if path.is_file():
        found = {file.name: file.stat().st_size for file in folder.glob("*.parquet")}
        manifest.refuse_unlike(path.read_bytes(), str(folder), found)


def _is_image(file: File) -> bool:
    path = PurePosixPath(file.name)
    return len(path.parts) == 2 and path.suffix.lower() in SUFFIXES


def _folder_shards(root: str, found: list[File], timeout_s: float) -> FolderShards:
    names = label_order(sorted({file.name.partition("/")[0] for file in found}))
    number = {name: k for k, name in enumerate(names)}
    return FolderShards(
        name="imagenet",
        classes=tuple(names),
        root=root,
        files=tuple(file.name for file in found),
        labels=np.array([number[file.name.partition("/")[0]] for file in found], dtype=np.int64),
        indices=np.array([index_of(file.name) for file in found], dtype=np.int64),
        fingerprint=hashlib.sha256(repr([(file.name, file.size) for file in found]).encode()).hexdigest(),
        timeout_s=timeout_s,
    )


@functools.cache
def class_names() -> tuple[str, ...]:
    """The 1,000 names in label order."""
    from torchvision.models import SqueezeNet1_0_Weights  # slow to import

    return tuple(SqueezeNet1_0_Weights.IMAGENET1K_V1.meta["categories"])


def of_split(indices: NDArray[np.int64], split: Split) -> NDArray[np.bool_]:
    """Bool [N]: which indices of the split's file belong to `split`."""
    if split == "train":
        return np.ones(len(indices), dtype=np.bool_)
    draws = seeding.draws(seeding.mix(SPLIT_SEED), torch.from_numpy(indices)).numpy().view(np.uint64)
    is_dev: NDArray[np.bool_] = draws % np.uint64(9) < 2
    return is_dev if split == "dev" else ~is_dev


Found = tuple[Source, NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], tuple[str, ...]]


def _from_rows(rows: parquet.Rows) -> Found:
    indices = np.arange(len(rows), dtype=np.int64) if rows.indices is None else rows.indices
    return TableSource(rows), rows.labels, indices, rows.lossless, class_names()


def _from_folder(folder: Path, part: str) -> Found:
    # Both parts together say which classes there are: val may lack one that train has.
    classes = sorted({d.name for each in ("train", "val") if (folder / each).is_dir() for d in _folders(folder / each)})
    names = label_order(classes)
    number = {name: k for k, name in enumerate(names)}
    paths: list[Path] = []
    labels: list[int] = []
    for subfolder in sorted(_folders(folder / part)):
        found = sorted(file for file in subfolder.iterdir() if file.suffix.lower() in SUFFIXES)
        paths += found
        labels += [number[subfolder.name]] * len(found)
    source = FileSource(tuple(paths), folder / part)
    indices = np.array([index_of(source.place(row)) for row in range(len(paths))], dtype=np.int64)
    return source, np.array(labels, dtype=np.int64), indices, np.ones(len(paths), dtype=np.bool_), tuple(names)


def index_of(name: str) -> int:
    """The official index of a file SYNSET/NAME: a hash, in [0, 2**63)."""
    # Not its position: a removed file would move every later image to another index, and some from test to dev.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]


def label_order(classes: list[str]) -> list[str]:
    """The folder names in label order: all of ImageNet-1k's for a part of them, so that its classifiers still fit."""
    if len(classes) == NUM_CLASSES:
        return classes
    official = synsets()
    return official if set(classes) <= set(official) else classes


def synsets() -> list[str]:
    """ImageNet-1k's 1,000 synsets in label order."""
    from timm.data import ImageNetInfo

    official: list[str] = ImageNetInfo("imagenet-1k").label_names()
    return official


def _reasons(source: Source, labels: NDArray[np.int64], rows: NDArray[np.int64], num_classes: int) -> list[str]:
    """For each row why it cannot be used, '' where it can."""

    def reason(row: int) -> str:
        if not 0 <= labels[row] < num_classes:
            return f"label {labels[row]} is not in 0..{num_classes - 1}"
        return _reason_of(lambda: verify(source, row))

    with ThreadPoolExecutor(max_workers=16) as pool:  # reading is what takes the time
        return list(pool.map(reason, map(int, rows)))


def _reason_of(check: Callable[[], None]) -> str:
    try:
        check()
    except Undecodable as error:
        return str(error)
    return ""
