"""Fetches a data set, for `maep data get NAME`."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maep import registry
from maep.data.reading.decoding import encode_png
from maep.data.reading.parquet import find_parquet
from maep.data.sets.cifar10 import BATCHES, CLASSES
from maep.errors import DataError, UnavailableError

NUM_TRAIN_PARTS = 5
ROWS_PER_GROUP = 1_000


def get(name: str, root: Path) -> Path:
    """Fetches data set `name` to `root`, unless it is there already. Returns the folder that holds it.

    cifar10 is downloaded by torchvision (which checks the official md5 sums) and kept as Parquet; digits needs nothing.
    Raises ConfigError for an unknown name, DataError for a data set that cannot be downloaded, UnavailableError if a
    download fails.
    """
    match name:
        case "cifar10":
            return _cifar10(root)
        case "digits":
            return root  # comes with scikit-learn
        case "imagenet":
            raise DataError(
                "imagenet must be downloaded by hand, after accepting its terms at image-net.org: then put "
                f"train/SYNSET/*.JPEG and val/SYNSET/*.JPEG (or train*.parquet, val*.parquet) into {root / 'imagenet'}"
            )
    registry.datasets.require([name], "data set")
    raise DataError(f"maep cannot fetch {name}: put its files where the package that provides it looks for them")


def _cifar10(root: Path) -> Path:
    folder = root / "cifar10"
    if _is_complete(folder):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder, prefix=".download-"))
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        for official in ("train", "test"):
            write_cifar10(*_official(work, folder, official), official, work)
        for file in sorted(work.glob("*.parquet")):
            os.replace(file, folder / file.name)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def write_cifar10(images: NDArray[np.uint8], labels: NDArray[np.int64], official: str, folder: Path) -> None:
    """Writes `train-K-of-5.parquet` or `test.parquet`: columns image (PNG bytes), label, index, lossless.

    images uint8 [N, H, W, 3] and labels int64 [N], in official order.
    """
    num_parts = NUM_TRAIN_PARTS if official == "train" else 1
    parts = np.array_split(np.arange(len(images), dtype=np.int64), num_parts)
    for k, indices in enumerate(parts):
        table = pa.table(
            {
                "image": pa.array([encode_png(images[i]) for i in indices], type=pa.binary()),
                "label": pa.array(labels[indices]),
                "index": pa.array(indices),
                "lossless": pa.array(np.ones(len(indices), dtype=np.bool_)),
            }
        )
        name = f"{official}-{k}-of-{num_parts}.parquet" if num_parts > 1 else f"{official}.parquet"
        pq.write_table(table, folder / name, row_group_size=ROWS_PER_GROUP, compression="none")  # PNG is compressed


def _unwritable(folder: Path, error: OSError) -> DataError:
    reason = error.strerror or error
    return DataError(f"cannot write to {folder} ({reason}): give a folder with 500 MB free by --data.root")


def _is_complete(folder: Path) -> bool:
    try:
        return all(find_parquet("cifar10", CLASSES, [str(folder)], official) for official in ("train", "test"))
    except DataError:  # a part is missing: an earlier call was interrupted
        return False


def _official(work: Path, folder: Path, official: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from torchvision.datasets import CIFAR10

    target = folder if (folder / BATCHES).is_dir() else work  # torchvision downloads only what is missing there
    try:
        source = CIFAR10(str(target), train=official == "train", download=True)
    except (URLError, TimeoutError, ConnectionError, RuntimeError) as error:
        raise UnavailableError(
            f"cannot download CIFAR-10 ({' '.join(str(error).split())}): check the network, or put its Parquet files "
            f"or cifar-10-batches-py into {folder} by hand"
        ) from None
    return source.data, np.asarray(source.targets, dtype=np.int64)
