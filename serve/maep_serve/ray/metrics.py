"""Export a replica's metrics through Ray, which labels them with application, deployment and replica."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from prometheus_client.samples import Sample

from maep_serve.engine.metrics import Metrics

_INTERVAL_S = 4.0  # Ray exports every ten seconds, and drops a gauge that is not set for thirty
_log = logging.getLogger(__name__)


class RayExporter:
    """Copies every sample of `metrics` to Ray Serve's own metrics: counters as counters, all others as gauges.

    A histogram's parts are gauges under the names that Prometheus gives them. Ray's own histogram costs its agent a
    tenth of a millisecond per observation, and reports each observation as the middle of its bucket.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._registry = metrics.registry
        self._exported: dict[str, Any] = {}  # Ray's metrics by name
        self._counts: dict[tuple[str, tuple[str, ...]], float] = {}  # what was already added to Ray's counters

    async def run(self) -> None:
        """Export until cancelled, and once more at the end."""
        try:
            while True:
                self.export()
                await asyncio.sleep(_INTERVAL_S)
        finally:
            self.export()

    def export(self) -> None:
        """Export all samples once. A failure is logged only: missing metrics must not end the replica."""
        try:
            for family in self._registry.collect():
                for sample in family.samples:
                    if family.type == "counter":
                        self._add(family.name, family.documentation, sample)
                    elif not sample.name.endswith("_created"):
                        self._set(family.documentation, sample)
        except Exception:
            _log.exception("metrics export to Ray failed; retrying in %g s", _INTERVAL_S)

    def _add(self, name: str, documentation: str, sample: Sample) -> None:
        if not sample.name.endswith("_total"):
            return
        key = name, tuple(sample.labels.values())
        increase = sample.value - self._counts.get(key, 0.0)
        if increase > 0:
            self._of_ray("Counter", name, documentation, sample.labels).inc(increase, sample.labels)
            self._counts[key] = sample.value

    def _set(self, documentation: str, sample: Sample) -> None:
        labels = dict(sample.labels)
        if "le" in labels:
            labels["le"] = labels["le"].removesuffix(".0")
        self._of_ray("Gauge", sample.name, documentation, labels).set(sample.value, labels)

    def _of_ray(self, kind: str, name: str, documentation: str, labels: dict[str, str]) -> Any:
        from ray.serve import metrics

        if name not in self._exported:
            self._exported[name] = getattr(metrics, kind)(name, documentation, tuple(labels))
        return self._exported[name]
