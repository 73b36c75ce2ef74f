"""Packs ImageNet's archives into Parquet shards, for `maep data pack`.

  <root>/imagenet/train-00000-of-00512.parquet ...  columns image (the original bytes), label, index, synset, name
  <root>/imagenet/train-manifest.json               the plan, and for each shard rows, size, sha256, images left out

A hash of name and seed decides the position of an image among all rows. So each shard and each row group is a random
sample of the whole, and a folder and a tar of the same images give the same bytes. Finished shards stay in a work
folder until all are done, so `<root>/imagenet` is always complete. The work folder records them, so that a killed run
resumes.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maep import storage
from maep.data.image_set import corrupt_images
from maep.data.pack.archive import Tick
from maep.data.pack.plan import ROWS_PER_GROUP, PackPlan
from maep.data.reading.class_folder import index_of
from maep.data.reading.decoding import Undecodable, verify
from maep.errors import DataError, WriteError, few

T = TypeVar("T")
Read = Callable[[int], bytes]
"""Row of an archive -> the bytes of the image."""
SCHEMA, KIND, RECORD = 1, "imagenet-shards", "packed.json"
NUM_READERS = 16
"""Threads that read and check images; on a network file system they mostly wait."""
COLUMNS = pa.schema(
    {"image": pa.binary(), "label": pa.int64(), "index": pa.int64(), "synset": pa.string(), "name": pa.string()}
)


@dataclass(frozen=True)
class PackedShard:
    """One finished file: rows, size in bytes, hex sha256, and one line per image left out.

    corrupt      images that do not decode
    unsupported  sound images that the pixel rule refuses: ImageNet-1k has 22 in CMYK
    """

    rows: int
    size: int
    sha256: str
    corrupt: tuple[str, ...]
    unsupported: tuple[str, ...] = ()


PackedShards = dict[str, PackedShard]
"""By file name."""


def pack(plan: PackPlan, max_corrupt: int = 0, tick: Tick | None = None) -> PackedShards:
    """Makes the missing shards, then the manifest. Returns all shards.

    It checks the header and the end of every image, and decodes those that look damaged. Corrupt and unsupported images
    are left out. It holds one row group in memory. If more than `max_corrupt` images are corrupt, it raises DataError
    at the end and keeps the shards, so that a run with a higher limit need not read the images again. Also raises
    DataError if the folder holds another packing, WriteError for a disk that is full or not writable, UnavailableError
    while another process packs into the same folder.
    """
    _refuse_others(plan)
    try:
        plan.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot write to {plan.folder}: {error.strerror}: choose another --root") from None
    with storage.lock_folder(plan.work):
        pace = _Pace(len(plan.archive), tick)
        done = _resume(plan, pace)
        _refuse_full_disk(plan, done)
        pace.start()
        with plan.archive.reader() as read, ThreadPoolExecutor(NUM_READERS) as pool:
            for name in plan.shards:
                if name not in done:
                    done[name] = _make(plan, name, read, pool, pace)
                    _write_record(plan.work / RECORD, plan, done)
        shards = {name: done[name] for name in plan.shards}
        _refuse_corrupt(plan, shards, max_corrupt)
        _publish(plan, shards)
    return shards


def left_out(shards: Mapping[str, PackedShard]) -> list[str]:
    """One line per image that is in no shard: SYNSET/NAME: reason."""
    return sorted(line for shard in shards.values() for line in (*shard.corrupt, *shard.unsupported))


class _Pace:
    """Reports to `tick` the number of images done, and the time left at the rate since `start`."""

    def __init__(self, total: int, tick: Tick | None) -> None:
        self._total, self._tick = total, tick
        self._done = self._before = 0
        self._since: float | None = None

    def start(self) -> None:
        self._before, self._since = self._done, time.monotonic()

    def add(self, num: int) -> None:
        self._done += num
        eta = None
        if self._since is not None:
            eta = (time.monotonic() - self._since) / (self._done - self._before) * (self._total - self._done)
        if self._tick is not None:
            self._tick(self._done, self._total, eta)


def _make(plan: PackPlan, name: str, read: Read, pool: ThreadPoolExecutor, pace: _Pace) -> PackedShard:
    """Writes one shard."""
    corrupt: list[str] = []
    unsupported: list[str] = []
    num_rows = 0
    rows = plan.shards[name]
    with storage.atomic_file(plan.work / name) as file, _writer(file) as writer:
        for group in np.split(rows, range(ROWS_PER_GROUP, len(rows), ROWS_PER_GROUP)):
            images = list(pool.map(lambda row: _load(read, row), map(int, group)))
            for row, refusal in _pairs(group, images, Undecodable):
                lines = unsupported if refusal.code == "unsupported-image" else corrupt
                lines.append(f"{plan.archive.name(row)}: {refusal}")
            good = _pairs(group, images, bytes)
            if good:
                writer.write_table(_table(plan, good))
            num_rows += len(good)
            pace.add(len(group))
    if not num_rows:
        raise DataError(
            f"{plan.archive.source}: none of {len(rows):,} images can be used: {few(corrupt + unsupported)}"
        )
    written = plan.work / name
    return PackedShard(
        num_rows, written.stat().st_size, storage.sha256_file(written), tuple(corrupt), tuple(unsupported)
    )


def _writer(file: BinaryIO) -> pq.ParquetWriter:
    # JPEG is compressed and no two images are equal, so neither compression nor a dictionary helps.
    return pq.ParquetWriter(
        file, COLUMNS, compression="none", use_dictionary=False, write_statistics=["label", "index"]
    )


def _table(plan: PackPlan, images: Sequence[tuple[int, bytes]]) -> pa.Table:
    names = [plan.archive.name(row) for row, _ in images]
    return pa.table(
        {
            "image": [image for _, image in images],
            "label": [plan.labels[plan.archive.synsets[row]] for row, _ in images],
            "index": [index_of(name) for name in names],
            "synset": [plan.archive.synsets[row] for row, _ in images],
            "name": [name.partition("/")[2] for name in names],
        },
        COLUMNS,
    )


def _load(read: Read, row: int) -> bytes | Undecodable:
    """The bytes of an image, or why it cannot be used."""
    try:
        data = read(row)
        verify(data)
    except OSError as error:
        return Undecodable(f"cannot be read: {error.strerror}")
    except Undecodable as refusal:
        return refusal
    return data


def _resume(plan: PackPlan, pace: _Pace) -> PackedShards:
    """The shards of an earlier run that match its record. Raises DataError if it had another plan."""
    recorded: dict[str, dict[str, Any]] = {}
    for record in (plan.manifest, plan.work / RECORD):  # the second holds shards that were remade after publication
        held = _read_json(record)
        begun = held.get("plan", plan.identity)
        if begun != plan.identity:
            differ = ", ".join(
                f"{key} {begun.get(key)}" for key in plan.identity if begun.get(key) != plan.identity[key]
            )
            raise DataError(
                f"{plan.folder}: {plan.part} was packed with {differ}: give the same again, or remove "
                f"{record if record == plan.manifest else plan.work}"
            )
        recorded |= held.get("files", {})
    for torn in plan.work.glob(".*.parquet.*"):  # left by a killed run
        torn.unlink()
    kept = {}
    for name, rows in plan.shards.items():
        file = _place(plan, name)
        if name not in recorded or not file.exists():
            continue
        entry = recorded[name]
        lines = tuple(entry["corrupt"]), tuple(entry.get("unsupported", ()))
        shard = PackedShard(entry["rows"], entry["size"], entry["sha256"], *lines)
        if file.stat().st_size == shard.size and storage.sha256_file(file) == shard.sha256:
            kept[name] = shard
            pace.add(len(rows))
    _write_record(plan.work / RECORD, plan, kept)
    return kept


def _refuse_others(plan: PackPlan) -> None:
    """Raises DataError for files of another packing, because loaders read every PART*.parquet of the folder."""
    others = sorted({file.name for file in plan.folder.glob(f"{plan.part}*.parquet")} - set(plan.shards))
    if others:
        raise DataError(
            f"{plan.folder} holds {others[0]}, which is not of this packing ({plan.num_shards} shards): remove it, or "
            "choose another --root"
        )


def _refuse_full_disk(plan: PackPlan, done: PackedShards) -> None:
    """Raises WriteError at the start if the disk has no room for the missing shards."""
    needed = sum(int(plan.archive.sizes[rows].sum()) for name, rows in plan.shards.items() if name not in done)
    free = shutil.disk_usage(plan.work).free
    if needed > free:
        raise WriteError(
            f"{plan.folder}: the shards need {needed / 1e9:,.2f} GB, {free / 1e9:,.2f} GB are free: free some space, "
            "or choose another --root"
        )


def _refuse_corrupt(plan: PackPlan, shards: PackedShards, max_corrupt: int) -> None:
    lines = sorted(line for shard in shards.values() for line in shard.corrupt)
    if len(lines) > max_corrupt:
        raise DataError(
            f"{plan.archive.source}: {corrupt_images(lines)}: leave them out with --max-corrupt {len(lines)}, which "
            f"takes no second reading, or repair them and remove {plan.work}"
        )


def _publish(plan: PackPlan, shards: PackedShards) -> None:
    """Moves the shards to the folder that loaders read, then writes the manifest."""
    for name in shards:
        if (plan.work / name).exists():
            os.replace(plan.work / name, plan.folder / name)
    _write_record(plan.manifest, plan, shards)
    shutil.rmtree(plan.work)


def _place(plan: PackPlan, name: str) -> Path:
    """Path of a finished shard; a remade one takes precedence over the published one."""
    beside = plan.work / name
    return beside if beside.exists() else plan.folder / name


def _write_record(path: Path, plan: PackPlan, shards: PackedShards) -> None:
    """Writes the manifest, or in the work folder the record of finished shards."""
    files = {name: asdict(shard) for name, shard in shards.items()}
    images = sum(shard.rows for shard in shards.values())
    record = {"schema": SCHEMA, "kind": KIND, "images": images, "plan": plan.identity, "files": files}
    storage.write_bytes(path, (json.dumps(record, indent=2) + "\n").encode())


def _read_json(file: Path) -> dict[str, Any]:
    """A record; {} if it is missing or damaged."""
    try:
        held = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _pairs(rows: NDArray[np.int64], images: Sequence[bytes | Undecodable], kind: type[T]) -> list[tuple[int, T]]:
    return [(int(row), image) for row, image in zip(rows, images, strict=True) if isinstance(image, kind)]
