"""Connect to a Ray cluster, or start a local one."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maep.errors import UnavailableError

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 starves workers beside other processes
}


@contextmanager
def session(address: str | None = None, num_cpus: float = 0) -> Iterator[None]:
    """A connection to the cluster at `address`, or (None) to a local cluster that ends with the block.

    A local cluster offers at least `num_cpus` logical CPUs, whatever the number of cores. An existing connection
    of this process is used and left open. Raises UnavailableError where nothing answers at `address`, or no local
    cluster starts.
    """
    prepare_environment()
    address = address or os.environ.get("RAY_ADDRESS")  # set inside a submitted job
    if address is not None:
        check_address(address)  # before Ray is imported, which takes seconds
    import ray

    if ray.is_initialized():
        yield
        return
    if address is None:
        start_local(
            max(os.cpu_count() or 1, -(-int(num_cpus * 100) // 100)),
            "try again when it is less busy, or train in this process with --workers.num_workers 0",
            include_dashboard=True,  # Ray Train needs it to find leaked placement groups
            log_to_driver=True,
            logging_level="warning",
        )
    else:
        try:
            ray.init(address=address, log_to_driver=True, logging_level="warning")
        except (ConnectionError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UnavailableError(f"the Ray cluster at {address} refused the connection: {reason}") from None
    try:
        yield
    finally:
        ray.shutdown()


def start_local(num_cpus: int, cure: str, **options: Any) -> None:
    """Starts a private Ray on this machine: its dashboard on loopback, its ports behind a token of this user.

    options: further arguments of `ray.init`. Raises UnavailableError, ending with `cure`, where Ray does not start.
    """
    import ray

    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if not (named or token.is_file() or os.access(Path.home(), os.W_OK)):  # Ray could not write one
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it warns about its own token
    try:
        ray.init(address="local", num_cpus=num_cpus, dashboard_host="127.0.0.1", **options)
    except (Exception, SystemExit) as error:  # Ray raises plain exceptions, and exits
        if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:  # this process was terminated
            raise
        reason = " ".join(str(error).split())[:200]
        raise UnavailableError(f"Ray did not start on this machine: {reason}: {cure}") from error
    if token.is_file():
        token.chmod(0o600)  # Ray creates it readable by everyone


def prepare_environment() -> None:
    """Sets environment variables that Ray reads at import, unless the user has set them."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def is_here(address: str) -> bool:
    """Whether `address` is on loopback."""
    host = address.split("://", 1)[-1].split("/", 1)[0].rpartition(":")[0]
    return host in ("127.0.0.1", "localhost", "[::1]")


def check_address(address: str, default_port: int = 6379) -> None:
    """Raises UnavailableError within seconds where nothing listens at `address` (HOST:PORT, ray:// or http://)."""
    place = address.split("://", 1)[-1].rstrip("/")
    host, _, port = place.rpartition(":") if ":" in place else (place, "", str(default_port))
    if address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"no Ray cluster answers at {address} ({error}): start one (ray start --head), or leave out --address"
        ) from None


def resources() -> dict[str, Any]:
    """Resources of the connected cluster, by name (CPU, GPU, memory)."""
    import ray

    total: dict[str, Any] = ray.cluster_resources()
    return total


def on_each_machine(function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """The result of `function(*args)` on each live node of the connected cluster, by address.

    On a single node it is called in this process. Nodes that fail meanwhile are left out.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return {node["NodeManagerAddress"]: function(*args) for node in nodes}
    calls = {}
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        call = ray.remote(num_cpus=0, scheduling_strategy=place)(lambda: function(*args))
        calls[node["NodeManagerAddress"]] = call.remote()
    found = {}
    for address, asked in calls.items():
        with suppress(ray.exceptions.RayError):
            found[address] = ray.get(asked, timeout=60)
    return found


def machines() -> list[dict[str, Any]]:
    """Per-node resources of live nodes."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
