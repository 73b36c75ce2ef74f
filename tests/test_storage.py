"""Whole files or nothing, even if the disk fills up or the folder cannot be written."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disk import mounted

from maep import storage
from maep.errors import UnavailableError, UserError


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    with mounted(tmp_path / "disk", "size=64k") as folder:
        yield folder


@pytest.fixture
def locked_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody can write: a read-only file system for root, no permission for other users."""
    if os.geteuid() == 0:
        with mounted(tmp_path / "locked", "ro,size=64k") as folder:
            yield folder
    else:
        (tmp_path / "locked").mkdir(mode=0o555)
        yield tmp_path / "locked"


def everything_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_files_round_trip(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.bin"
    storage.write_bytes(target, b"first")
    storage.write_bytes(str(target), b"second")
    assert storage.read_bytes(target) == b"second"
    assert everything_below(tmp_path) == ["a", "a/b.bin"]
    assert target.stat().st_mode & 0o777 == 0o644


def test_reading_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(tmp_path / "absent")


def test_digests_of_bytes_and_files_agree(tmp_path: Path) -> None:
    data = b"pixel" * 100_000
    storage.write_bytes(tmp_path / "x", data)
    assert storage.sha256_file(tmp_path / "x") == storage.sha256(data)
    assert storage.sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tiny_disk: Path) -> None:
    storage.write_bytes(tiny_disk / "kept", b"old")
    with pytest.raises(UserError, match="kept") as caught:
        storage.write_bytes(tiny_disk / "kept", b"x" * 200_000)
    assert "\n" not in str(caught.value)
    assert storage.read_bytes(tiny_disk / "kept") == b"old"
    assert everything_below(tiny_disk) == ["kept"]


def test_copying_onto_a_full_disk_leaves_nothing(tiny_disk: Path, tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "source" / "big", b"x" * 200_000)
    with pytest.raises(UserError, match="big"):
        storage.copy_files(tmp_path / "source", tiny_disk, ["big"])
    assert everything_below(tiny_disk) == []


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="below"):
        storage.write_bytes(tmp_path / "file" / "below", b"x")


def test_a_folder_where_a_file_is_needed(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inner").mkdir(parents=True)
    with pytest.raises(UserError, match="taken"):
        storage.write_bytes(tmp_path / "taken", b"x")
    assert everything_below(tmp_path) == ["taken", "taken/inner"]


def test_an_unwritable_folder(locked_folder: Path) -> None:
    with pytest.raises(UserError, match="x"):
        storage.write_bytes(locked_folder / "x", b"x")
    assert everything_below(locked_folder) == []
    with pytest.raises(OSError, match="x"):  # for callers who carry on without
        storage.write_bytes(locked_folder / "x", b"x")


def test_list_and_copy(tmp_path: Path) -> None:
    for name in ("b", "a/c", "a/d/e"):
        storage.write_bytes(tmp_path / "from" / name, name.encode())
    assert storage.list_files(tmp_path / "from") == ["a/c", "a/d/e", "b"]
    storage.copy_files(tmp_path / "from", tmp_path / "to", ["b", "a/d/e"])
    assert storage.list_files(tmp_path / "to") == ["a/d/e", "b"]
    assert storage.read_bytes(tmp_path / "to" / "a/d/e") == b"a/d/e"
    assert storage.list_files(tmp_path / "nowhere") == []


def test_replace_folder(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "live" / "x", b"old")
    storage.write_bytes(tmp_path / "new" / "x", b"new")
    storage.replace_folder(tmp_path / "new", tmp_path / "live")
    assert everything_below(tmp_path) == ["live", "live/x"]
    assert storage.read_bytes(tmp_path / "live" / "x") == b"new"


def test_a_failed_replacement_keeps_the_old_folder(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "live" / "x", b"old")
    with pytest.raises((OSError, UserError)):
        storage.replace_folder(tmp_path / "absent", tmp_path / "live")
    assert everything_below(tmp_path) == ["live", "live/x"]


def test_addresses() -> None:
    assert storage.is_remote("s3://bucket/key")
    assert not storage.is_remote(Path("s3/key"))
    assert storage.join("s3://bucket/a/", "b", "c") == "s3://bucket/a/b/c"
    assert storage.join(Path("a"), "b") == "a/b"
    with pytest.raises(UserError, match="s3://"):
        storage.read_bytes("s3://")


@pytest.fixture
def s3_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`s3_at("http://HOST:PORT")` sets the S3 endpoint, with a deadline of one second."""

    def at(endpoint: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("MAEP_S3_DEADLINE_S", "1")
    return at


@pytest.mark.slow  # boto3's own pauses
@pytest.mark.parametrize("stalls", [False, True])
def test_an_s3_service_that_does_not_answer(stalls: bool, s3_at: Callable[[str], None], tmp_path: Path) -> None:
    """A closed port, and a service that accepts the connection and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        s3_at(f"http://127.0.0.1:{server.getsockname()[1] if stalls else 9}")
        with pytest.raises(UnavailableError, match="s3://bucket/key"):
            storage.read_bytes("s3://bucket/key")


def test_an_invalid_deadline_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAEP_S3_DEADLINE_S", "soon")
    with pytest.raises(UserError, match="MAEP_S3_DEADLINE_S"):
        storage.read_bytes("s3://bucket/key")
