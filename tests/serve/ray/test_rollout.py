"""Two replicas on a real Ray Serve, under load: promotions, a killed replica, a killed controller, a new deployment."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import ray
from stack import free_ports

from maep import artifact
from maep.artifact import Artifact
from maep.errors import UserError
from maep.models.build import load_purifier_artifact
from maep.tracking.client import TrackingConfig
from maep.tracking.registry import register, roll_back, set_alias
from maep_serve.client.client import Client
from maep_serve.config import ServeConfig
from maep_serve.ray.server import Server, start
from maep_serve.release import golden
from maep_serve.release.releases import Releases

pytestmark = pytest.mark.slow
PNG = {"content-type": "image/png"}


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
        port=free_ports(1)[0],
        num_replicas=2,
        num_threads=1,
        metrics_port=free_ports(1)[0],
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
    """Callers that send requests without a pause; `answers` counts responses by status and version.

    Each request is sent once, or, `by_client`, with the retries of maep's client.
    """

    def __init__(self, url: str, body: bytes, num_callers: int, by_client: bool) -> None:
        self._answers: Counter[tuple[str, str]] = Counter()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        ask = self._ask_by_client if by_client else self._ask
        self._threads = [threading.Thread(target=ask, args=(url, body)) for _ in range(num_callers)]

    @property
    def answers(self) -> Counter[tuple[str, str]]:
        """So far."""
        with self._lock:
            return self._answers.copy()

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
                self._count(key)

    def _ask_by_client(self, url: str, body: bytes) -> None:
        with Client(url) as client:
            while not self._ended.is_set():
                try:
                    self._count(("200", client.purify(body).purifier))
                except UserError as error:
                    self._count((str(error), ""))

    def _count(self, key: tuple[str, str]) -> None:
        with self._lock:
            self._answers[key] += 1

    def failed(self) -> int:
        """Requests that did not get a 200."""
        return sum(count for (status, _), count in self.answers.items() if status != "200")

    def until(self, reached: Callable[[], bool], seconds: float = 120) -> None:
        """Wait for a condition while the load continues."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, self.answers
            time.sleep(0.05)


@contextmanager
def steady(url: str, body: bytes, num_callers: int = 4, by_client: bool = False) -> Iterator[Load]:
    """A load that has received its first responses."""
    with Load(url, body, num_callers, by_client) as load:
        load.until(lambda: sum(load.answers.values()) > 20)
        yield load


def only(load: Load, sha256: str) -> Callable[[], bool]:
    """Whether the last 30 responses were all of this version."""

    def check() -> bool:
        before = load.answers
        load.until(lambda: sum((load.answers - before).values()) >= 30)
        return set(load.answers - before) == {("200", sha256)}

    return check


def exported(settings: ServeConfig, metric: str) -> list[str]:
    """The exported lines of `metric`."""
    text = httpx.get(f"http://127.0.0.1:{settings.metrics_port}/metrics", trust_env=False, timeout=60).text
    return [line for line in text.splitlines() if line.startswith(f"ray_{metric}")]


def test_a_promotion_and_a_rollback_under_load_fail_no_request(server, settings, tracking, versions, png):
    first, second, bad = (each.sha256 for each in versions)
    with steady(server.url, png()) as load:
        set_alias(tracking, "champion", 2)
        load.until(only(load, second))
        assert roll_back(tracking, "champion") == (2, 1)
        load.until(only(load, first))
        set_alias(tracking, "champion", 3)  # whose golden outputs are not its own
        label = f'version="{bad[:12]}"'
        load.until(lambda: sum(label in line for line in exported(settings, "maep_refused_version")) == 2)  # replicas
        load.until(only(load, first))
        assert roll_back(tracking, "champion") == (3, 1)
    print(load.answers)
    assert load.failed() == 0
    assert ("200", bad) not in load.answers


@pytest.mark.parametrize(("by_client", "most"), [(False, 4), (True, 0)])  # one for each caller; none by our client
def test_a_killed_replica_loses_at_most_its_own_requests(server, png, by_client, most):
    with steady(server.url, png(), num_callers=4, by_client=by_client) as load:
        load.until(lambda: len(replica_names()) == 2)
        victim = replica_names()[0]
        ray.kill(ray.get_actor(victim, namespace="serve"))
        seen = sum(load.answers.values())
        load.until(lambda: sum(load.answers.values()) > seen + 200)
        load.until(lambda: len(replica_names()) == 2 and victim not in replica_names())
    print(load.answers)
    assert load.failed() <= most


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

    from maep_serve.ray.app import APP_NAME, build_app

    with steady(server.url, png()) as load:
        ray.kill(ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve"), no_restart=False)
        seen = sum(load.answers.values())
        load.until(lambda: sum(load.answers.values()) > seen + 100)
        data = dataclasses.replace(settings, max_batch_size=4)
        serve.run(build_app(Releases.of(data, tracking)), name=APP_NAME, route_prefix="/")
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
    wanted = {"maep_requests", "maep_stage_seconds_bucket", "maep_batch_size_bucket", "maep_version"}
    served = (("", "maep", versions[0]), ("/canary", "maep-canary", versions[1]))

    def missing() -> set[str]:
        """The metrics, applications with versions, and stages that are not exported yet."""
        counted, timed = exported(settings, "maep_requests"), "".join(exported(settings, "maep_stage_seconds_bucket"))
        apps = {(f'application="{app}"', f'version="{version.sha256[:12]}"') for _, app, version in served}
        found = {name for name in wanted if exported(settings, name)}
        found |= {app for app, version in apps if any(app in line and version in line for line in counted)}
        stages = {"queue", "decode", "batch_wait", "forward", "encode"}
        return (wanted | {app for app, _ in apps} | stages) - found - {s for s in stages if f'stage="{s}"' in timed}

    deadline = time.monotonic() + 60
    while left := missing():
        assert time.monotonic() < deadline, left
        for prefix, _, _ in served:
            httpx.post(f"{server.url}{prefix}/v1/purify", content=png(), headers=PNG, trust_env=False, timeout=60)
        time.sleep(1)
    time.sleep(30)  # Ray forgets a gauge that is not set again
    assert exported(settings, "maep_version")


def test_only_maeps_routes_are_exposed(server):
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        for path in ("/docs", "/redoc", "/metrics", "/api/serve/applications/", "/api/jobs/", "/stats", "/-/nothing"):
            assert client.get(path).status_code == 404
        for path in ("/-/routes", "/-/healthz", "/canary/-/routes"):  # Ray's own
            assert client.get(path).json()["code"] == "not-found"
