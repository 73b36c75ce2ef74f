"""The endpoint on a real Ray Serve: start, golden request, classify, stop; and what is refused before Ray starts."""

from __future__ import annotations

import dataclasses
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
import torch
from processes import children, is_running
from stack import free_ports

from maep import artifact
from maep.config import to_yaml
from maep.errors import ArtifactError, ConfigError, UnavailableError, UserError
from maep_serve import images
from maep_serve.client.client import Client, ProblemError
from maep_serve.config import ServeConfig
from maep_serve.ray import server as server_module
from maep_serve.ray.server import Server, start
from maep_serve.release.releases import Releases


@pytest.fixture(scope="module")
def server(config: ServeConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        running = start(dataclasses.replace(config, port=free_ports(1)[0], num_threads=1), wait_ready_s=200)
        try:
            yield running
        finally:
            running.stop()
    assert not ray.is_initialized()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.url}/healthz", trust_env=False)


def test_served_output_equals_offline_output_bit_for_bit(server: Server, models, png):
    assert server.purifier_sha256 == models.purifier_sha256
    with Client(server.url) as client:
        for seed in range(3):
            served = images.decode(client.purify(png(seed=seed)).image, 10**4)
            with torch.inference_mode():
                clean = models.purifier(images.to_float(images.decode(png(seed=seed), 10**4)))
            assert torch.equal(served, images.to_uint8(clean))


def test_routes_over_http(server: Server, models, png):
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.get("/readyz").json()["purifier"] == models.purifier_sha256
        assert "<title>" in client.get("/").text
        response = client.post("/v1/purify", content=png(), headers={"content-type": "image/png", "x-request-id": "a1"})
        assert response.headers.get_list("x-request-id") == ["a1"]
        assert response.headers["x-maep-purifier"] == models.purifier_sha256
        latin = {"content-type": "image/png", "x-request-id": b"\xe9", "x-session-id": b"\xe9"}  # Ray reads UTF-8
        response = client.post("/v1/purify", content=png(), headers=latin)
        assert response.status_code == 200
        assert response.headers["x-request-id"].isascii()

        def chunks() -> Iterator[bytes]:
            for _ in range(30):
                yield bytes(10_000)

        response = client.post("/v1/purify", content=chunks(), headers={"content-type": "image/png"})
        assert (response.status_code, response.json()["code"]) == (413, "body-too-large")
    with Client(server.url) as client:
        assert len(client.classify(png(), top_k=4).after) == 4
        with pytest.raises(ProblemError, match="not-an-image"):
            client.purify(b"nothing")


def test_a_second_endpoint_on_the_port_is_refused(server: Server, config: ServeConfig):
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(UnavailableError, match=str(port)):
        start(dataclasses.replace(config, port=port))
    assert httpx.get(f"{server.url}/readyz", trust_env=False).status_code == 200


def test_a_second_endpoint_in_the_same_ray_is_refused(server: Server, config: ServeConfig):
    with pytest.raises(UnavailableError, match="already runs"):
        start(dataclasses.replace(config, port=free_ports(1)[0]))
    assert httpx.get(f"{server.url}/readyz", trust_env=False).status_code == 200


def test_replicas_get_the_verified_purifier_by_hash(config: ServeConfig, models, monkeypatch: pytest.MonkeyPatch):
    """By its hash, and by names that do not depend on the working directory."""
    monkeypatch.chdir(Path(config.model).parent)
    relative = dataclasses.replace(config, model=Path(config.model).name)
    pinned, sha256 = server_module._pin(Releases.of(relative))
    assert sha256 == models.purifier_sha256 == pinned.ref.sha256
    assert (pinned.ref.name, pinned.find().artifact.sha256) == (config.model, sha256)


class TestRefusedBeforeAnythingStarts:
    """Each error is one line; Ray is never started (the module's server may already run one)."""

    @pytest.fixture(autouse=True)
    def _no_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("Ray was started")

        monkeypatch.setattr(ray, "init", refuse)

    def refused(self, config: ServeConfig, kind: type[UserError], match: str) -> None:
        with pytest.raises(kind, match=match) as caught:
            start(config)
        assert "\n" not in str(caught.value)

    def test_a_port_in_use(self, config: ServeConfig):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen(1)
            port = taken.getsockname()[1]
            self.refused(dataclasses.replace(config, port=port), UnavailableError, f"port.*{port}")

    def test_a_public_host_without_a_token(self, config: ServeConfig):
        self.refused(dataclasses.replace(config, host="0.0.0.0"), ConfigError, "MAEP_SERVE_TOKEN")

    def test_a_host_of_another_machine(self, config: ServeConfig, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("MAEP_SERVE_TOKEN", "secret")
        self.refused(dataclasses.replace(config, host="192.0.2.1"), ConfigError, "host.*192.0.2.1")

    def test_a_missing_model(self, config: ServeConfig, tmp_path: Path):
        missing = dataclasses.replace(config, model=str(tmp_path / "none"), port=free_ports(1)[0])
        self.refused(missing, UserError, "none")

    def test_a_tampered_model(self, config: ServeConfig, tmp_path: Path):
        copy = tmp_path / "copy"
        artifact.download(config.model, copy)
        weights = bytearray((copy / artifact.WEIGHTS).read_bytes())
        weights[-1] ^= 1
        (copy / artifact.WEIGHTS).write_bytes(weights)
        self.refused(dataclasses.replace(config, model=str(copy), port=free_ports(1)[0]), ArtifactError, "copy")

    def test_an_unknown_classifier(self, config: ServeConfig):
        unknown = dataclasses.replace(config, classifier="cifar10_resnet21", port=free_ports(1)[0])
        self.refused(unknown, ConfigError, "cifar10_resnet20")

    def test_a_classifier_as_the_purifier(self, config: ServeConfig, classifier_folder: Path):
        swapped = dataclasses.replace(config, model=str(classifier_folder), port=free_ports(1)[0])
        self.refused(swapped, ArtifactError, "classifier")


SCRIPT = """
import sys
from maep.config import load
from maep_serve.config import ServeConfig
from maep_serve.ray.server import start
server = start(load(ServeConfig, sys.argv[1]))
print("ready", server.url, flush=True)
server.wait()
print("stopped", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_and_leaves_no_processes(config: ServeConfig, tmp_path: Path, number: signal.Signals):
    file = tmp_path / "serve.yaml"
    file.write_text(to_yaml(dataclasses.replace(config, port=free_ports(1)[0], num_threads=1)))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        try:
            word, url = process.stdout.readline().split()
            assert word == "ready"
            assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
            started = children(process.pid)
            assert len(started) >= 3
            process.send_signal(number)
            assert process.stdout.readline().strip() == "stopped"
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait(60)
    deadline = time.monotonic() + 30
    while any(map(is_running, started)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(filter(is_running, started)) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", trust_env=False)
