"""Several hosts on one machine: network namespaces on a bridge, each with a Ray node and a link that can be cut."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PORT = 6379
# A dead node is found within ten seconds; a blip of one second is survived.
_HEALTH = {"initial_delay_ms": 2000, "period_ms": 1000, "timeout_ms": 2000, "failure_threshold": 3}


def ip(*words: str) -> str:
    """What `ip WORDS` prints."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


class Host:
    """A machine: a namespace with an address of its own, and a Ray node once `start` was called."""

    def __init__(self, cluster: str, number: int, environment: dict[str, str], folder: Path) -> None:
        self.name, self.link = f"{cluster}-{number}", f"{cluster}v{number}"
        self.address = f"10.77.0.{number + 1}"
        self.head = f"10.77.0.1:{_PORT}"
        self.environment, self.folder = environment, folder
        self.starts = 0
        self.hidden: Path | None = None
        """A folder of which this machine sees another, empty one in its place."""
        ip("netns", "add", self.name)
        ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.link, "master", cluster, "up")
        for words in (
            ("addr", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", self.name, *words)

    def run(self, *command: str, output: int | None = None) -> subprocess.Popen[str]:
        """A command on this machine, with what it needs to reach the cluster."""
        hide = ["sh", "-c", f'mount -t tmpfs none "{self.hidden}" && exec "$@"', "hide"] if self.hidden else []
        return subprocess.Popen(  # of which each has mounts of its own
            ["ip", "netns", "exec", self.name, *hide, *command],
            env={**os.environ, **self.environment},
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            text=True,
        )

    def ray(self, *words: str) -> str:
        """What `ray WORDS` prints on this machine."""
        process = self.run(sys.executable, "-m", "ray.scripts.scripts", *words, output=subprocess.PIPE)
        said = process.communicate(timeout=180)[0]
        assert process.returncode == 0, said
        return said

    def start(self, num_cpus: int) -> None:
        """A Ray node: the head where this is the first machine."""
        self.starts += 1
        temporary = f"--temp-dir={self.folder / str(self.starts)}"
        common = (f"--node-ip-address={self.address}", f"--num-cpus={num_cpus}", temporary, "--disable-usage-stats")
        if self.head.startswith(f"{self.address}:"):
            self.ray("start", "--head", f"--port={_PORT}", "--dashboard-host=127.0.0.1", *common)
        else:
            self.ray("start", f"--address={self.head}", *common)

    def cut(self) -> None:
        """Takes the link down."""
        ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Brings the link up again."""
        ip("link", "set", self.link, "up")

    def kill(self) -> None:
        """kill -9 for all processes of this host."""
        for pid in ip("netns", "pids", self.name).split():
            subprocess.run(["kill", "-9", pid], capture_output=True)


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """`count` connected hosts; the first is the head. Skips if this user may not create namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the ip command")
    cluster = f"mp{secrets.token_hex(2)}"
    made = subprocess.run(["ip", "link", "add", cluster, "type", "bridge"], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"this machine makes no bridge: {made.stderr.strip()}")
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment["GLOO_SOCKET_IFNAME"] = "eth0"  # the host's name is that of loopback in every namespace
    environment |= {f"RAY_health_check_{key}": str(value) for key, value in _HEALTH.items()}
    folder = Path(tempfile.mkdtemp(prefix="mp"))  # Ray's sockets need short paths
    running: list[Host] = []
    try:
        ip("link", "set", cluster, "up")
        for number in range(count):
            running.append(Host(cluster, number, environment, folder / str(number)))
        yield running
    finally:
        for host in running:
            host.kill()
            time.sleep(0.2)  # the kernel lets go of the namespace
            ip("netns", "delete", host.name)
        ip("link", "delete", cluster)
        shutil.rmtree(folder, ignore_errors=True)
