"""How a search went: the best trial so far by images seen, and what early stopping saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maep.tune.config import BudgetConfig
from maep.tune.metrics.estimates import metric
from maep.tune.record import TrialRecord


@dataclass(frozen=True)
class HistoryEntry:
    """A trial that ended, the images seen by all trials until then, and the best finished value so far."""

    samples_seen: int
    trial: TrialRecord
    best: float | None
    """None until a trial has trained to the end: a stopped one has not spent its budget."""


def history(trials: Sequence[TrialRecord], objective: str) -> list[HistoryEntry]:
    """An entry per measured trial in the order of their ends; a failed one only adds its images."""
    pick = min if metric(objective).lower_is_better else max
    entries: list[HistoryEntry] = []
    samples, best = 0, None
    for trial in sorted(trials, key=lambda trial: (trial.ended, trial.number)):
        samples += trial.budget.samples_seen
        value = trial.objectives.get(objective)
        if value is None or trial.status == "failed":
            continue
        if trial.status == "done":
            best = value if best is None else pick(best, value)
        entries.append(HistoryEntry(samples, trial, best))
    return entries


def spent(trial: TrialRecord, kind: str) -> float:
    """What the trial spent, in units of the budget."""
    return float(getattr(trial.budget, kind))


def unspent(trial: TrialRecord, budget: BudgetConfig) -> float:
    """What early stopping saved of the trial's budget; 0 for a trial that was not stopped."""
    return max(budget.amount - spent(trial, budget.kind), 0.0) if trial.status == "stopped" else 0.0


def saved(trials: Sequence[TrialRecord], budget: BudgetConfig) -> tuple[float, float]:
    """What early stopping saved, and what the trials would have spent without it; failed trials do not count."""
    kept = [trial for trial in trials if trial.status != "failed"]
    left = sum(unspent(trial, budget) for trial in kept)
    return left, left + sum(spent(trial, budget.kind) for trial in kept)
