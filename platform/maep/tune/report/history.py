"""The course of a search: the best so far by images seen, and what stopping trials early has saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maep.tune.config import BudgetConfig
from maep.tune.metrics.estimates import measure
from maep.tune.record import TrialRecord


@dataclass(frozen=True)
class Step:
    """A trial that ended: images seen by all trials until then, its value, and the best finished one so far."""

    samples_seen: int
    trial: TrialRecord
    value: float
    best: float | None
    """None until the first trial has trained to the end: one that was stopped has not spent the same."""


@dataclass(frozen=True)
class Saved:
    """What the trials that did not fail have spent, in `kind`, and what all of them to the end would have."""

    kind: str
    num_trials: int
    num_stopped: int
    spent: float
    full: float

    @property
    def share(self) -> float:
        """Of `full`, what was not spent."""
        return 1 - self.spent / self.full if self.full else 0.0


def history(trials: Sequence[TrialRecord], objective: str) -> list[Step]:
    """One step for each measured trial, in the order in which they ended; a failed one adds its images only."""
    lower = measure(objective).lower_is_better
    steps: list[Step] = []
    samples, best = 0, None
    for trial in sorted(trials, key=lambda trial: (trial.ended, trial.number)):
        samples += trial.budget.samples_seen
        value = trial.objectives.get(objective)
        if value is None or trial.status == "failed":
            continue
        if trial.status == "done":
            best = value if best is None else (min if lower else max)(best, value)
        steps.append(Step(samples, trial, value, best))
    return steps


def spent(trial: TrialRecord, kind: str) -> float:
    """What the trial has spent, in the kind of the budget."""
    value: float = getattr(trial.budget, kind)
    return value


def unspent(trial: TrialRecord, budget: BudgetConfig) -> float:
    """What stopping the trial early left of its budget; 0 where it was not stopped."""
    return max(budget.amount - spent(trial, budget.kind), 0.0) if trial.status == "stopped" else 0.0


def saved(trials: Sequence[TrialRecord], budget: BudgetConfig) -> Saved:
    """What early stopping left unspent. Failed trials are not in it: what they did not spend is no saving."""
    kept = [trial for trial in trials if trial.status != "failed"]
    stopped = sum(trial.status == "stopped" for trial in kept)
    total = sum(spent(trial, budget.kind) for trial in kept)
    return Saved(budget.kind, len(kept), stopped, total, total + sum(unspent(trial, budget) for trial in kept))
