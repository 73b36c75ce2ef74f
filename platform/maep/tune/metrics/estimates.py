"""Values of the metrics that trials are compared by, with their intervals.

Accuracies carry Wilson's 95 % interval over the `dev` images. Other metrics are single numbers: their variation between
runs is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from maep import registry
from maep.evaluate.results.summary import interval
from maep.registry.entries import MetricEntry
from maep.tune.record import TrialRecord


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, in the objective's own unit (shares, ms, parameters); `low` and `high` are the
    value itself where it has no interval. `count` is the number of images it is over, 0 where it is over none.
    """

    value: float
    low: float
    high: float
    count: int = 0

    def overlaps(self, other: Estimate) -> bool:
        """Whether the intervals share a point: then the two are not shown to differ."""
        return self.low <= other.high and other.low <= self.high


def metric(objective: str) -> MetricEntry:
    """The registered metric `objective`. Raises ConfigError for an unknown name."""
    return registry.metrics.declared(objective)


def measured(trials: Sequence[TrialRecord]) -> list[str]:
    """The objectives that any of the trials has, in the order of tables."""
    return [name for name in registry.metrics.names() if any(name in trial.objectives for trial in trials)]


def estimate(trial: TrialRecord, objective: str) -> Estimate:
    """The estimate of `trial`, which must have been measured."""
    return pooled([trial], objective)


def pooled(trials: Sequence[TrialRecord], objective: str) -> Estimate:
    """The mean of repeats, all measured on the same images.

    Repeats do not add images, so the interval is that of the mean share over one set of images; it is widened to
    include every repeat, because a difference that the images do not explain comes from the seed.
    """
    values = [trial.objectives[objective] for trial in trials]
    mean = sum(values) / len(values)
    counts = [trial.counts[objective] for trial in trials if objective in trial.counts]
    low, high, count = min(values), max(values), 0
    if counts:
        count = min(number for _, number in counts)
        bounds = interval(round(mean * count), count)
        low, high = min(low, bounds[0]), max(high, bounds[1])
    return Estimate(mean, low, high, count)


def text(found: Estimate, objective: str) -> str:
    """A value for a table: 43.1 [40.0, 46.2]; repeats without an interval: 4.05 (4.00–4.10)."""
    value, low, high = (metric(objective).text(each) for each in (found.value, found.low, found.high))
    if found.count:
        return f"{value} [{low}, {high}]"
    return value if found.low == found.high else f"{value} ({low}–{high})"


def with_unit(found: Estimate, objective: str) -> str:
    """A value for a sentence: 43.1 % [40.0, 46.2]."""
    how = metric(objective)
    value, space, brackets = text(found, objective).partition(" ")
    return f"{value} {how.unit}{space}{brackets}"


def finished(trials: Iterable[TrialRecord], objective: str) -> list[TrialRecord]:
    """Trials that trained to the end and were measured: only these spent the same budget, so only they are compared."""
    return [trial for trial in trials if trial.status == "done" and objective in trial.objectives]
