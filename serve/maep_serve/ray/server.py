"""Starts the endpoint on this machine, waits until it answers, and stops it without leaving anything behind."""

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
from types import FrameType

import httpx
import psutil

from maep.cluster import close_token_file, prepare_environment, token_without_home
from maep.data.datasets import data_root
from maep.errors import ConfigError, UnavailableError
from maep.tracking.client import TrackingConfig, absolute
from maep_serve.config import ServeConfig
from maep_serve.engine.loading import image_data
from maep_serve.http.tokens import endpoint_tokens
from maep_serve.ray import ingress
from maep_serve.release import releases

_CONTROLLER = "SERVE_CONTROLLER_ACTOR"
_ENOUGH = 3


class Server:
    """A running endpoint. `stop` ends it, and the Ray it started."""

    def __init__(self, url: str, purifier_sha256: str, ours: Path | None) -> None:
        self.url = url
        self.purifier_sha256 = purifier_sha256
        self._ours = ours
        self._stopped = False

    def wait(self) -> None:
        """Blocks until SIGINT or SIGTERM, then stops. For the main thread only."""
        ended = threading.Event()

        def end(number: int, frame: FrameType | None) -> None:
            del number, frame
            ended.set()

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            ended.wait()
            self.stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Drains and ends the endpoint; a second call does nothing."""
        if self._stopped:
            return
        self._stopped = True
        _stop(self._ours)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(config: ServeConfig, tracking: TrackingConfig | None = None, wait_ready_s: float = 180.0) -> Server:
    """Starts the endpoint and returns when /readyz answers 200 with the purifier that was verified here.

    tracking: where `models:/` and `runs:/` are looked up; an alias is followed while the endpoint runs.
    Before anything starts, the address, the port, the tokens, the models and their golden outputs are checked. A Ray
    this process is already connected to is used and left running; otherwise a private one is started, and ended by
    `stop`. Raises ConfigError for a host that needs a token, UnavailableError for a taken port or an endpoint that is
    not ready after `wait_ready_s`, and what `maep.tracking.resolve` raises for the model.
    """
    tracking = absolute(tracking or TrackingConfig())
    digests = endpoint_tokens(config)
    check_port(config)
    pinned, sha256 = _pin(config, tracking)

    import ray

    ours = None if ray.is_initialized() else Path(tempfile.mkdtemp(prefix="maep-serve-"))
    if ours is None and _serve_is_running():
        raise UnavailableError("Ray Serve already runs in this Ray: stop the endpoint that was started before this one")
    url = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{config.port}"
    try:
        if ours is not None:
            _start_ray(config, ours)
        deadline = time.monotonic() + wait_ready_s
        _deploy(pinned, tracking, digests)
        _wait_until_running(deadline, wait_ready_s)
        _wait_until_ready(url, sha256, deadline, wait_ready_s)
    except BaseException:
        _stop(ours)
        raise
    return Server(url, sha256, ours)


def check_port(config: ServeConfig) -> None:
    """Binds the address once, as the endpoint will. Raises UnavailableError where it is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except socket.gaierror as error:
        raise ConfigError(f"host: {config.host!r} is no address of this machine: {error.strerror}") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UnavailableError(f"port {config.port} on {config.host} is in use: choose another, --port N") from None
        raise ConfigError(f"cannot listen on {config.host}:{config.port}: {error.strerror}") from None


def _pin(config: ServeConfig, tracking: TrackingConfig) -> tuple[ServeConfig, str]:
    """Verifies the models here; points the replicas (on this machine) to the very folder, unless its alias is followed.

    Also what is named by relative paths is named so that a replica, which works elsewhere, finds it.
    """
    release = releases.find(config.model, tracking)
    models = releases.load(release, config)
    if config.canary is not None:
        releases.load(releases.find(config.canary, tracking), dataclasses.replace(config, calibration=None))
    data = image_data(config, models.image_size)
    if data is not None:
        data = dataclasses.replace(data, root=str(data_root(data).absolute()))
    pinned = dataclasses.replace(
        config,
        model=config.model if releases.moves(config) else str(release.artifact.folder.absolute()),
        classifier=_absolute(config.classifier),
        calibration=_absolute(config.calibration),
        tokens_file=_absolute(config.tokens_file),
        canary=_absolute(config.canary),
        data=data,
    )
    return pinned, release.artifact.sha256


def _absolute(name: str | None) -> str | None:
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name


def _start_ray(config: ServeConfig, folder: Path) -> None:
    """A private Ray: its dashboard on loopback, its own ports behind a token that only this user can read."""
    prepare_environment()
    ingress.prepare(folder, config.most_in_flight, config.longest_s)
    token_without_home()
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, (1 if config.canary is None else 2) * config.most_replicas + 1),
            include_dashboard=config.dashboard,
            dashboard_host="127.0.0.1",
            _metrics_export_port=config.metrics_port,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (Exception, SystemExit) as error:  # Ray raises plain ones, and exits; its processes end with this one
        reason = " ".join(str(error).split())
        raise UnavailableError(
            f"Ray did not start on this machine: {reason[:200]}: try again when it is idle"
        ) from error
    close_token_file()
    _requests_before_measurements()


def _requests_before_measurements() -> None:
    """Puts Ray's agent of this machine behind all else that wants a processor.

    Every ten seconds it takes in what was measured since, one observation after the other: a tenth of a second for a
    thousand requests, in which answers would wait.
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


def _deploy(config: ServeConfig, tracking: TrackingConfig, digests: tuple[str, ...]) -> None:
    import ray
    from ray import serve

    from maep_serve.ray.app import APP_NAME, CANARY_NAME, CANARY_ROUTE, build_app

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    backstop_s = config.longest_s + 30  # the service's own limits answer first, with a problem document
    # If the first proxy comes too late, Serve starts another; what counts is whether /readyz answers in time
    with contextlib.suppress(ray.exceptions.RayActorError, TimeoutError):
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": config.host, "port": config.port, "request_timeout_s": backstop_s},
            logging_config=quiet,
        )
    app = build_app(config, tracking, digests)
    targets = [serve.RunTarget(app, name=APP_NAME, route_prefix="/", logging_config=quiet)]
    if config.canary is not None:
        canary = build_app(dataclasses.replace(config, model=config.canary, calibration=None), tracking, digests)
        targets.append(serve.RunTarget(canary, name=CANARY_NAME, route_prefix=CANARY_ROUTE, logging_config=quiet))
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _wait_until_running(deadline: float, wait_ready_s: float) -> None:
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    while True:
        applications = serve.status().applications
        failed = [each for each in applications.values() if each.status == ApplicationStatus.DEPLOY_FAILED]
        if failed:
            reasons = [deployment.message for deployment in failed[0].deployments.values()] or [failed[0].message]
            raise UnavailableError(f"the endpoint did not start: {_last_line(reasons[0])}")
        if applications and all(each.status == ApplicationStatus.RUNNING for each in applications.values()):
            return
        if time.monotonic() > deadline:
            state = ", ".join(each.status.value for each in applications.values()) or "unknown to Ray Serve"
            raise UnavailableError(
                f"the endpoint is {state} after {wait_ready_s:g} s: Ray may have no free CPU for its replica"
            )
        time.sleep(0.1)


def _wait_until_ready(url: str, sha256: str, deadline: float, wait_ready_s: float) -> None:
    """Until three connections of their own, one after another, reach a replica: a front knows it a moment later."""
    last, in_a_row = "no answer", 0
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{url}/readyz", timeout=5, trust_env=False)
            last = f"status {answer.status_code}"
            in_a_row = in_a_row + 1 if answer.status_code == 200 else 0
            served = answer.json().get("purifier") if in_a_row else sha256
            if served != sha256:
                raise UnavailableError(f"{url} serves purifier {served}, not {sha256}: another server is there")
            if in_a_row == _ENOUGH:
                return
        except httpx.TransportError as error:
            last, in_a_row = type(error).__name__, 0
        except UnavailableError:  # a ValueError too
            raise
        except ValueError:
            last, in_a_row = "an answer that is not JSON", 0
        if not in_a_row:
            time.sleep(0.1)
    raise UnavailableError(f"{url}/readyz was not ready after {wait_ready_s:g} s: {last}")


def _stop(ours: Path | None) -> None:
    """Drains the endpoint: requests that were taken are answered. `ours`: the folder of a Ray that we started."""
    import ray

    with contextlib.redirect_stdout(io.StringIO()):  # where Ray may say that its controller is dead, as it has to be
        try:
            if ray.is_initialized() and _serve_is_running():
                from ray import serve

                for name in serve.status().applications:
                    serve.delete(name)
                serve.shutdown()
        finally:
            if ours is not None:
                ray.shutdown()
                shutil.rmtree(ours, ignore_errors=True)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "see the replica's log in the Ray session's folder, logs/serve"
