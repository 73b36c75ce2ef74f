"""Reaching a Ray cluster, or starting one of our own on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maep.errors import UnavailableError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 starves workers of a local cluster beside anything else that runs
}


@contextmanager
def session(address: str | None = None, num_cpus: float = 0) -> Iterator[None]:
    """A connection to the cluster at `address`, or (None) a local one of this process alone, ended afterwards.

    A local one offers at least `num_cpus` logical CPUs, however few cores there are. Where Ray is up in this process
    already, it is used and left alone. Raises UnavailableError where nothing answers at `address`, or a local one
    does not come up.
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
        cores = max(os.cpu_count() or 1, -(-int(num_cpus * 100) // 100))
        _start(cores)
        close_token_file()
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


def _start(num_cpus: int) -> None:
    import ray

    token_without_home()
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it warns that it asks for its token

    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=True,  # Ray Train asks it which of its workers' places are left behind
            dashboard_host="127.0.0.1",
            log_to_driver=True,
            logging_level="warning",
        )
    except Exception as error:
        if type(error) is not Exception:  # so Ray says that its processes were not up after half a minute
            raise
        reason = str(error).splitlines()[0]
        raise UnavailableError(
            f"Ray did not start on this machine ({reason}): try again when it is less busy, or train in this process"
            " with --workers.num_workers 0"
        ) from None


def prepare_environment() -> None:
    """Sets what Ray reads when it is imported, where the user has not."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def is_here(address: str) -> bool:
    """Whether `address` is of this machine's loopback."""
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


def token_without_home() -> None:
    """Where the home folder cannot be written, and so Ray not leave its token there, a token of this process alone."""
    named = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not (named or (Path.home() / ".ray" / "auth_token").is_file() or os.access(Path.home(), os.W_OK)):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def close_token_file() -> None:
    """Makes Ray's token file readable for its owner alone: Ray writes it for everyone."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if token.is_file():
        token.chmod(0o600)


def resources() -> dict[str, Any]:
    """What the connected cluster has, by name (CPU, GPU, memory)."""
    import ray

    total: dict[str, Any] = ray.cluster_resources()
    return total


def on_each_machine(function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """What `function` of `args` returns on each machine of the connected cluster that is up, by address.

    Where there is one machine alone, it is called here. Machines that go meanwhile are left out.
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
    """The same of each of its machines that are up."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
