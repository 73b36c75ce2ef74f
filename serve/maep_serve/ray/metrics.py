"""What the endpoint measures of itself: instruments as data, and a meter that knows neither Ray nor Prometheus."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from maep_serve.engine.batching import BatchTimes

Sink = Callable[[str, float, Mapping[str, str]], None]
"""Takes one measurement: an instrument's name, the value, and the value of each of its tags."""

Stage = Literal["queue", "decode", "batch_wait", "forward", "encode"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
_SERVED = "maep_version"


@dataclass(frozen=True)
class Instrument:
    """One metric. `boundaries` are a histogram's upper bounds. Tag `version`: the purifier's sha256, cut short."""

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    description: str
    tags: tuple[str, ...]
    boundaries: tuple[float, ...] = ()


INSTRUMENTS = (
    Instrument("maep_requests", "counter", "Answered requests.", ("route", "status", "version")),
    Instrument("maep_request_seconds", "histogram", "From request to answer.", ("route", "version"), _SECONDS),
    Instrument("maep_stage_seconds", "histogram", "One image in one stage.", ("stage", "version"), _SECONDS),
    Instrument("maep_batch_size", "histogram", "Images in a forward pass.", ("model", "version"), _SIZES),
    Instrument("maep_suspicion", "histogram", "Suspicion score of a classified image.", ("version",), _SHARES),
    Instrument("maep_suspected", "counter", "Classified images that are suspected.", ("version",)),
    Instrument("maep_scored", "counter", "Classified images that have a suspicion score.", ("version",)),
    Instrument("maep_refused_version", "counter", "Releases that were refused and took no traffic.", ("version",)),
    Instrument(_SERVED, "gauge", "1 for the version a replica serves, 0 for the one before it.", ("version",)),
)


HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
"""What Prometheus calls them; a bucket has the label `le`, its upper bound, and counts all values up to it."""


class Summary:
    """Sums up histograms and keeps the last value of gauges, of the version that is served and of the one before it.

    Of those before that nothing is told any more, else there would be more to tell with each promotion.
    """

    def __init__(self) -> None:
        self._boundaries = {each.name: each.boundaries for each in INSTRUMENTS if each.kind == "histogram"}
        self._tags = {each.name: each.tags for each in INSTRUMENTS}
        self._gauges: dict[tuple[str, tuple[str, ...]], float] = {}
        self._histograms: dict[tuple[str, tuple[str, ...]], tuple[list[int], list[float]]] = {}
        self._versions: list[str] = []

    def add(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """One measurement."""
        key = name, tuple(tags[tag] for tag in self._tags[name])
        boundaries = self._boundaries.get(name)
        if boundaries is None:
            self._gauges[key] = value
            if name == _SERVED and value:
                self._forget_all_but(tags["version"])
            return
        found = self._histograms.get(key)
        if found is None:
            found = self._histograms.setdefault(key, ([0] * (len(boundaries) + 1), [0.0]))
        counts, total = found
        counts[bisect.bisect_left(boundaries, value)] += 1
        total[0] += value

    def _forget_all_but(self, version: str) -> None:
        """In the thread that has loaded `version`, while requests are counted in another."""
        self._versions = [*(each for each in self._versions if each != version), version][-2:]
        for series in (self._gauges, self._histograms):
            for name, words in list(series):
                if words[self._tags[name].index("version")] not in self._versions:
                    series.pop((name, words), None)

    def values(self) -> Iterator[tuple[str, float, dict[str, str]]]:
        """All of it, histograms in their parts: name, value, tags."""
        for (name, words), value in list(self._gauges.items()):
            yield name, value, dict(zip(self._tags[name], words, strict=True))
        for (name, words), (counts, total) in list(self._histograms.items()):
            tags = dict(zip(self._tags[name], words, strict=True))
            so_far = list(itertools.accumulate(counts))
            for boundary, count in zip((*self._boundaries[name], math.inf), so_far, strict=True):
                yield f"{name}_bucket", count, {**tags, "le": f"{boundary:g}".replace("inf", "+Inf")}
            yield f"{name}_sum", total[0], tags
            yield f"{name}_count", so_far[-1], tags


def forget(name: str, value: float, tags: Mapping[str, str]) -> None:
    """The sink of an endpoint that is not measured."""
    del name, value, tags


class Meter:
    """Gives `sink` the measurements of one version of the purifier."""

    def __init__(self, sink: Sink, purifier_sha256: str) -> None:
        self._sink = sink
        self.version = {"version": purifier_sha256[:12]}

    def stage(self, stage: Stage, seconds: float) -> None:
        """One image spent `seconds` in `stage`."""
        self._sink("maep_stage_seconds", seconds, {"stage": stage, **self.version})

    def batch(self, model: str, times: BatchTimes) -> None:
        """One forward pass of `model` (purifier, classifier). Each of its images waited for all of it."""
        self._sink("maep_batch_size", len(times.waits_s), {"model": model, **self.version})
        if model == "purifier":
            for wait_s in times.waits_s:
                self.stage("batch_wait", wait_s)
                self.stage("forward", times.forward_s)

    def suspicion(self, score: float, suspected: bool) -> None:
        """One image was scored."""
        self._sink("maep_suspicion", score, self.version)
        self._sink("maep_scored", 1, self.version)
        if suspected:
            self._sink("maep_suspected", 1, self.version)

    def serving(self, now: bool) -> None:
        """Whether this version is the one that new requests get."""
        self._sink(_SERVED, float(now), self.version)
