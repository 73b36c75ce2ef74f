"""`maep submit`: the submitted job, and (slow) real jobs on a local Ray cluster that requires a token."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from processes import marked
from stack import free_ports, stop

from maep import artifact

HERE = "http://127.0.0.1:8265"


def sent(maep: Any, *words: str | Path) -> tuple[list[str], dict[str, Any]]:
    """The arguments of the job's command line, and the job."""
    ran = maep("submit", *words, "--dry-run")
    assert (ran.status, ran.err) == (0, "")
    job = yaml.safe_load(ran.out)
    return shlex.split(job["entrypoint"]), job


def test_the_job_has_the_arguments_of_the_verb_and_absolute_paths(maep: Any, tmp_path: Path) -> None:
    line, job = sent(maep, "pretrain", "--config", "digits/pretrain", "--loop.samples", "640", "--address", HERE)
    assert line[:4] == [sys.executable, "-m", "maep_jobs.cli", "pretrain"]
    assert line[line.index("--config") + 1] == "config.yaml"
    assert line[line.index("--loop.samples") + 1] == "640"
    assert line[line.index("--output") + 1] == str(tmp_path / "outputs" / "digits" / "pretrain")
    assert line[line.index("--tracking.uri") + 1] == f"sqlite:///{tmp_path}/outputs/mlflow/mlflow.db"
    assert job["metadata"] == {"maep_verb": "pretrain"}


def test_another_machine_has_its_own_python_and_tracking(maep: Any) -> None:
    there = ("--address", "http://head:8265", "--tracking.uri", "http://mlflow:5000")
    line, _ = sent(maep, "evaluate", "--output", "/shared/run", *there)
    assert line[0] == "python"
    assert line.count("--tracking.uri") == 1
    assert line[line.index("--output") + 1] == "/shared/run"


def test_output_in_the_jobs_working_folder_is_refused(maep: Any) -> None:
    """A job's working folder is deleted after the job."""
    there = ("--address", "http://head:8265")
    assert maep("submit", "pretrain", *there).is_mistake("--tracking.uri", "http://HOST:5000")
    uri = ("--tracking.uri", "http://mlflow:5000")
    assert maep("submit", "evaluate", *there, *uri, "--output", "s3://bucket/run").is_mistake(
        "--output s3://bucket/run"
    )
    assert maep("evaluate", "--output", "s3://bucket/run", "--dry-run").is_mistake("s3://bucket/run", "artifact_uri")


def test_training_may_write_to_s3(maep: Any) -> None:
    there = ("--address", "http://head:8265", "--tracking.uri", "http://mlflow:5000")
    line, _ = sent(maep, "pretrain", "--output", "s3://bucket/run", *there)
    assert line[line.index("--output") + 1] == "s3://bucket/run"
    ran = maep("pretrain", "--config", "digits/pretrain", "--output", "s3://bucket/run/", "--dry-run")
    assert ran.status == 0
    assert "# result: s3://bucket/run/model" in ran.out
    assert maep("pretrain", "--output", "s3://bucket", "--dry-run").is_mistake("s3://bucket", "s3://BUCKET/PREFIX")


def test_the_pipeline_file_is_uploaded_as_the_first_argument(maep: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("parallel: 1\n")
    line, _ = sent(maep, "run", "mine.yaml", "--keep", "--address", HERE)
    assert line[3:6] == ["run", "config.yaml", "--keep"]
    assert line[line.index("--output") + 1] == str(tmp_path / "outputs" / "mine")


def test_addresses_are_passed_on_and_credentials_are_not(maep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAEP_DATA", "/mnt/data")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hidden")
    ran = maep("submit", "pretrain", "--dry-run")
    assert yaml.safe_load(ran.out)["runtime_env"]["env_vars"] == {"MAEP_DATA": "/mnt/data"}
    assert "hidden" not in ran.out


def test_verbs_that_cannot_be_submitted(maep: Any) -> None:
    assert maep("submit", "pretrian").is_mistake("'pretrain'")
    assert maep("submit", "pretrain", "--config", "digits/pretran").is_mistake("'digits/pretrain'")
    assert maep("submit").is_mistake("VERB", "maep submit --help")


@dataclass(frozen=True)
class Cluster:
    """A running cluster of one node."""

    address: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`ray start --head` with its own ports and folder, ended by process id."""
    gcs, dashboard, agent, client, metrics, runtime, grpc = free_ports(7)
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: the path of a socket has at most 107 characters
    mark = uuid.uuid4().hex
    environment = {
        **os.environ,
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2,
        "MAEP_TEST_MARK": mark,
        "OMP_NUM_THREADS": "1",
    }
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"),
        *(f"--port={gcs}", f"--temp-dir={folder}", "--node-ip-address=127.0.0.1", "--disable-usage-stats"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}"),
        *(f"--runtime-env-agent-port={runtime}", f"--dashboard-agent-grpc-port={grpc}"),
        "--object-store-memory=100000000",
    ]
    log = folder / "start.log"
    with log.open("wb") as out:
        head = subprocess.Popen(command, env=environment, stdout=out, stderr=out, cwd=folder, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait(address, environment["RAY_AUTH_TOKEN"], head, log)
        yield Cluster(address, environment)
    finally:
        stop(head)
        _end_marked(mark)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(address: str, token: str, head: subprocess.Popen[bytes], log: Path) -> None:
    """Until the Jobs API answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and head.poll() is None:
        try:
            headers = {"Authorization": f"Bearer {token}"}
            if httpx.get(f"{address}/api/jobs/", headers=headers, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the cluster is not ready (exit {head.poll()}):\n{log.read_text()[-2000:]}")


def _end_marked(mark: str) -> None:
    """Ends the processes that the head started, which carry this test's mark in their environment."""
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"MAEP_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue
    deadline = time.monotonic() + 30
    while marked("MAEP_TEST_MARK", mark) and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`maep submit ... --address CLUSTER` as a process in `tmp_path`."""

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "maep_jobs.cli", "submit", *words, "--address", cluster.address]
        environment = {**cluster.environment, **variables}
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)

    return run


@pytest.mark.slow
def test_a_followed_job_runs_the_local_configuration_and_prints_its_log(
    submit: Callable[..., subprocess.CompletedProcess[str]], tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    done = submit(*tiny("--output", "out"), "--follow", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["status"] == "SUCCEEDED"
    assert "320/320" in done.stderr
    made = artifact.read(tmp_path / "out" / "model")
    assert made.config["model"]["width"] == 16
    assert f"sha256 {made.sha256[:12]}" in done.stderr


@pytest.mark.slow
def test_without_follow_the_command_to_follow_is_printed(
    submit: Callable[..., subprocess.CompletedProcess[str]], tiny: Callable[..., list[str]], cluster: Cluster
) -> None:
    done = submit(*tiny("--output", "out"))
    assert done.returncode == 0, done.stderr
    assert re.match(r"job raysubmit_\w+: (PENDING|RUNNING)\n", done.stdout)
    command = done.stdout.partition("its lines: ")[2].strip()
    logs = subprocess.run(
        command,
        shell=True,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=200,
        stdin=subprocess.DEVNULL,
    )
    assert logs.returncode == 0, logs.stderr
    assert "320/320" in logs.stdout


@pytest.mark.slow
def test_the_jobs_exit_status_is_passed_on(
    submit: Callable[..., subprocess.CompletedProcess[str]], tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    mistake = submit(*tiny("--output", "out", "--loop.sampels", "5"), "--follow")
    assert mistake.returncode == 2
    assert "did you mean 'samples'" in mistake.stderr
    failure = submit(*tiny("--output", "out", "--loop.lr", "1e30", "--loop.clip", "null"), "--follow")
    assert failure.returncode == 1
    assert "the loss is " in failure.stderr
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.slow
def test_a_wrong_token_is_one_line(
    submit: Callable[..., subprocess.CompletedProcess[str]], tiny: Callable[..., list[str]]
) -> None:
    done = submit(*tiny("--output", "out"), RAY_AUTH_TOKEN="f" * 64)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "RAY_AUTH_TOKEN" in done.stderr
