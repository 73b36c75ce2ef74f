"""`maep pretrain --config imagenet/slice`: the slice from a real S3 server, by two workers, one of which is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from kills import newest
from stack import S3

from maep import artifact
from maep.train.checkpoint.history import read

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.shared_data, pytest.mark.timeout(1800)]
FILE = "imagenet_slice/val_256.parquet"
BATCH, EVERY, SAMPLES = 64, 256, 1280
DEADLINE_S = 800


@pytest.fixture(scope="module")
def store(s3_server: S3, shared_data: Path) -> Iterator[S3]:
    """A server that holds the slice below the prefix `set`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        client = boto3.session.Session().client("s3", endpoint_url=s3_server.endpoint)
        client.upload_file(str(shared_data / FILE), s3_server.bucket, f"set/{FILE}")
        yield s3_server


def steps_done(output: Path) -> int:
    return int((output / "checkpoints" / "position").read_text())


def train(store: S3, output: Path, kill: bool) -> tuple[float, int | None]:
    """The last loss that is shown, and the process that was killed two steps or more after the first checkpoint."""
    line = ["pretrain", "--config", "imagenet/slice", "--data.root", f"s3://{store.bucket}/set"]
    line += ["--loop.samples", str(SAMPLES), "--loop.checkpoint_every", str(EVERY), "--tracking.enabled", "false"]
    deadline, killed = time.monotonic() + DEADLINE_S, None
    with (output.parent / f"{output.name}.log").open("w+") as said:
        command = [sys.executable, "-m", "maep_jobs.cli", *line, "--output", str(output)]
        with subprocess.Popen(command, stdout=said, stderr=said) as process:
            try:
                while kill and (newest(output) < EVERY or steps_done(output) < EVERY // BATCH + 2):
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                if kill:
                    killed = int(read(output)[-1]["pid"])
                    os.kill(killed, signal.SIGKILL)
                process.wait(max(1.0, deadline - time.monotonic()))
            finally:
                process.kill()
        said.seek(0)
        text = said.read()
    assert process.returncode == 0, text[-3000:]
    return float(re.findall(rf"{SAMPLES:,}/{SAMPLES:,}\s+loss ([\d.]+)", text)[-1]), killed


def test_killed_worker_leaves_the_loss_unchanged_and_history_counts_redone_steps(store: S3, tmp_path: Path) -> None:
    whole, _ = train(store, tmp_path / "whole", kill=False)
    loss, killed = train(store, tmp_path / "killed", kill=True)
    started, resumed, finished = read(tmp_path / "killed")
    assert (started["event"], resumed["event"], finished["event"]) == ("started", "resumed", "finished")
    assert (started["num_workers"], resumed["num_workers"]) == (2, 2)
    assert started["pid"] == resumed["lost_pid"] == killed
    print(f"worker {killed} killed: from step {resumed['step']}, {resumed['redone']} steps again; loss {loss}, {whole}")
    assert resumed["step"] % (EVERY // BATCH) == 0
    assert 0 < resumed["step"] < finished["step"]
    assert 0 < resumed["redone"] <= EVERY // BATCH  # one interval at most
    assert loss == pytest.approx(whole, rel=0.01)
    assert artifact.read(tmp_path / "killed" / "model").config == artifact.read(tmp_path / "whole" / "model").config
