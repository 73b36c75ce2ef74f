"""`maep data pack` on 10,000 JPEGs as ILSVRC2012 comes, a tar of a thousand tars: its rate, its memory, and kill -9."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from processes import memory_mib

from maep.data.pack.build import RECORD
from maep.data.sets.imagenet import synsets

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PER_CLASS, SHARDS, KILL_AT, DEADLINE_S = 10, 40, 10, 600
NUM = 1000 * PER_CLASS


def jpegs(count: int) -> list[bytes]:
    """Different ones, about 5 kB each."""
    made = []
    for pixels in np.random.default_rng(0).integers(0, 256, (count, 64, 80, 3), dtype=np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        made.append(buffer.getvalue())
    return made


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """SYNSET.tar of SYNSET_NUMBER.JPEG; the images of a class are all different."""
    images, path = jpegs(97), tmp_path / "ILSVRC2012_img_train.tar"
    with tarfile.open(path, "w") as whole:
        for label, synset in enumerate(synsets()):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for k in range(PER_CLASS):
                    add(tar, f"{synset}_{k}.JPEG", images[(label * PER_CLASS + k) % len(images)])
            add(whole, f"{synset}.tar", inner.getvalue())
    return path


Reading = tuple[int, float, float]
"""Shards that are finished, seconds since the first was seen, MiB of the process."""


def recorded(work: Path) -> list[str]:
    """The shards that a run has finished so far."""
    record = work / RECORD
    return list(json.loads(record.read_bytes())["files"]) if record.exists() else []


def packing(source: Path, root: Path, until: Callable[[int], bool]) -> tuple[int, str, list[Reading]]:
    """Runs the command, killing it once `until` of the finished shards; its status, its answer, and what was seen."""
    line = ["data", "pack", "imagenet", "--source", str(source), "--root", str(root), "--shards", str(SHARDS), "--json"]
    work, seen, began = root / "imagenet" / ".train-packing", list[Reading](), time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "maep_jobs.cli", *line], stdout=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None:
                assert time.monotonic() < began + DEADLINE_S
                finished = len(recorded(work))
                if finished:
                    seen.append((finished, time.monotonic() - began, memory_mib(process.pid)))
                if until(finished):
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.005)  # between two looks
            said = process.communicate(timeout=60)[0]
        finally:
            process.kill()
    return process.returncode, said, seen


def test_packing_ten_thousand_images_is_bounded_in_memory_and_survives_a_kill(source: Path, tmp_path: Path) -> None:
    root, folder = tmp_path / "data", tmp_path / "data" / "imagenet"
    status, _, _ = packing(source, root, lambda finished: finished >= KILL_AT)
    assert status == -signal.SIGKILL
    assert list(folder.glob("*.parquet")) == []  # no loader takes a part for the whole
    work = folder / ".train-packing"
    finished = {name: (work / name).stat().st_mtime_ns for name in recorded(work)}
    assert KILL_AT <= len(finished) < SHARDS

    status, said, seen = packing(source, root, lambda finished: False)
    assert status == 0
    told = json.loads(said)
    assert (told["images"], told["shards"], told["corrupt"]) == (NUM, SHARDS, 0)
    assert {name: (folder / name).stat().st_mtime_ns for name in finished} == finished  # not made again
    rows = [row for file in sorted(folder.glob("train-*.parquet")) for row in _named(file)]
    assert len(rows) == len(set(rows)) == NUM

    (first, began, _), (last, ended, _) = seen[0], seen[-1]
    rate = (last - first) * NUM / SHARDS / (ended - began)
    early = max(mib for done, _, mib in seen if done < SHARDS / 2)
    most = max(mib for _, _, mib in seen)
    print(f"{rate:,.0f} images/s; {early:.0f} MiB until half was done, {most:.0f} at most; {first} shards were kept")
    assert most <= 1.05 * early


def _named(file: Path) -> list[str]:
    table = pq.read_table(file, columns=["synset", "name", "label", "image"])
    assert all(data.startswith(b"\xff\xd8") for data in table["image"].to_pylist())
    return [
        f"{synset}/{name}" for synset, name in zip(table["synset"].to_pylist(), table["name"].to_pylist(), strict=True)
    ]
