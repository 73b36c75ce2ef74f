"""Export of a replica's metrics to Ray: counters by their increase, histograms in parts, and failed exports."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from maep_serve.engine.batching import BatchTimes
from maep_serve.engine.metrics import Metrics
from maep_serve.ray import metrics as ray_metrics
from maep_serve.ray.metrics import RayExporter


class Recorded:
    """Replaces Ray's Counter and Gauge; records `values` by name and labels."""

    values: dict[tuple[str, ...], float]
    failures: int

    def __init__(self, name: str, documentation: str, tags: tuple[str, ...]) -> None:
        self.name, self.tags = name, tags

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self.set(self.values.get(self.key(tags), 0.0) + value, tags)

    def set(self, value: float, tags: dict[str, str]) -> None:
        if Recorded.failures:
            Recorded.failures -= 1
            raise RuntimeError("Ray is away")
        assert tuple(tags) == self.tags
        self.values[self.key(tags)] = value

    def key(self, tags: dict[str, str]) -> tuple[str, ...]:
        return (self.name, *tags.values())


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    from ray.serve import metrics

    Recorded.values, Recorded.failures = {}, 0
    monkeypatch.setattr(metrics, "Counter", Recorded)
    monkeypatch.setattr(metrics, "Gauge", Recorded)
    return Recorded.values


def test_histograms_are_gauges_by_the_names_that_prometheus_uses(exported: dict[Any, float]):
    metrics = Metrics()
    for size in (1, 2, 3, 200):
        metrics.batch("a", "classifier", BatchTimes([0.0] * size, 0.1))
    RayExporter(metrics).export()
    buckets = {bound: exported["maep_batch_size_bucket", "classifier", "a", bound] for bound in ("1", "2", "4", "128")}
    assert buckets == {"1": 1, "2": 2, "4": 3, "128": 3}  # a bound belongs to its bucket
    assert exported["maep_batch_size_bucket", "classifier", "a", "+Inf"] == 4
    assert exported["maep_batch_size_sum", "classifier", "a"] == 206
    assert exported["maep_batch_size_count", "classifier", "a"] == 4
    assert {name.removeprefix("maep_batch_size") for name, *_ in exported} == {"_bucket", "_sum", "_count"}


def test_counters_are_exported_by_their_increase(exported: dict[Any, float]):
    metrics = Metrics()
    exporter = RayExporter(metrics)
    for expected in (1, 2):
        metrics.requests.labels("/", "200", "a").inc()
        for _ in range(2):
            exporter.export()
        assert exported == {("maep_requests", "/", "200", "a"): expected}


def test_a_failed_export_ends_nothing_and_the_last_values_are_exported(exported, monkeypatch, caplog):
    monkeypatch.setattr(ray_metrics, "_INTERVAL_S", 0.001)
    metrics = Metrics()
    metrics.serve("a")
    Recorded.failures = 3

    async def main() -> None:
        task = asyncio.create_task(RayExporter(metrics).run())
        while not exported:
            assert not task.done()
            await asyncio.sleep(0)
        metrics.serve("b")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert exported == {("maep_version", "a"): 0, ("maep_version", "b"): 1}
    assert "Ray is away" in caplog.text
