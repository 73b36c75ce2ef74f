"""`maep data pack`: the forms ImageNet comes in, what the loader then reads, and a run that is cut off."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from disk import mounted
from PIL import Image

from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.data.pack.archive import open_archive
from maep.data.pack.build import left_out, pack
from maep.data.pack.plan import ROWS_PER_GROUP, PackPlan, plan_pack
from maep.errors import ConfigError, DataError, UnavailableError, WriteError
from maep.storage import lock_folder

SYNSETS = ("n01440764", "n01443537", "n15075141")  # labels 0, 1 and 999
NUM = 90
Files = dict[str, bytes]


@pytest.fixture
def files(noise: Any, encode: Any) -> Files:
    """SYNSET/NAME.JPEG -> bytes: thirty images of each of three classes."""
    return {f"{SYNSETS[k % 3]}/{k:03}.JPEG": encode(each, "JPEG") for k, each in enumerate(noise(NUM, 30, 40))}


def in_folder(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def official_tar(files: Files) -> bytes:
    """A tar of SYNSET.tar, each of NAME.JPEG."""
    inner = {synset: {n.partition("/")[2]: d for n, d in files.items() if n.startswith(synset)} for synset in SYNSETS}
    return tar({f"{synset}.tar": tar(part) for synset, part in inner.items()})


def planned(source: Path, root: Path, **changes: Any) -> PackPlan:
    return plan_pack(open_archive(source), root, **{"part": "train", "num_shards": 3, **changes})


def packed(folder: Path) -> Files:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_loader_reads_what_was_packed(tmp_path: Path, files: Files) -> None:
    root = tmp_path / "data"
    shards = pack(planned(in_folder(tmp_path / "raw", files), root))
    config = DataConfig("imagenet", str(root), image_size=28)
    train = load(config, "train")
    in_folder(tmp_path / "plain" / "imagenet" / "train", files)
    plain = load(DataConfig("imagenet", str(tmp_path / "plain"), image_size=28), "train")
    where = {int(index): k for k, index in enumerate(plain.indices)}
    order = [where[int(index)] for index in train.indices]
    assert sorted(order) == list(range(NUM))
    assert (train.labels == plain.labels[order]).all()
    assert set(train.labels) == {0, 1, 999}
    assert (train.pixels(np.arange(NUM)) == plain.pixels(order)).all()
    for name, shard in shards.items():
        table = pq.read_table(root / "imagenet" / name)
        assert shard.rows == len(table) == 30
        assert table.schema.names == ["image", "label", "index", "synset", "name"]
        for row in table.to_pylist():
            assert row["image"] == files[f"{row['synset']}/{row['name']}"]


def test_shards_and_row_groups_are_random_samples(tmp_path: Path, files: Files) -> None:
    root = tmp_path / "data"
    pack(planned(in_folder(tmp_path / "raw", files), root, num_shards=1))
    file = pq.ParquetFile(root / "imagenet" / "train-00000-of-00001.parquet")
    groups = [file.read_row_group(k)["label"].to_pylist() for k in range(file.num_row_groups)]
    assert [len(group) for group in groups] == [ROWS_PER_GROUP, ROWS_PER_GROUP, NUM - 2 * ROWS_PER_GROUP]
    assert all(set(group) == {0, 1, 999} for group in groups)
    assert all(file.metadata.row_group(0).column(k).compression == "UNCOMPRESSED" for k in range(5))
    other = planned(tmp_path / "raw", tmp_path / "other", num_shards=1, seed=1)
    assert not (
        other.shards["train-00000-of-00001.parquet"]
        == planned(tmp_path / "raw", root, num_shards=1).shards["train-00000-of-00001.parquet"]
    ).all()


@pytest.mark.parametrize("form", [official_tar, tar, lambda files: tar({f"./train/{n}": d for n, d in files.items()})])
def test_a_tar_makes_the_same_bytes_as_the_folder(tmp_path: Path, files: Files, form: Callable[[Files], bytes]) -> None:
    pack(planned(in_folder(tmp_path / "raw", files), tmp_path / "a"))
    (tmp_path / "raw.tar").write_bytes(form(dict(reversed(files.items()))))
    pack(planned(tmp_path / "raw.tar", tmp_path / "b"))
    assert packed(tmp_path / "a" / "imagenet") == packed(tmp_path / "b" / "imagenet")


def test_the_flat_validation_images_take_their_synsets_from_a_file(tmp_path: Path, files: Files) -> None:
    flat = {name.partition("/")[2]: data for name, data in files.items()}
    (tmp_path / "val.tar").write_bytes(tar(flat))
    in_folder(tmp_path / "val", flat)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(SYNSETS[k % 3] for k in range(NUM)) + "\n")
    for source in ("val.tar", "val"):
        with pytest.raises(DataError, match=r"000\.JPEG, .*87 .*--labels"):
            open_archive(tmp_path / source)
        archive = open_archive(tmp_path / source, labels)
        assert {archive.name(row) for row in range(NUM)} == set(files)
        pack(plan_pack(archive, tmp_path / "data", "val", 2))
    loaded = [load(DataConfig("imagenet", str(tmp_path / "data"), image_size=28), each) for each in ("dev", "test")]
    assert sum(map(len, loaded)) == NUM
    labels.write_text("490\n361\n")
    with pytest.raises(DataError, match=r"labels\.txt: .*n01440764"):
        open_archive(tmp_path / "val", labels)
    labels.write_text(SYNSETS[0])
    with pytest.raises(DataError, match=r"labels\.txt: 1 .*90"):
        open_archive(tmp_path / "val", labels)


KILLED = """
import os, signal, sys
from pathlib import Path
from maep.data.pack.archive import open_archive
from maep.data.pack.build import pack
from maep.data.pack.plan import plan_pack

def tick(done, total, eta):
    if done >= 60:
        os.kill(os.getpid(), signal.SIGKILL)

source, root = map(Path, sys.argv[1:])
pack(plan_pack(open_archive(source), root, "train", 5), tick=tick)
"""


def test_killed_run_resumes_to_the_same_bytes(tmp_path: Path, files: Files) -> None:
    source, root = in_folder(tmp_path / "raw", files), tmp_path / "data"
    done = subprocess.run([sys.executable, "-c", KILLED, str(source), str(root)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = root / "imagenet"
    assert list(folder.glob("*.parquet")) == []  # no loader takes a part for the whole
    work = folder / ".train-packing"
    finished = {file.name: file.stat().st_mtime_ns for file in work.glob("train*.parquet")}
    assert len(finished) == 3
    assert len(list(work.glob(".train*"))) == 1  # the one that it was writing
    with pytest.raises(DataError, match=r"seed 0.*packing"):
        pack(planned(source, root, num_shards=5, seed=1))
    damaged = work / sorted(finished)[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    ticks: list[int] = []
    pack(planned(source, root, num_shards=5), tick=lambda done, total, eta: ticks.append(done))
    assert ticks == [18, 36, 54, 72, 90]
    kept = {file.name for file in folder.glob("*.parquet") if file.stat().st_mtime_ns == finished.get(file.name)}
    assert kept == set(finished) - {damaged.name}
    pack(planned(source, tmp_path / "whole", num_shards=5))
    assert packed(folder) == packed(tmp_path / "whole" / "imagenet")


def test_finished_packing_is_verified_and_repaired(tmp_path: Path, files: Files) -> None:
    source, folder = in_folder(tmp_path / "raw", files), tmp_path / "data" / "imagenet"
    shards = pack(planned(source, tmp_path / "data"))
    before = packed(folder)
    manifest = json.loads(before["train-manifest.json"])
    assert manifest["images"] == NUM
    assert manifest["files"].keys() == shards.keys()
    (folder / "train-00001-of-00003.parquet").write_bytes(b"PAR1")
    assert pack(planned(source, tmp_path / "data")) == shards
    assert packed(folder) == before
    with pytest.raises(DataError, match=r"train-00000-of-00003\.parquet"):
        pack(planned(source, tmp_path / "data", num_shards=2))


def test_damaged_images_are_named_and_left_out_when_that_is_allowed(tmp_path: Path, files: Files) -> None:
    names = sorted(files)
    bad = {names[0]: b"", names[40]: files[names[40]][:300], names[80]: b"<html>404</html>\xff\xd9"}
    source = in_folder(tmp_path / "raw", files | bad)
    with pytest.raises(DataError) as caught:
        pack(planned(source, tmp_path / "data"), max_corrupt=2)
    for word in ("3 corrupt", names[0], names[80], "--max-corrupt 3"):
        assert word in str(caught.value)
    assert list((tmp_path / "data" / "imagenet").glob("train*")) == []
    shards = pack(planned(source, tmp_path / "data"), max_corrupt=3)
    assert [line.partition(":")[0] for line in left_out(shards)] == [names[0], names[40], names[80]]
    assert len(load(DataConfig("imagenet", str(tmp_path / "data"), image_size=28), "train")) == NUM - 3


def test_an_image_in_cmyk_is_left_out_and_reported(tmp_path: Path, files: Files) -> None:
    """ImageNet-1k has 22: sound files, but none that the pixel rule takes."""
    buffer = io.BytesIO()
    Image.new("CMYK", (30, 40)).save(buffer, "JPEG")
    name = sorted(files)[0]
    source = in_folder(tmp_path / "raw", files | {name: buffer.getvalue()})
    shards = pack(planned(source, tmp_path / "data"))
    assert [line.partition(":")[0] for line in left_out(shards)] == [name]
    assert sum(shard.rows for shard in shards.values()) == NUM - 1
    assert pack(planned(source, tmp_path / "data")) == shards


def test_image_that_disappears_is_named(tmp_path: Path, files: Files) -> None:
    source = in_folder(tmp_path / "raw", files)
    plan = planned(source, tmp_path / "data")
    (source / "n01440764" / "000.JPEG").unlink()
    with pytest.raises(DataError, match=r"1 corrupt .*n01440764/000\.JPEG"):
        pack(plan)


def test_invalid_sources_are_refused(tmp_path: Path, files: Files) -> None:
    with pytest.raises(DataError, match="missing"):
        open_archive(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty.*jpeg"):
        open_archive(tmp_path / "empty")
    whole = official_tar(files)
    for data in (b"", b"not a tar" * 200, whole[: len(whole) // 2]):
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(DataError, match=r"x\.tar"):
            open_archive(tmp_path / "x.tar")
    with pytest.raises(DataError, match=r"cats, dogs"):
        planned(in_folder(tmp_path / "pets", {"cats/a.jpg": b"x", "dogs/a.jpg": b"x"}), tmp_path)
    (tmp_path / "twice.tar").write_bytes(tar({f"{k}/{name}": data for k in "ab" for name, data in files.items()}))
    with pytest.raises(DataError, match=r"n01440764/000\.JPEG, .* 87 "):
        open_archive(tmp_path / "twice.tar")
    for shards in (0, NUM + 1):
        with pytest.raises(ConfigError, match=rf"--shards {shards}"):
            planned(in_folder(tmp_path / "raw", files), tmp_path, num_shards=shards)


def test_concurrent_runs_are_refused(tmp_path: Path, files: Files) -> None:
    plan = planned(in_folder(tmp_path / "raw", files), tmp_path / "data")
    with lock_folder(plan.work), pytest.raises(UnavailableError, match=str(plan.work)):
        pack(plan)


def test_full_disk_is_a_one_line_error_and_resumes(tmp_path: Path, files: Files) -> None:
    source = in_folder(tmp_path / "raw", files)
    with mounted(tmp_path / "small", "size=1m") as root:
        filler = root / "filler"
        filler.write_bytes(bytes(1_000_000))
        with pytest.raises(WriteError, match=" GB"):
            pack(planned(source, root))
        filler.unlink()

        def fill(done: int, total: int, eta: float | None) -> None:
            """Once a shard is finished, somebody else takes all the room that is left."""
            if done > 30:
                with suppress(OSError), filler.open("ab", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))

        with pytest.raises(WriteError, match=r"train-00001"):
            pack(planned(source, root), tick=fill)
        filler.unlink()
        pack(planned(source, root))
        assert len(load(DataConfig("imagenet", str(root), image_size=28), "train")) == NUM


def test_unwritable_root_is_named(tmp_path: Path, files: Files) -> None:
    source = in_folder(tmp_path / "raw", files)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match=r"file/imagenet.*--root"):
        pack(planned(source, tmp_path / "file"))
    with mounted(tmp_path / "fixed", "ro") as root, pytest.raises(WriteError, match="fixed"):
        pack(planned(source, root))
    assert os.listdir(tmp_path / "fixed") == []


def test_tar_member_of_negative_size_is_a_one_line_error(tmp_path: Path) -> None:
    path = tmp_path / "crafted.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("n01440764/a.JPEG", "n01440764/b.JPEG"):
            tar.addfile(tarfile.TarInfo(name))
    data = bytearray(path.read_bytes())
    header = tarfile.TarInfo("n01440764/b.JPEG")
    header.size = -512
    data[512:1024] = header.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"b\.JPEG .*-512"):
        open_archive(path)
