"""Importance finds the setting that matters, and reports nothing where it cannot be trusted."""

from __future__ import annotations

import random

import pytest
from searches import settings, trial

from maep.tune.record import TrialRecord
from maep.tune.report.importance import importance

SPACE = settings(
    space={
        "mask_ratio": {"uniform": [0.2, 0.8]},
        "patch_size": {"choice": [2, 4, 8]},
        "kl_weight": {"log_uniform": [0.01, 1]},
    }
).space


def drawn(count: int, weight: float, noise: float, status: str = "done") -> list[TrialRecord]:
    """Trials whose accuracy is `weight` x mask ratio and so much noise."""
    chance = random.Random(0)
    made = []
    for number in range(count):
        values = {key: axis.at(chance.random()) for key, axis in SPACE.items()}
        share = 0.2 + weight * values["mask_ratio"] + noise * chance.random()
        made.append(trial(number, values, share, status))
    return made


def test_deciding_setting_explains_nearly_all_variance() -> None:
    found = importance(drawn(24, 0.5, 0.02), SPACE, "adaptive_accuracy")
    assert next(iter(found.shares)) == "mask_ratio"
    assert found.shares["mask_ratio"] > 0.8
    assert sum(found.shares.values()) <= 1.0 + 1e-6
    assert found.explained is not None
    assert found.explained > 0.7
    assert found.num_trials == 24


def test_noise_has_no_importance() -> None:
    found = importance(drawn(24, 0.0, 0.3), SPACE, "adaptive_accuracy")
    assert found.shares == {}
    assert found.why


@pytest.mark.parametrize(
    "trials",
    [drawn(14, 0.5, 0.02), drawn(1, 0.5, 0.02), drawn(30, 0.5, 0.02, "stopped"), drawn(16, 0.0, 0.0)],
    ids=["few", "one", "stopped", "equal"],
)
def test_unknown_importance_has_a_reason(trials: list[TrialRecord]) -> None:
    found = importance(trials, SPACE, "adaptive_accuracy")
    assert found.shares == {}
    assert found.why
