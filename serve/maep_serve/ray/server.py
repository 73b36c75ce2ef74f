"""Start the endpoint on this machine, wait until it responds, and stop it without leaving processes behind."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil

from maep.cluster import prepare_environment, start_local
from maep.data.datasets import data_root
from maep.errors import ConfigError, UnavailableError
from maep.tracking.client import TrackingConfig, absolute
from maep.tracking.purifier_ref import PurifierRef
from maep_serve.config import ServeConfig
from maep_serve.http.tokens import endpoint_tokens
from maep_serve.ray import ingress
from maep_serve.release.releases import Releases

_CONTROLLER = "SERVE_CONTROLLER_ACTOR"
_NUM_CHECKS = 3  # /readyz must succeed this often in a row: HAProxy learns of a replica slightly after Ray does
_QUIET = {"log_level": "WARNING", "enable_access_log": False}


class Server:
    """A running endpoint. `stop` ends it and the Ray it started (whose files are in `ray_folder`)."""

    def __init__(self, url: str, purifier_sha256: str, ray_folder: Path | None) -> None:
        self.url = url
        self.purifier_sha256 = purifier_sha256
        self._ray_folder = ray_folder
        self._stopped = False

    def wait(self) -> None:
        """Block until SIGINT or SIGTERM, then stop. For the main thread only."""
        signalled = threading.Event()
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, lambda *_: signalled.set()) for number in numbers}
        try:
            signalled.wait()
            self.stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Drain and end the endpoint; a second call does nothing."""
        if not self._stopped:
            self._stopped = True
            _stop(self._ray_folder)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(config: ServeConfig, tracking: TrackingConfig | None = None, wait_ready_s: float = 180.0) -> Server:
    """Start the endpoint and return once /readyz reports the purifier that was verified here.

    tracking: where `models:/` and `runs:/` are looked up; an alias is followed while the endpoint runs.
    The address, port, tokens, models and golden outputs are checked before anything starts. A Ray that this process
    is connected to is used and left running; otherwise a private one is started, and ended by `stop`.
    Raises ConfigError for a host that needs a token, UnavailableError for a port in use or an endpoint that is not
    ready after `wait_ready_s`, and what `maep.tracking.resolve` raises for the model.
    """
    digests = endpoint_tokens(config)
    check_port(config)
    found = Releases.of(config, absolute(tracking or TrackingConfig()))
    served, sha256 = _pin(found)
    canary = None
    if config.canary is not None:
        uncalibrated = dataclasses.replace(config, calibration=None)
        canary, _ = _pin(Releases(uncalibrated, PurifierRef.parse(config.canary), found.tracking))

    import ray

    ray_folder = None if ray.is_initialized() else Path(tempfile.mkdtemp(prefix="maep-serve-"))
    if ray_folder is None and _serve_is_running():
        raise UnavailableError("Ray Serve already runs in this Ray: stop the endpoint that was started before")
    url = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{config.port}"
    try:
        if ray_folder is not None:
            _start_ray(config, ray_folder)
        deadline = time.monotonic() + wait_ready_s
        _deploy(served, canary, digests)
        _wait_until_ready(url, sha256, deadline)
    except BaseException:
        _stop(ray_folder)
        raise
    return Server(url, sha256, ray_folder)


def check_port(config: ServeConfig) -> None:
    """Bind the address once, as the endpoint will. Raises UnavailableError if it is in use."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except socket.gaierror as error:
        raise ConfigError(f"host: {config.host!r} is not an address of this machine: {error.strerror}") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UnavailableError(
                f"port: {config.port} on {config.host} is in use: choose another with --port"
            ) from None
        raise ConfigError(f"host: cannot listen on {config.host}:{config.port}: {error.strerror}") from None


def _pin(found: Releases) -> tuple[Releases, str]:
    """Load the models here, and pin the replicas to them unless they follow an alias. Also returns the sha256.

    Relative paths become absolute, because replicas have another working directory.
    """
    config, release = found.config, found.find()
    data = found.load(release).data
    if data is not None:
        data = dataclasses.replace(data, root=str(data_root(data).absolute()))
    config = dataclasses.replace(
        config,
        classifier=_absolute(config.classifier),
        calibration=_absolute(config.calibration),
        tokens_file=_absolute(config.tokens_file),
        data=data,
    )
    ref = found.ref if found.followed else found.ref.pinned(release.artifact)
    return dataclasses.replace(found, config=config, ref=ref), release.artifact.sha256


def _absolute(name: str | None) -> str | None:
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name


def _start_ray(config: ServeConfig, folder: Path) -> None:
    prepare_environment()
    ingress.prepare(folder, config.most_in_flight, config.longest_s)
    start_local(
        max(os.cpu_count() or 1, (1 if config.canary is None else 2) * config.most_replicas + 1),
        "retry once it is idle",
        include_dashboard=config.dashboard,
        _metrics_export_port=config.metrics_port,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    _lower_priority_of_ray_agent()


def _lower_priority_of_ray_agent() -> None:
    """Give requests priority over Ray's metrics agent.

    Every ten seconds it processes the recorded metrics, 0.1 s per thousand requests, which would delay responses.
    """
    if sys.platform != "linux":
        return
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            if process.name().startswith("ray::Dashboard"):
                for thread in process.threads():
                    os.setpriority(os.PRIO_PROCESS, thread.id, 19)


def _serve_is_running() -> bool:
    import ray

    return any(actor["name"] == _CONTROLLER for actor in ray.util.list_named_actors(all_namespaces=True))


def _deploy(served: Releases, canary: Releases | None, digests: tuple[str, ...]) -> None:
    import ray
    from ray import serve

    from maep_serve.ray.app import APP_NAME, CANARY_NAME, CANARY_ROUTE, build_app

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    config = served.config
    backstop_s = config.longest_s + 30  # the service's own limits apply first, with a problem document
    # Serve restarts a proxy that starts too slowly; what counts is whether /readyz responds in time
    with contextlib.suppress(ray.exceptions.RayActorError, TimeoutError):
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": config.host, "port": config.port, "request_timeout_s": backstop_s},
            logging_config=_QUIET,
        )
    applications = [(APP_NAME, "/", served)] + ([(CANARY_NAME, CANARY_ROUTE, canary)] if canary is not None else [])
    targets = [
        serve.RunTarget(build_app(releases, digests), name=name, route_prefix=route, logging_config=_QUIET)
        for name, route, releases in applications
    ]
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _wait_until_ready(url: str, sha256: str, deadline: float) -> None:
    """Wait until Ray Serve runs every application, and /readyz reports `sha256` several times in a row."""
    in_a_row = 0
    while in_a_row < _NUM_CHECKS:
        state = _serve_state()
        served = None
        if state is None:
            try:
                response = httpx.get(f"{url}/readyz", timeout=5, trust_env=False)
                state = f"/readyz responds {response.status_code}"
                served = str(response.json().get("purifier")) if response.status_code == 200 else None
            except (httpx.TransportError, ValueError) as error:
                state = f"/readyz fails with {type(error).__name__}"
        if served not in (None, sha256):
            raise UnavailableError(f"{url} serves purifier {served}, not {sha256}: another server uses this address")
        in_a_row = in_a_row + 1 if served is not None else 0
        if not in_a_row:
            if time.monotonic() > deadline:
                raise UnavailableError(f"the endpoint did not start in time: {state}: does Ray have a free CPU for it?")
            time.sleep(0.1)


def _serve_state() -> str | None:
    """The state of the applications; None once all are running. Raises UnavailableError if one failed."""
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    applications = serve.status().applications.values()
    for failed in (each for each in applications if each.status == ApplicationStatus.DEPLOY_FAILED):
        reasons = [deployment.message for deployment in failed.deployments.values()] or [failed.message]
        lines = [line.strip() for line in reasons[0].splitlines() if line.strip()]
        reason = lines[-1][:300] if lines else "see logs/serve in the folder of the Ray session"
        raise UnavailableError(f"the endpoint did not start: {reason}")
    if applications and all(each.status == ApplicationStatus.RUNNING for each in applications):
        return None
    return ", ".join(each.status.value for each in applications) or "unknown to Ray Serve"


def _stop(ray_folder: Path | None) -> None:
    """Drain the endpoint: accepted requests are finished. `ray_folder`: of a Ray that we started, which ends too."""
    import ray

    with contextlib.redirect_stdout(io.StringIO()):  # Ray may print that its controller is dead, as it should be
        try:
            if ray.is_initialized() and _serve_is_running():
                from ray import serve

                for name in serve.status().applications:
                    serve.delete(name)
                serve.shutdown()
        finally:
            if ray_folder is not None:
                ray.shutdown()
                shutil.rmtree(ray_folder, ignore_errors=True)
