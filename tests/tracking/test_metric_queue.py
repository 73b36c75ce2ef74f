from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import pytest

from maep.tracking.metric_queue import MetricPoint, MetricQueue, Refused, thin


class Server:
    """Accepts batches unless `away` is set; counts a repeated batch once, as MLflow does."""

    def __init__(self) -> None:
        self.away = threading.Event()
        self.tried = threading.Event()
        self.points: set[MetricPoint] = set()
        self.sizes: list[int] = []

    def send(self, points: Sequence[MetricPoint]) -> None:
        self.tried.set()
        if self.away.is_set():
            raise OSError("connection refused")
        self.sizes.append(len(points))
        self.points.update(points)


def test_batches_hold_at_most_a_thousand_and_everything_arrives() -> None:
    server = Server()
    outbox = MetricQueue(server.send, "here", interval=60)
    for step in range(1234):
        outbox.add({"loss": step, "lr": 0.1}, step)
    assert outbox.close(10) == 0
    assert max(server.sizes) <= 1000
    assert {(p.key, p.step) for p in server.points} == {(key, s) for key in ("loss", "lr") for s in range(1234)}


def test_an_outage_loses_nothing_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.away.set()
    outbox = MetricQueue(server.send, "here", interval=0.01, longest_wait=0.05)
    with caplog.at_level(logging.WARNING, "maep.tracking"):
        for step in range(3):
            server.tried.clear()
            outbox.add({"loss": step}, step)
            assert server.tried.wait(10)
        assert outbox.away
        assert not outbox.flush(0.2)
        server.away.clear()
        assert outbox.close(10) == 0
    assert sorted(point.step for point in server.points) == [0, 1, 2]
    outages = [record for record in caplog.records if "connection refused" in record.getMessage()]
    assert len(outages) == 1


def test_a_long_outage_thins_the_queue_to_its_capacity() -> None:
    server = Server()
    server.away.set()
    outbox = MetricQueue(server.send, "here", interval=0.01, capacity=100, longest_wait=0.05)
    for step in range(5000):
        outbox.add({"loss": step}, step)
    server.away.clear()
    assert outbox.close(10) == 0
    steps = sorted(point.step for point in server.points)
    assert len(steps) <= 101
    assert steps[-1] == 4999
    assert steps[0] < 2000, "the beginning keeps a share"


def test_a_refused_batch_does_not_block_the_next(caplog: pytest.LogCaptureFixture) -> None:
    taken: list[MetricPoint] = []

    def send(points: Sequence[MetricPoint]) -> None:
        if any(point.key == "bad" for point in points):
            raise Refused("bad name")
        taken.extend(points)

    outbox = MetricQueue(send, "here", interval=60, batch_size=1)
    outbox.add({"bad": 1.0}, 1)
    outbox.add({"good": 1.0}, 1)
    assert outbox.close(10) == 0
    assert [point.key for point in taken] == ["good"]
    assert [record.args and record.args[0] for record in caplog.records] == [1]


def test_closing_during_an_outage_returns_the_number_of_lost_points() -> None:
    server = Server()
    server.away.set()
    outbox = MetricQueue(server.send, "here", interval=0.01, longest_wait=0.05)
    outbox.add({"loss": 1.0, "lr": 1.0}, 1)
    assert outbox.close(0.2) == 2


def test_thinning_keeps_whole_steps_and_the_newest() -> None:
    points = [MetricPoint(key, 0.0, 1, step) for step in range(5) for key in ("loss", "lr")]
    assert [(point.step, point.key) for point in thin(points)] == [
        (step, key) for step in (0, 2, 4) for key in ("loss", "lr")
    ]
