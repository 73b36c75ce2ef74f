"""Starts the endpoint on this machine, waits until it answers, and stops it without leaving anything behind."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path
from types import FrameType

import httpx

from maep.cluster import prepare_environment, token_without_home
from maep.data.datasets import data_root
from maep.errors import ConfigError, UnavailableError
from maep_serve.config import ServeConfig, is_loopback
from maep_serve.loading import build_models, image_data

TOKEN_VARIABLE = "MAEP_SERVE_TOKEN"
_CONTROLLER = "SERVE_CONTROLLER_ACTOR"


class Server:
    """A running endpoint. `stop` ends it, and the Ray it started."""

    def __init__(self, url: str, purifier_sha256: str, owns_ray: bool) -> None:
        self.url = url
        self.purifier_sha256 = purifier_sha256
        self._owns_ray = owns_ray
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
        _stop(self._owns_ray)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(config: ServeConfig, wait_ready_s: float = 180.0) -> Server:
    """Starts the endpoint and returns when /readyz answers 200 with the purifier that was verified here.

    Before anything starts, the address, the port, the model and the classifier are checked. A Ray this process is
    already connected to is used and left running; otherwise a private one is started, and ended by `stop`.
    Raises ConfigError for a host that needs a token, UnavailableError for a taken port or an endpoint that is
    not ready after `wait_ready_s`, and what `maep.tracking.resolve` raises for the model.
    """
    token = endpoint_token(config)
    check_port(config)
    pinned, sha256 = _pin(config)

    import ray

    owns_ray = not ray.is_initialized()
    if owns_ray:
        _start_ray(config)
    elif _serve_is_running():
        raise UnavailableError("Ray Serve already runs in this Ray: stop the endpoint that was started before this one")
    url = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{config.port}"
    try:
        deadline = time.monotonic() + wait_ready_s
        _deploy(pinned, token)
        _wait_until_running(deadline, wait_ready_s)
        _wait_until_ready(url, sha256, deadline, wait_ready_s)
    except BaseException:
        _stop(owns_ray)
        raise
    return Server(url, sha256, owns_ray)


def endpoint_token(config: ServeConfig) -> str | None:
    """The bearer token that the endpoint asks for. Raises ConfigError where there is none and there must be."""
    token = os.environ.get(TOKEN_VARIABLE)
    if not token and not is_loopback(config.host):
        raise ConfigError(
            f"host: {config.host} can be reached from other machines: set {TOKEN_VARIABLE}, or --host 127.0.0.1"
        )
    return token or None


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


def _pin(config: ServeConfig) -> tuple[ServeConfig, str]:
    """Verifies the models here, and points the replicas (on this machine) to the very folder that was verified."""
    from maep.tracking.resolve import resolve

    artifact = resolve(config.model)
    models = build_models(artifact, config)
    data = image_data(config, models.image_size)
    if data is not None:
        data = dataclasses.replace(data, root=str(data_root(data).absolute()))
    classifier = config.classifier
    if classifier is not None and Path(classifier).is_dir():
        classifier = str(Path(classifier).absolute())
    folder = str(artifact.folder.absolute())
    return dataclasses.replace(config, model=folder, classifier=classifier, data=data), artifact.sha256


def _start_ray(config: ServeConfig) -> None:
    """A private Ray, reachable from this machine only, its token readable by this user only."""
    import ray

    prepare_environment()
    # On a busy machine a proxy needs longer than the 5 s after which Serve would kill it and start another
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    token_without_home()
    try:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, config.num_replicas + 1),
            include_dashboard=config.dashboard,
            dashboard_host="127.0.0.1",
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (Exception, SystemExit) as error:  # Ray raises plain ones, and exits; its processes end with this one
        reason = " ".join(str(error).split())
        raise UnavailableError(
            f"Ray did not start on this machine: {reason[:200]}: try again when it is idle"
        ) from error
    token_file = Path.home() / ".ray" / "auth_token"
    if token_file.is_file():
        token_file.chmod(0o600)


def _serve_is_running() -> bool:
    import ray

    return any(actor["name"] == _CONTROLLER for actor in ray.util.list_named_actors(all_namespaces=True))


def _deploy(config: ServeConfig, token: str | None) -> None:
    import ray
    from ray import serve

    from maep_serve.app import APP_NAME, build_app

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    backstop_s = config.request_timeout_s + 30  # the service's own limits answer first, with a problem document
    # If the first proxy comes too late, Serve starts another; what counts is whether /readyz answers in time
    with contextlib.suppress(ray.exceptions.RayActorError, TimeoutError):
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": config.host, "port": config.port, "request_timeout_s": backstop_s},
            logging_config=quiet,
        )
    app = build_app(config, None if token is None else hashlib.sha256(token.encode()).hexdigest())
    target = serve.RunTarget(app, name=APP_NAME, route_prefix="/", logging_config=quiet)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _wait_until_running(deadline: float, wait_ready_s: float) -> None:
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    from maep_serve.app import APP_NAME

    while True:
        application = serve.status().applications.get(APP_NAME)
        if application is not None and application.status == ApplicationStatus.RUNNING:
            return
        if application is not None and application.status == ApplicationStatus.DEPLOY_FAILED:
            reasons = [deployment.message for deployment in application.deployments.values()] or [application.message]
            raise UnavailableError(f"the endpoint did not start: {_last_line(reasons[0])}")
        if time.monotonic() > deadline:
            state = "unknown to Ray Serve" if application is None else application.status.value
            raise UnavailableError(
                f"the endpoint is {state} after {wait_ready_s:g} s: Ray may have no free CPU for {APP_NAME}'s replica"
            )
        time.sleep(0.1)


def _wait_until_ready(url: str, sha256: str, deadline: float, wait_ready_s: float) -> None:
    last = "no answer"
    with httpx.Client(timeout=5, trust_env=False) as client:
        while time.monotonic() < deadline:
            try:
                answer = client.get(f"{url}/readyz")
                last = f"status {answer.status_code}"
                if answer.status_code == 200:
                    served = answer.json().get("purifier")
                    if served == sha256:
                        return
                    raise UnavailableError(f"{url} serves purifier {served}, not {sha256}: another server is there")
            except httpx.TransportError as error:
                last = type(error).__name__
            except ValueError:
                last = "an answer that is not JSON"
            time.sleep(0.1)
    raise UnavailableError(f"{url}/readyz was not ready after {wait_ready_s:g} s: {last}")


def _stop(owns_ray: bool) -> None:
    import ray

    try:
        from ray import serve

        from maep_serve.app import APP_NAME

        if ray.is_initialized() and _serve_is_running():
            serve.delete(APP_NAME)  # drains: requests that were taken are answered
            if not owns_ray:
                serve.shutdown()
    finally:
        if owns_ray:
            ray.shutdown()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "see the replica's log in the Ray session's folder, logs/serve"
