"""The Ray Serve application before any Ray runs, its ingress, and the shipped configurations."""

from __future__ import annotations

import http.server
import importlib.resources
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from maep.errors import ConfigError, UnavailableError
from maep_serve.config import ServeConfig
from maep_serve.http.tokens import digest_of
from maep_serve.problems import CODES
from maep_serve.ray import ingress
from maep_serve.release.releases import Releases


@pytest.fixture(scope="module")
def app() -> Any:
    """The module, whose import takes seconds because of Ray."""
    import maep_serve.ray.app

    return maep_serve.ray.app


def options(application: Any) -> Any:
    """The deployment's configuration in Ray Serve."""
    return application._bound_deployment._deployment_config


def test_replicas_are_fixed_or_follow_the_load(app):
    assert app.replicas(ServeConfig("m", num_replicas=3)) == {"num_replicas": 3}
    scaling = app.replicas(ServeConfig("m", min_replicas=0, max_replicas=4, max_batch_size=16))["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["initial_replicas"]) == (0, 4, 1)
    assert scaling["target_ongoing_requests"] == 16
    for wrong in ({"max_replicas": 0}, {"min_replicas": 3, "max_replicas": 2}, {"min_replicas": -1}):
        with pytest.raises(ValueError, match="replicas"):
            ServeConfig("m", **wrong)


def test_ray_serves_limits_are_above_the_services(app):
    config = ServeConfig("m", max_batch_size=16, max_queued_requests=100)
    told = options(app.build_app(Releases.of(config)))
    assert min(told.max_ongoing_requests, told.max_queued_requests) >= 4 * config.most_in_flight
    assert (told.backpressure_config.status_code, told.backpressure_config.retry_after_s) == (429, 1)
    assert told.max_surge_percent > 0  # else one replica is gone before the next is there
    assert told.graceful_shutdown_timeout_s > 2 * config.request_timeout_s  # for the body, and then for the work


@pytest.mark.parametrize(("longest_s", "named"), [(60, None), (600.5, None), (600, "7")])
def test_a_replaced_haproxy_finishes_its_requests(tmp_path, monkeypatch, longest_s, named):
    name = "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"
    monkeypatch.setattr(os, "environ", {key: value for key, value in os.environ.items() if key != name})
    if named is not None:
        os.environ[name] = named
    ingress.prepare(tmp_path, 2, longest_s)
    assert os.environ[name] == named if named else int(os.environ[name]) >= longest_s + 10


def test_serve_deploy_accepts_the_canary_configuration(app, monkeypatch):
    from ray.serve.schema import ServeDeploySchema

    text = (importlib.resources.files("maep_serve") / "configs" / "canary.yaml").read_text()
    schema = ServeDeploySchema.model_validate(yaml.safe_load(text))
    assert [each.route_prefix for each in schema.applications] == ["/", app.CANARY_ROUTE]
    assert [each.name for each in schema.applications] == [app.APP_NAME, app.CANARY_NAME]
    for each in schema.applications:
        assert each.import_path == "maep_serve.ray.app:application"
        with pytest.raises(ConfigError, match="MAEP_SERVE_TOKEN"):
            app.application(each.args)
    monkeypatch.setenv("MAEP_SERVE_TOKEN", "secret")
    for each in schema.applications:
        built = app.application(each.args)
        releases, digests = built._bound_deployment.init_args
        config, tracking = releases.config, releases.tracking
        assert config.model == each.args["model"]
        assert not config.playground_is_on
        assert tracking.uri == "http://mlflow:5000"
        assert digests == (digest_of("secret"),)  # the token itself is in no cluster state
        assert options(built).autoscaling_config.max_replicas == each.args["max_replicas"]


def test_unknown_arguments_of_serve_deploy_are_named(app):
    with pytest.raises(ConfigError, match="modle"):
        app.application({"modle": "m", "host": "127.0.0.1"})


def test_each_endpoint_has_its_own_haproxy_files_and_ports(tmp_path, monkeypatch):
    seen = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", {**os.environ})
            ingress.prepare(tmp_path / name, 160, 60)
            ingress.prepare(tmp_path / name, 160, 60)  # a second endpoint of the same process
            seen.append(dict(os.environ))
    first, second = seen
    assert first["RAY_SERVE_HAPROXY_SOCKET_PATH"] != second["RAY_SERVE_HAPROXY_SOCKET_PATH"]
    assert first["RAY_SERVE_HAPROXY_METRICS_PORT"] != first["RAY_SERVE_HAPROXY_STATS_PORT"]
    assert first["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    said = subprocess.run([first["RAY_SERVE_HAPROXY_BINARY_PATH"], "-v"], capture_output=True, text=True, timeout=60)
    assert said.stdout.startswith("HAProxy version")


def test_replica_ports_are_free(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ})
    ingress.prepare(tmp_path, 160, 60)
    first, last = (int(os.environ[f"RAY_SERVE_DIRECT_INGRESS_{end}_HTTP_PORT"]) for end in ("MIN", "MAX"))
    assert 25000 <= first < last < 32768
    with socket.create_server(("127.0.0.1", last)):
        assert ingress._free_ports(range(first, last + 1), last - first) == first
        with pytest.raises(UnavailableError, match="ports"):
            ingress._free_ports(range(first, last + 1), last - first + 1)


@pytest.fixture
def haproxy_of_ray(tmp_path, monkeypatch) -> Iterator[dict[str, int]]:
    """The ports of a HAProxy that Ray configured and haproxy.py started; its replica is not running."""
    with haproxy(tmp_path, monkeypatch, {"maep": "/"}) as ports:
        yield ports


@contextmanager
def haproxy(folder: Path, monkeypatch: pytest.MonkeyPatch, applications: dict[str, str]) -> Iterator[dict[str, int]]:
    """The same, for `applications`: path prefixes by name."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    monkeypatch.setattr(os, "environ", {**os.environ})
    ingress.prepare(folder, 2, 60)
    ports = {name: ingress._free_ports(range(20000, 25000), 1) for name in ("public", "metrics", "stats", "nobody")}
    config = HAProxyConfig(
        socket_path=str(folder / "socket"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        stats_port=ports["stats"],
        metrics_port=ports["metrics"],
        metrics_enabled=False,
        http_options=HTTPOptions(host="0.0.0.0", port=ports["public"]),
        is_head=True,
    )
    backends = {
        name: BackendConfig(name, prefix, app_name=name, servers=[ServerConfig("one", "127.0.0.1", ports["nobody"])])
        for name, prefix in applications.items()
    }
    file = folder / "haproxy.cfg"
    api = HAProxyApi(config, backends, str(file))
    api._initialize_directories_and_error_files()
    api._generate_config_file_internal()
    (folder / "as-ray-wrote-it").write_bytes(file.read_bytes())
    process = subprocess.Popen([os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(file)])
    try:
        deadline = time.monotonic() + 60
        while ports["stats"] not in (port for _, port in listening()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield ports
    finally:
        process.kill()
        process.wait(60)


def listening() -> set[tuple[str, int]]:
    """The IPv4 addresses (as in /proc/net/tcp) and ports with a listening socket."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {(row[1].partition(":")[0], int(row[1].partition(":")[2], 16)) for row in rows if row[3] == "0A"}


def test_haproxy_hides_its_statistics_and_rays_routes(haproxy_of_ray):
    addresses = {port: address for address, port in listening()}
    assert addresses[haproxy_of_ray["public"]] == "00000000"
    assert addresses[haproxy_of_ray["metrics"]] == addresses[haproxy_of_ray["stats"]] == "0100007F"
    with httpx.Client(base_url=f"http://127.0.0.1:{haproxy_of_ray['public']}", trust_env=False, timeout=60) as client:
        for path in ("/-/routes", "/-/healthz", "/-/Routes", "/%2D/routes"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
            assert len(answer.headers["x-request-id"]) == 36
        answer = client.get("/readyz", headers={"x-request-id": "mine"})  # passed on, to nobody
        assert (answer.status_code, answer.headers["retry-after"], answer.json()["code"]) == (503, "1", "not-ready")
        assert answer.headers["x-request-id"] == "mine"


def test_haproxy_without_an_application_responds_503_with_retry_after(tmp_path, monkeypatch):
    with haproxy(tmp_path, monkeypatch, {}) as ports:
        answer = httpx.post(f"http://127.0.0.1:{ports['public']}/v1/purify", content=b"image", trust_env=False)
    assert (answer.status_code, answer.headers["retry-after"], answer.json()["code"]) == (503, "1", "not-ready")
    assert len(answer.headers["x-request-id"]) == 36


class SlowReplica(http.server.BaseHTTPRequestHandler):
    """Responds to a GET at once, and to a POST when `may_answer` is set."""

    protocol_version = "HTTP/1.1"
    arrived = threading.Semaphore(0)
    may_answer = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.arrived.release()
        self.may_answer.wait(60)
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def replica(ports: dict[str, int], kind: type[http.server.BaseHTTPRequestHandler]) -> Iterator[httpx.Client]:
    """A client of HAProxy, which has detected the replica."""
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", ports["nobody"]), kind) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{ports['public']}", trust_env=False, timeout=60) as client,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            deadline = time.monotonic() + 60
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield client
        finally:
            server.shutdown()


def test_haproxy_refuses_requests_above_the_replicas_limit(haproxy_of_ray):
    """The limit is two per replica."""
    with replica(haproxy_of_ray, SlowReplica) as client, ThreadPoolExecutor(2) as pool:
        taken = [pool.submit(client.post, "/v1/purify", content=b"image") for _ in range(2)]
        assert all(SlowReplica.arrived.acquire(timeout=60) for _ in taken)
        answer = client.post("/v1/purify", content=b"image", headers={"x-request-id": "mine"})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.headers["x-request-id"] == "mine"
        assert answer.headers["content-type"] == "application/problem+json"
        status, title = CODES["queue-full"]
        assert (answer.json()["code"], answer.json()["status"], answer.json()["title"]) == ("queue-full", status, title)
        assert client.get("/readyz").status_code == 200  # health is asked for when it matters
        SlowReplica.may_answer.set()
        assert [each.result().status_code for each in taken] == [200, 200]
        assert client.post("/v1/purify", content=b"image").status_code == 200


class StrictReplica(http.server.BaseHTTPRequestHandler):
    """Responds before it reads a body, as the endpoint does if a token is missing."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.send_response(401)
        self.send_header("content-length", "0")
        self.send_header("connection", "close")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_incomplete_bodies_do_not_count_as_in_flight(haproxy_of_ray):
    with replica(haproxy_of_ray, StrictReplica) as client, ExitStack() as held:
        for _ in range(5):
            half = held.enter_context(socket.create_connection(("127.0.0.1", haproxy_of_ray["public"]), 60))
            half.sendall(b"POST /v1/purify HTTP/1.1\r\nhost: maep\r\ncontent-length: 1000\r\n\r\nhalf")
        time.sleep(0.2)  # HAProxy, which has one thread, has read them by then
        assert client.post("/v1/purify", content=b"image").status_code == 401


class TellingReplica(StrictReplica):
    """Responds with the request's headers."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        told = json.dumps([[name.lower(), value] for name, value in self.headers.items()]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)


def test_haproxy_forwards_a_plain_request_id_and_none_of_rays_headers(haproxy_of_ray):
    """Ray's replica decodes them as UTF-8, and fails."""
    with replica(haproxy_of_ray, TellingReplica) as client:

        def sent(*headers: tuple[str, bytes]) -> tuple[list[list[str]], str]:
            answer = client.post("/v1/purify", content=b"image", headers=[("content-length", b"5"), *headers])
            return answer.json(), answer.headers["x-request-id"]

        told, answered = sent(("x-request-id", b"mine-1"))
        assert [value for name, value in told if name == "x-request-id"] == ["mine-1"] == [answered]
        for wrong in ([b"\xe9"], [b"\xe9,mine"], [b"mine", b"\xe9"], [b"m" * 129], [b""], []):
            told, answered = sent(*[("x-request-id", value) for value in wrong])
            assert [value for name, value in told if name == "x-request-id"] == [answered]
            assert len(answered) == 36
        rays = ("x-session-id", "serve_multiplexed_model_id", "serve-multiplexed-model-id", "x-request-timeout-seconds")
        told, _ = sent(*[(name, b"\xe9") for name in rays], ("x-session", b"stays"))
        assert ["x-session", "stays"] in told
        assert "\xe9" not in {value for _, value in told}


def test_haproxy_times_out_idle_callers(tmp_path, monkeypatch):
    """A caller whose body exceeds HAProxy's buffer counts as in flight until this timeout."""
    from ray.serve._private import constants

    name = "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"
    assert hasattr(constants, name)  # Ray reads it; its own is an hour
    monkeypatch.setattr(os, "environ", {**os.environ})
    ingress.prepare(tmp_path, 2, 60)
    assert int(os.environ[name]) <= 15


@pytest.mark.parametrize("moved", ["frontend prometheus", "listen stats", "frontend http_frontend", "backend default_"])
def test_haproxy_is_not_started_with_an_unknown_configuration(haproxy_of_ray, tmp_path, moved):
    """Otherwise private statistics would silently become public."""
    text = (tmp_path / "as-ray-wrote-it").read_text()
    seen = []
    for name, given in (("same", text), ("another", text.replace(moved, f"{moved}2"))):
        (tmp_path / name).write_text(given)
        command = [os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"], "-c", "-f", str(tmp_path / name)]
        seen.append(subprocess.run(command, capture_output=True, text=True, timeout=60))
    assert (seen[0].returncode, seen[1].returncode) == (0, 1)
    assert "HAProxy" in seen[1].stderr


def test_haproxy_ends_with_its_parent(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ})
    ingress.prepare(tmp_path, 2, 60)
    # Not by -f, which says that it is Ray's
    (tmp_path / "cfg").write_text("defaults\n  mode http\n  timeout client 9s\nfrontend f\n  bind 127.0.0.1:0\n")
    wrapper = os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]
    program = (
        "import subprocess, sys, time;"
        f"p = subprocess.Popen([{wrapper!r}, '-db', '--', {str(tmp_path / 'cfg')!r}]);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    with starter.stdout:
        child = Path("/proc") / starter.stdout.readline().strip()
        deadline = time.monotonic() + 60
        while "haproxy" not in (child / "comm").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        starter.kill()
        starter.wait(60)
    while child.exists() and "Z" not in (child / "stat").read_text().rpartition(")")[2].split()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
