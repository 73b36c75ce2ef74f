"""Two replicas on a real Ray Serve, under load: promotions, a killed replica, a killed controller, a new deployment."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import ray

from maep import artifact
from maep.artifact import Artifact
from maep.models.build import load_purifier_artifact
from maep.tracking.client import TrackingConfig
from maep.tracking.registry import register, roll_back, set_alias
from maep_serve import golden
from maep_serve.config import ServeConfig
from maep_serve.server import Server, start

pytestmark = pytest.mark.slow
PNG = {"content-type": "image/png"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def versions(purifier_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """The first purifier, another, and one whose golden outputs will be the first's."""
    folder = tmp_path_factory.mktemp("versions")
    made = [purifier_artifact]
    for name, factor in (("second", 1.01), ("bad", 1.5)):
        weights = {key: tensor * factor for key, tensor in purifier_artifact.weights().items()}
        made.append(artifact.write(folder / name, "purifier", purifier_artifact.config, weights, "# Another\n"))
    return made


@pytest.fixture(scope="module")
def tracking(empty_store: Path, versions: list[Artifact], tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    database = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    shutil.copyfile(empty_store, database)
    store = TrackingConfig(uri=f"sqlite:///{database}")
    outputs = [golden.record(load_purifier_artifact(each)) for each in versions]
    outputs[2] = outputs[0]
    for each, recorded in zip(versions, outputs, strict=True):
        register(store, each, evaluation={"golden": recorded})
    set_alias(store, "champion", 1)
    return store


@pytest.fixture(scope="module")
def settings(config: ServeConfig, tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    return dataclasses.replace(
        config,
        model="models:/purifier@champion",
        follow_s=0.5,
        port=free_port(),
        num_replicas=2,
        num_threads=1,
        metrics_port=free_port(),
        canary="models:/purifier/2",
    )


@pytest.fixture(scope="module")
def server(
    settings: ServeConfig, tracking: TrackingConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        with start(settings, tracking, wait_ready_s=280) as running:
            yield running


class Load:
    """Callers that ask without a pause and without a second try; what each answer was, by status and version."""

    def __init__(self, url: str, body: bytes, num_callers: int) -> None:
        self.answers: Counter[tuple[str, str]] = Counter()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(url, body)) for _ in range(num_callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, url: str, body: bytes) -> None:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            while not self._ended.is_set():
                try:
                    answer = client.post("/v1/purify", content=body, headers=PNG)
                    key = (str(answer.status_code), answer.headers.get("x-maep-purifier", ""))
                except httpx.TransportError as error:
                    key = (type(error).__name__, "")
                with self._lock:
                    self.answers[key] += 1

    def failed(self) -> int:
        """Requests that were not answered 200."""
        return sum(count for (status, _), count in self.answers.items() if status != "200")

    def until(self, reached: Callable[[], bool], seconds: float = 120) -> None:
        """Waits for the load to show something."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, self.answers
            time.sleep(0.05)


@contextmanager
def steady(url: str, body: bytes, num_callers: int = 4) -> Iterator[Load]:
    """A load that has begun to be answered."""
    with Load(url, body, num_callers) as load:
        load.until(lambda: sum(load.answers.values()) > 20)
        yield load


def only(load: Load, sha256: str) -> Callable[[], bool]:
    """Whether the last 30 answers were all of this version."""

    def check() -> bool:
        before = load.answers.copy()
        while sum((load.answers - before).values()) < 30:
            time.sleep(0.01)
        return set(load.answers - before) == {("200", sha256)}

    return check


def test_a_promotion_and_a_rollback_under_load_fail_no_request(server, tracking, versions, png):
    first, second, bad = (each.sha256 for each in versions)
    with steady(server.url, png()) as load:
        set_alias(tracking, "champion", 2)
        load.until(only(load, second))
        assert roll_back(tracking, "champion") == (2, 1)
        load.until(only(load, first))
        set_alias(tracking, "champion", 3)  # whose golden outputs are not its own
        load.until(lambda: load.answers["200", first] > 300)
        assert roll_back(tracking, "champion") == (3, 1)
    print(load.answers)
    assert load.failed() == 0
    assert ("200", bad) not in load.answers


def test_a_killed_replica_costs_at_most_what_it_worked_on(server, png):
    from ray import serve

    with steady(server.url, png(), num_callers=4) as load:
        details = serve.status().applications["maep"].deployments["purifier"]
        assert details.replica_states["RUNNING"] == 2
        victim = ray.get_actor(replica_names()[0], namespace="serve")
        ray.kill(victim)
        seen = sum(load.answers.values())
        load.until(lambda: sum(load.answers.values()) > seen + 200)
        load.until(lambda: serve.status().applications["maep"].deployments["purifier"].replica_states["RUNNING"] == 2)
    print(load.answers)
    assert load.failed() <= 4  # one for each caller


def replica_names() -> list[str]:
    """The actors of the main application's replicas, from the controller."""
    from ray.serve._private.client import ServeControllerClient
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert isinstance(client, ServeControllerClient)
    details = client.get_serve_details()["applications"]["maep"]["deployments"]["purifier"]["replicas"]
    return [each["actor_name"] for each in details if each["state"] == "RUNNING"]


def test_a_killed_controller_and_a_new_deployment_fail_no_request(server, settings, tracking, versions, png):
    from ray import serve

    from maep_serve.app import APP_NAME, build_app

    with steady(server.url, png()) as load:
        ray.kill(ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve"), no_restart=False)
        seen = sum(load.answers.values())
        load.until(lambda: sum(load.answers.values()) > seen + 100)
        data = dataclasses.replace(settings, max_batch_size=4)
        serve.run(build_app(data, tracking), name=APP_NAME, route_prefix="/")
        seen = sum(load.answers.values())
        load.until(lambda: sum(load.answers.values()) > seen + 100)
    print(load.answers)
    assert load.failed() == 0


def test_the_canary_is_a_second_application(server, versions, png):
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        for prefix, version in (("", versions[0]), ("/canary", versions[1])):
            answer = client.post(f"{prefix}/v1/purify", content=png(), headers=PNG)
            assert answer.headers["x-maep-purifier"] == version.sha256
            assert client.get(f"{prefix}/v2/health/ready").status_code == 200
        assert client.get("/canary/v2/models/other").json()["error"].startswith("not-found")


def test_prometheus_gets_the_metrics_by_version_and_application(server, settings, versions, png):
    wanted = {"ray_maep_requests", "ray_maep_stage_seconds_bucket", "ray_maep_batch_size_bucket", "ray_maep_version"}
    deadline = time.monotonic() + 60
    while True:
        httpx.post(f"{server.url}/v1/purify", content=png(), headers=PNG, trust_env=False, timeout=60)
        text = httpx.get(f"http://127.0.0.1:{settings.metrics_port}/metrics", trust_env=False, timeout=60).text
        found = {
            line.partition("{")[0].removesuffix("_total") for line in text.splitlines() if not line.startswith("#")
        }
        if wanted <= found:
            break
        assert time.monotonic() < deadline, sorted(name for name in found if "maep" in name)
        time.sleep(1)
    lines = [line for line in text.splitlines() if line.startswith("ray_maep_requests")]
    for app, version in (("maep", versions[0]), ("maep-canary", versions[1])):
        assert any(f'application="{app}"' in line and f'version="{version.sha256[:12]}"' in line for line in lines), (
            lines
        )
    for stage in ("queue", "decode", "batch_wait", "forward", "encode"):
        assert f'stage="{stage}"' in text


def test_only_our_routes_are_on_the_port(server):
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        for path in ("/docs", "/redoc", "/metrics", "/api/serve/applications/", "/api/jobs/", "/stats", "/-/nothing"):
            assert client.get(path).status_code == 404
        for path in ("/-/routes", "/-/healthz", "/canary/-/routes"):  # Ray's own
            assert client.get(path).json()["code"] == "not-found"
