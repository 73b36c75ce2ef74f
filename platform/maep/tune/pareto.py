"""The best trial by one objective within limits on others, and the Pareto front of several objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maep.errors import ConfigError, nearest
from maep.tune.metrics.estimates import finished, measured, metric
from maep.tune.record import TrialRecord
from maep.tune.search.halving import dominates


def best(trials: Sequence[TrialRecord], objective: str, limits: Mapping[str, float] | None = None) -> TrialRecord:
    """The trial with the best `objective` among those that trained to the end and are within `limits`.

    A limit is in the unit of its objective (a share, ms, a number): an upper bound where lower is better, else a lower
    one. Ties go to the earlier trial. Raises ConfigError, naming the nearest value, where no trial is within the
    limits.
    """
    limits = limits or {}
    for name in (objective, *limits):
        metric(name)
    if not any(trial.status == "done" for trial in trials):
        raise ConfigError(f"none of {len(trials)} trials trained to the end, so there is no best {objective}")
    for name in (objective, *limits):
        if name not in measured(trials):
            raise ConfigError(f"no trial was measured by {name}: {nearest(name, measured(trials))}")
    able = [
        trial for trial in finished(trials, objective) if all(_is_within(trial, *limit) for limit in limits.items())
    ]
    if not able:
        raise ConfigError(_none_within(trials, objective, limits))
    return min(able, key=lambda trial: (_cost(trial, objective), trial.number))


def front(trials: Sequence[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """The finished trials that no other trial dominates in `objectives`, sorted by the first objective, best first.

    Trials with equal values do not dominate each other; all of them stay.
    """
    able = [trial for trial in trials if all(trial in finished([trial], name) for name in objectives)]
    values = {trial.trial_id: tuple(-_cost(trial, name) for name in objectives) for trial in able}
    kept = [trial for trial in able if not any(dominates(other, values[trial.trial_id]) for other in values.values())]
    return sorted(kept, key=lambda trial: (tuple(-value for value in values[trial.trial_id]), trial.number))


def _cost(trial: TrialRecord, objective: str) -> float:
    """The objective, negated where higher is better."""
    value = trial.objectives[objective]
    return value if metric(objective).lower_is_better else -value


def _is_within(trial: TrialRecord, objective: str, limit: float) -> bool:
    value = trial.objectives.get(objective)
    if value is None:
        return False
    return value <= limit if metric(objective).lower_is_better else value >= limit


def _none_within(trials: Sequence[TrialRecord], objective: str, limits: Mapping[str, float]) -> str:
    able = finished(trials, objective)
    for name, limit in limits.items():
        how = metric(name)
        values = [trial.objectives[name] for trial in able if name in trial.objectives]
        nearest_value = min(values) if how.lower_is_better else max(values)
        if not any(_is_within(trial, name, limit) for trial in able):
            word = "at most" if how.lower_is_better else "at least"
            return f"no trial has {name} {word} {limit:g}: the nearest value is {nearest_value:.4g}"
    words = ", ".join(f"{name} {limit:g}" for name, limit in limits.items())
    return f"no trial is within all limits ({words}): loosen one of them"
