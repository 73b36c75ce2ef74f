"""The metrics of one replica, in a Prometheus registry of its own. `maep_serve.ray.metrics` exports them."""

from __future__ import annotations

from functools import partial
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from maep_serve.engine.batching import BatchTimes

Stage = Literal["queue", "decode", "batch_wait", "forward", "encode"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
_MAX_VERSIONS = 2


class Metrics:
    """Counters, histograms and a gauge. The label `version` is the first 12 digits of the purifier's sha256.

    Histograms and gauges keep only the served version and the one before it; otherwise each promotion would add series.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, histogram = partial(Counter, registry=self.registry), partial(Histogram, registry=self.registry)
        self.requests = counter("maep_requests", "Answered requests.", ("route", "status", "version"))
        self.request_seconds = histogram(
            "maep_request_seconds", "Latency of a request.", ("route", "version"), buckets=_SECONDS
        )
        self._stage_seconds = histogram(
            "maep_stage_seconds", "Time of one image in one stage.", ("stage", "version"), buckets=_SECONDS
        )
        self._batch_size = histogram(
            "maep_batch_size", "Images in a forward pass.", ("model", "version"), buckets=_SIZES
        )
        self._suspicion = histogram("maep_suspicion", "Suspicion score of an image.", ("version",), buckets=_SHARES)
        self._suspected = counter("maep_suspected", "Images suspected of an attack.", ("version",))
        self._scored = counter("maep_scored", "Images with a suspicion score.", ("version",))
        self.refused = counter("maep_refused_version", "Versions that were refused traffic.", ("version",))
        self._served = Gauge(
            "maep_version", "1 for the served version, 0 for the one before it.", ("version",), registry=self.registry
        )
        self._versions: list[str] = []

    def stage(self, version: str, stage: Stage, seconds: float) -> None:
        """One image spent `seconds` in `stage`."""
        self._stage_seconds.labels(stage, version).observe(seconds)

    def batch(self, version: str, model: str, times: BatchTimes) -> None:
        """One forward pass of `model` (purifier, classifier). Each image counts the whole pass as its own time."""
        self._batch_size.labels(model, version).observe(len(times.waits_s))
        if model == "purifier":
            for wait_s in times.waits_s:
                self.stage(version, "batch_wait", wait_s)
                self.stage(version, "forward", times.forward_s)

    def suspicion(self, version: str, score: float, suspected: bool) -> None:
        """One image got a suspicion score."""
        self._suspicion.labels(version).observe(score)
        self._scored.labels(version).inc()
        if suspected:
            self._suspected.labels(version).inc()

    def serve(self, version: str) -> None:
        """New requests now get `version`. Called from the thread that loaded it."""
        for other in self._versions:
            self._served.labels(other).set(0)
        self._served.labels(version).set(1)
        self._versions = [*(each for each in self._versions if each != version), version]
        for gone in self._versions[:-_MAX_VERSIONS]:
            for metric in (self.request_seconds, self._stage_seconds, self._batch_size, self._suspicion, self._served):
                metric.remove_by_labels({"version": gone})
        self._versions = self._versions[-_MAX_VERSIONS:]
