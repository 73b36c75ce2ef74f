"""What is best: by one objective, by one under limits on others, or by several, which is the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maep.errors import ConfigError, nearest
from maep.tune.metrics.estimates import finished, measure, measured
from maep.tune.record import TrialRecord
from maep.tune.search.halving import dominates


def best(trials: Sequence[TrialRecord], objective: str, limits: Mapping[str, float] | None = None) -> TrialRecord:
    """The trial of the best `objective` among those that trained to the end and hold `limits`.

    A limit is in the objective's own unit (a share, ms, a number): the most of what should be small, the least of what
    should be large. Of equals the earlier one. Raises ConfigError, which says what there is, where none holds.
    """
    limits = limits or {}
    for name in (objective, *limits):
        measure(name)
    if not any(trial.status == "done" for trial in trials):
        raise ConfigError(f"none of {len(trials)} trials trained to the end, so none is best by {objective}")
    for name in (objective, *limits):
        if name not in measured(trials):
            raise ConfigError(f"no trial was measured by {name}: {nearest(name, measured(trials))}")
    able = [trial for trial in finished(trials, objective) if all(_holds(trial, *limit) for limit in limits.items())]
    if not able:
        raise ConfigError(_nobody(trials, objective, limits))
    return min(able, key=lambda trial: (_cost(trial, objective), trial.number))


def front(trials: Sequence[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """The finished trials that no other one beats in all `objectives`, from the best by the first of them down.

    One is beaten by another that is nowhere worse and somewhere better, so trials of equal values all stay.
    """
    able = [trial for trial in trials if all(trial in finished([trial], name) for name in objectives)]
    values = {trial.trial_id: tuple(-_cost(trial, name) for name in objectives) for trial in able}
    kept = [trial for trial in able if not any(dominates(other, values[trial.trial_id]) for other in values.values())]
    return sorted(kept, key=lambda trial: (tuple(-value for value in values[trial.trial_id]), trial.number))


def _cost(trial: TrialRecord, objective: str) -> float:
    """The objective so that less is better."""
    value = trial.objectives[objective]
    return value if measure(objective).lower_is_better else -value


def _holds(trial: TrialRecord, objective: str, limit: float) -> bool:
    value = trial.objectives.get(objective)
    if value is None:
        return False
    return value <= limit if measure(objective).lower_is_better else value >= limit


def _nobody(trials: Sequence[TrialRecord], objective: str, limits: Mapping[str, float]) -> str:
    able = finished(trials, objective)
    for name, limit in limits.items():
        how = measure(name)
        values = [trial.objectives[name] for trial in able if name in trial.objectives]
        nearest_value = min(values) if how.lower_is_better else max(values)
        if not any(_holds(trial, name, limit) for trial in able):
            word = "at most" if how.lower_is_better else "at least"
            return f"no trial has {name} {word} {limit:g}: the nearest has {nearest_value:.4g}"
    words = ", ".join(f"{name} {limit:g}" for name, limit in limits.items())
    return f"no trial holds all of {words} at once: loosen one of them"
