"""Autoscaling down to zero replicas and back; and a graceful stop."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from stack import free_ports

from maep_serve.config import ServeConfig
from maep_serve.ray.server import start

pytestmark = pytest.mark.slow
PNG = {"content-type": "image/png"}


def running() -> int:
    """The number of running replicas."""
    from ray import serve

    states = serve.status().applications["maep"].deployments["purifier"].replica_states
    return int(states.get("RUNNING", 0))


def wait_for(count: int, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while running() != count:
        assert time.monotonic() < deadline, f"{running()} replicas, not {count}"
        time.sleep(0.2)


def test_replicas_scale_from_zero_to_two_and_back(config: ServeConfig, png, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = dataclasses.replace(
        config,
        port=free_ports(1)[0],
        num_threads=1,
        min_replicas=0,
        max_replicas=2,
        target_requests=2,
        upscale_delay_s=0.5,
        downscale_delay_s=3,
    )
    body = png(150, 290)
    with start(settings, wait_ready_s=280) as server:
        assert running() == 1
        wait_for(0)
        answer = httpx.post(f"{server.url}/v1/purify", content=body, headers=PNG, timeout=120, trust_env=False)
        assert answer.status_code == 200  # it waited for a replica
        ended = threading.Event()

        def ask() -> set[int]:
            seen = set()
            with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as client:
                while not ended.is_set():
                    seen.add(client.post("/v1/purify", content=body, headers=PNG).status_code)
            return seen

        with ThreadPoolExecutor(12) as callers:
            asked = [callers.submit(ask) for _ in range(12)]
            try:
                wait_for(2)
            finally:
                ended.set()
        assert set().union(*(each.result() for each in asked)) == {200}
        wait_for(0)


def test_accepted_requests_finish_before_the_endpoint_stops(config: ServeConfig, png, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    limits = {"max_pixels": 4_000_000, "max_body_bytes": 10**7}
    settings = dataclasses.replace(config, port=free_ports(1)[0], num_threads=1, **limits)
    body = png(1500, 2000)
    server = start(settings, wait_ready_s=280)
    with ThreadPoolExecutor(3) as callers:
        asked = [
            callers.submit(
                httpx.post, f"{server.url}/v1/purify", content=body, headers=PNG, timeout=120, trust_env=False
            )
            for _ in range(3)
        ]
        time.sleep(0.5)  # they are on their way; whether they are taken yet is what must not matter
        server.stop()
        assert [each.result().status_code for each in asked] == [200] * 3
