"""A folder without a valid manifest is no artifact; one with a valid manifest is byte for byte what was written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from maep import artifact, storage
from maep.artifact import CARD, CONFIG, MANIFEST, STATE, WEIGHTS
from maep.errors import ArtifactError, UserError

WEIGHT = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def written(folder: Path, **more: Any) -> artifact.Artifact:
    return artifact.write(folder, "conv", {"name": "conv", "channels": 3}, {"w": WEIGHT}, "# card\n", **more)


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip(tmp_path: Path) -> None:
    made = written(tmp_path / "a", extra={"pictures/strip.png": b"png"})
    opened = artifact.read(tmp_path / "a")
    assert opened == made
    assert opened.kind == "conv"
    assert opened.config == {"name": "conv", "channels": 3}
    assert torch.equal(opened.weights()["w"], WEIGHT)
    assert set(opened.files) == {CONFIG, WEIGHTS, CARD, "pictures/strip.png"}
    assert opened.sha256 == storage.sha256_file(tmp_path / "a" / MANIFEST)
    assert os.listdir(tmp_path) == ["a"]


def test_equal_contents_have_equal_identity(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a"), written(tmp_path / "elsewhere" / "b")
    assert first.sha256 == second.sha256
    other = artifact.write(tmp_path / "c", "conv", first.config, {"w": WEIGHT + 1}, "# card\n")
    assert other.sha256 != first.sha256


def test_training_state_round_trips_without_pickle(tmp_path: Path) -> None:
    state = {"step": 7, "moments": [torch.ones(2)], "rng": torch.get_rng_state(), "note": "half way"}
    loaded = written(tmp_path / "a", state=state).state()
    assert loaded["step"] == 7
    assert torch.equal(loaded["rng"], state["rng"])
    with pytest.raises(ArtifactError, match="holds no training state"):
        written(tmp_path / "b").state()


def test_state_that_is_not_plain_data_is_refused_before_it_is_written(tmp_path: Path) -> None:
    """Otherwise unreadable state would only be noticed at resume, hours later."""
    with pytest.raises(ArtifactError, match="state"):
        written(tmp_path / "a", state={"where": Path("x")})
    assert os.listdir(tmp_path) == []


def test_views_and_shared_weights_are_kept_whole(tmp_path: Path) -> None:
    weights = {"a": WEIGHT, "tied": WEIGHT, "transposed": WEIGHT.T, "half": WEIGHT.half()}
    loaded = artifact.write(tmp_path / "a", "conv", {}, weights, "").weights()
    assert all(
        torch.equal(loaded[name], weights[name]) and loaded[name].dtype == weights[name].dtype for name in weights
    )


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, CARD, STATE])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: b"", "truncated"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "was changed after it was written"),
        (None, "is missing: the artifact is incomplete"),
    ],
    ids=["cut", "emptied", "flipped", "removed"],
)
def test_damage_is_named(tmp_path: Path, name: str, damage: Any, message: str) -> None:
    written(tmp_path / "a", state={"step": 1})
    path = tmp_path / "a" / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    assert not artifact.is_valid(tmp_path / "a")
    with pytest.raises(ArtifactError, match=message) as caught:
        artifact.read(tmp_path / "a")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '{"schema": 1}', '{"schema": 1, "kind": 3, "files": {}}', "\xff"]
)
def test_a_damaged_manifest(tmp_path: Path, text: str) -> None:
    written(tmp_path / "a")
    (tmp_path / "a" / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match="is not a manifest"):
        artifact.read(tmp_path / "a")


@pytest.mark.parametrize("entry", [3, [], {"size": 1}, {"size": "1", "sha256": "0"}, {"size": 1, "sha256": None}])
def test_a_manifest_with_invalid_entries(tmp_path: Path, entry: Any) -> None:
    written(tmp_path / "a")
    files = json.loads((tmp_path / "a" / MANIFEST).read_text())["files"]
    edit_manifest(tmp_path / "a", files=files | {CARD: entry})
    with pytest.raises(ArtifactError, match="is not a manifest"):
        artifact.read(tmp_path / "a")


@pytest.mark.parametrize("schema", [artifact.SCHEMA + 1, 99])
def test_a_newer_schema(tmp_path: Path, schema: int) -> None:
    written(tmp_path / "a")
    edit_manifest(tmp_path / "a", schema=schema)
    with pytest.raises(
        ArtifactError, match=f"has schema {schema}, this maep reads up to {artifact.SCHEMA}: upgrade maep"
    ):
        artifact.read(tmp_path / "a")


def test_a_newer_schema_of_another_shape(tmp_path: Path) -> None:
    """The schema is read first, because a newer manifest may have any other form."""
    written(tmp_path / "a")
    (tmp_path / "a" / MANIFEST).write_text(json.dumps({"schema": 2, "blobs": []}))
    with pytest.raises(ArtifactError, match="upgrade maep"):
        artifact.read(tmp_path / "a")


@pytest.mark.parametrize("outside", ["../secret", "/etc/hostname", "a/../../secret"])
def test_a_manifest_cannot_reach_outside_its_folder(tmp_path: Path, outside: str) -> None:
    (tmp_path / "secret").write_text("s")
    written(tmp_path / "a")
    files = json.loads((tmp_path / "a" / MANIFEST).read_text())["files"]
    edit_manifest(tmp_path / "a", files=files | {outside: {"size": 1, "sha256": storage.sha256(b"s")}})
    with pytest.raises(ArtifactError, match="outside the artifact"):
        artifact.read(tmp_path / "a")
    with pytest.raises(ArtifactError, match="outside the artifact"):
        artifact.download(str(tmp_path / "a"), tmp_path / "fetched" / "b")
    assert not (tmp_path / "fetched" / "b").exists()


def test_extra_files_cannot_reach_outside_either(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="outside the artifact"):
        written(tmp_path / "in" / "a", extra={"../escaped": b"x"})
    assert storage.list_files(tmp_path) == []


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_manifest_without_the_essentials(tmp_path: Path, name: str) -> None:
    written(tmp_path / "a")
    files = json.loads((tmp_path / "a" / MANIFEST).read_text())["files"]
    del files[name]
    edit_manifest(tmp_path / "a", files=files)
    with pytest.raises(ArtifactError, match="not an artifact"):
        artifact.read(tmp_path / "a")


def test_an_unfinished_artifact_does_not_exist(tmp_path: Path) -> None:
    written(tmp_path / "a")
    (tmp_path / "a" / MANIFEST).unlink()
    assert not artifact.is_valid(tmp_path / "a")
    assert not artifact.is_valid(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="never finished"):
        artifact.read(tmp_path / "a")
    with pytest.raises(ArtifactError, match="upload never finished"):
        artifact.download(str(tmp_path / "a"), tmp_path / "b")
    assert os.listdir(tmp_path) == ["a"]


def test_an_older_artifact_is_replaced_entirely(tmp_path: Path) -> None:
    written(tmp_path / "a", extra={"old.txt": b"old"})
    newer = artifact.write(tmp_path / "a", "mae", {"name": "mae"}, {"w": WEIGHT * 2}, "")
    assert artifact.read(tmp_path / "a").sha256 == newer.sha256
    assert not (tmp_path / "a" / "old.txt").exists()
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_write_keeps_the_older_artifact(tmp_path: Path) -> None:
    older = written(tmp_path / "a")
    with pytest.raises(UserError):
        written(tmp_path / "a", extra={"config.json/below": b"a file where a folder is needed"})
    assert artifact.read(tmp_path / "a").sha256 == older.sha256
    assert os.listdir(tmp_path) == ["a"]


def test_killed_while_writing(tmp_path: Path) -> None:
    """kill -9 just before the folder is moved into place: the older artifact remains, and the next write succeeds."""
    older = written(tmp_path / "a")
    program = """
import os, signal, sys, torch
from maep import artifact, storage
storage.replace_folder = lambda beside, target: os.kill(os.getpid(), signal.SIGKILL)
artifact.write(sys.argv[1], "mae", {}, {"w": torch.zeros(3)}, "")
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], timeout=120)
    assert done.returncode == -9
    assert artifact.read(tmp_path / "a").sha256 == older.sha256
    newer = artifact.write(tmp_path / "a", "mae", {}, {"w": WEIGHT}, "")
    assert artifact.read(tmp_path / "a").sha256 == newer.sha256


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    """kill -9 after the older folder was moved aside and before the new one is in place: the older one comes back."""
    older = written(tmp_path / "a")
    program = """
import os, pathlib, signal, sys, torch
from maep import artifact, storage
target, moved = pathlib.Path(sys.argv[1]), storage._moved
storage._moved = lambda *both: moved(*both) if target.exists() else os.kill(os.getpid(), signal.SIGKILL)
artifact.write(target, "mae", {}, {"w": torch.zeros(3)}, "")
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], timeout=120)
    assert done.returncode == -9
    assert not (tmp_path / "a").exists()
    assert artifact.read(tmp_path / "a").sha256 == older.sha256


def test_upload_and_download(tmp_path: Path) -> None:
    made = written(tmp_path / "a", state={"step": 3}, extra={"deep/er/x.json": b"{}"})
    artifact.upload(made, str(tmp_path / "store" / "one"))
    fetched = artifact.download(str(tmp_path / "store" / "one"), tmp_path / "cache" / "b")
    assert fetched.sha256 == made.sha256
    assert fetched.state()["step"] == 3
    assert storage.list_files(tmp_path / "cache") == [f"b/{name}" for name in storage.list_files(tmp_path / "a")]


def test_upload_over_another_artifact(tmp_path: Path) -> None:
    artifact.upload(written(tmp_path / "a"), str(tmp_path / "store"))
    newer = artifact.write(tmp_path / "b", "conv", {"name": "conv"}, {"w": WEIGHT * 2}, "")
    artifact.upload(newer, str(tmp_path / "store"))
    assert artifact.read(tmp_path / "store").sha256 == newer.sha256


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_download_of_damaged_files_leaves_nothing(tmp_path: Path, name: str) -> None:
    written(tmp_path / "a")
    path = tmp_path / "a" / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactError, match="truncated"):
        artifact.download(str(tmp_path / "a"), tmp_path / "b")
    path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        artifact.download(str(tmp_path / "a"), tmp_path / "b")
    assert os.listdir(tmp_path) == ["a"]
