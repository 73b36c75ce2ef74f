"""Importance of settings: fANOVA (Hutter, Hoos, Leyton-Brown 2014) by Optuna, reported only where it can be trusted.

fANOVA fits a random forest to the trials and splits its variance among the settings. It does so for pure noise too, so
no importance is reported if the forest does not predict trials left out of its fit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maep.tune.metrics.estimates import finished, metric
from maep.tune.record import TrialRecord
from maep.tune.report.maps import is_reference, keys
from maep.tune.search.space import Axis

LEAST_TRIALS = 12
"""At least this many, and TRIALS_PER_KEY for each searched setting: with fewer, the forest fits noise."""
TRIALS_PER_KEY = 5
LEAST_EXPLAINED = 0.1
"""Out-of-bag R² below which no importance is reported."""
_TREES = 64


@dataclass(frozen=True)
class Importance:
    """For one objective, each setting's share in [0, 1] of the forest's variance, largest first.

    `shares` is empty where nothing can be reported; `why` is the reason. `explained` is the forest's out-of-bag R²,
    None where no forest was fitted.
    """

    objective: str
    shares: dict[str, float]
    num_trials: int
    explained: float | None = None
    why: str = ""


def importance(trials: Sequence[TrialRecord], space: Mapping[str, Axis], objective: str, seed: int = 0) -> Importance:
    """The share of the variance of `objective` among finished trials that each setting explains alone.

    Interactions belong to no single setting, so the shares may add up to less than 1.
    """
    words = metric(objective).words
    able = [trial for trial in finished(trials, objective) if not is_reference(trial, space)]
    searched = keys(able, space)
    needed = max(LEAST_TRIALS, TRIALS_PER_KEY * len(searched))
    if not searched:
        return Importance(objective, {}, len(able), why="no setting has two values among the finished trials")
    if len(able) < needed:
        few = f"{len(able)} finished trials are too few for {len(searched)} settings, which need {needed}"
        return Importance(objective, {}, len(able), why=few)
    values = [trial.objectives[objective] for trial in able]
    if min(values) == max(values):
        return Importance(objective, {}, len(able), why=f"all trials have the same {words}")
    features = {key: _feature(space[key], [trial.settings[key] for trial in able]) for key in searched}
    explained = _explained([list(row) for row in zip(*features.values(), strict=True)], values)
    if explained < LEAST_EXPLAINED:
        why = (
            f"the settings do not predict the {words} of trials left out of the fit (out-of-bag R² {explained:.2f}),"
            " so shares would reflect noise"
        )
        return Importance(objective, {}, len(able), explained, why)
    countable = {key for key in searched if space[key].values is not None}
    return Importance(objective, _fanova(features, countable, values, seed), len(able), explained)


def _feature(kind: Axis, values: Sequence[Any]) -> list[float]:
    """A setting as numbers: the logarithm of a log-uniform one, the index of an unordered one."""
    if not kind.is_scale:
        known = sorted({repr(value) for value in values})
        return [float(known.index(repr(value))) for value in values]
    return [math.log(value) if kind.log_uniform is not None else float(value) for value in values]


def _explained(features: list[list[float]], values: list[float]) -> float:
    """Out-of-bag R² of a forest like fANOVA's, with enough trees to leave every trial out of some."""
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(n_estimators=4 * _TREES, oob_score=True, random_state=0)
    return float(forest.fit(features, values).oob_score_)


def _fanova(
    features: Mapping[str, list[float]], countable: Collection[str], values: Sequence[float], seed: int
) -> dict[str, float]:
    """Averages over the values of a `countable` setting with equal weight, and uniformly over the range of another."""
    import optuna
    from optuna.importance import FanovaImportanceEvaluator

    ranges = {
        key: optuna.distributions.CategoricalDistribution(sorted(set(column)))
        if key in countable
        else optuna.distributions.FloatDistribution(min(column), max(column))
        for key, column in features.items()
    }
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it logs each study
    try:
        study = optuna.study.create_study(storage=optuna.storages.InMemoryStorage())
        for number, value in enumerate(values):
            chosen = {key: column[number] for key, column in features.items()}
            study.add_trial(optuna.trial.create_trial(params=chosen, distributions=ranges, value=value))
        shares = FanovaImportanceEvaluator(n_trees=_TREES, seed=seed).evaluate(study)
    finally:
        optuna.logging.set_verbosity(before)
    return {str(key): float(share) for key, share in sorted(shares.items(), key=lambda item: -item[1])}
