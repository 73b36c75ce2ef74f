"""The best trial, alone and under limits, and the Pareto front."""

from __future__ import annotations

import pytest
from searches import trial

from maep.errors import ConfigError
from maep.tune.pareto import best, front


def at(number: int, adaptive: float, latency: float, status: str = "done") -> object:
    return trial(number, {"patch_size": number}, adaptive, status, latency_ms=latency)


TRIALS = [at(0, 0.40, 4.0), at(1, 0.44, 9.0), at(2, 0.36, 1.0), at(3, 0.38, 5.0), at(4, 0.50, 0.5, "stopped")]


def test_best_by_one_objective_is_the_highest_accuracy_or_the_lowest_latency() -> None:
    assert best(TRIALS, "adaptive_accuracy").number == 1
    assert best(TRIALS, "latency_ms").number == 2


def test_stopped_trial_is_never_best() -> None:
    assert best([*TRIALS, at(5, 0.9, 0.1, "failed")], "adaptive_accuracy").status == "done"


def test_limits_bound_the_worse_side_of_a_metric() -> None:
    assert best(TRIALS, "adaptive_accuracy", {"latency_ms": 8.0}).number == 0
    assert best(TRIALS, "adaptive_accuracy", {"latency_ms": 1.0}).number == 2
    assert best(TRIALS, "latency_ms", {"adaptive_accuracy": 0.37}).number == 0


def test_ties_go_to_the_earlier_trial() -> None:
    assert best([at(7, 0.4, 1.0), at(3, 0.4, 1.0)], "adaptive_accuracy").number == 3


@pytest.mark.parametrize(
    ("objective", "limits", "said"),
    [
        ("accuracy", {}, "'accuracy'"),
        ("oblivious_accuracy", {}, "oblivious_accuracy.*'adaptive_accuracy'"),
        ("adaptive_accuracy", {"latency_ms": 0.7}, "latency_ms.* 0.7.* 1$"),
        ("latency_ms", {"adaptive_accuracy": 0.6}, "adaptive_accuracy.* 0.6.* 0.44$"),
        ("latency_ms", {"adaptive_accuracy": 0.43, "latency_ms": 5}, "adaptive_accuracy.*latency_ms"),
    ],
)
def test_impossible_questions_are_config_errors(objective: str, limits: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        best(TRIALS, objective, limits)


def test_without_finished_trials_there_is_no_best() -> None:
    with pytest.raises(ConfigError, match="adaptive_accuracy"):
        best(TRIALS[-1:], "adaptive_accuracy")


def test_front_has_the_non_dominated_trials() -> None:
    kept = front(TRIALS, ["adaptive_accuracy", "latency_ms"])
    assert [each.number for each in kept] == [1, 0, 2]  # 3 is beaten by 0; 4 was stopped
    assert [each.number for each in front(TRIALS, ["adaptive_accuracy"])] == [1]


def test_equal_trials_stay_on_the_front() -> None:
    kept = front([at(0, 0.4, 1.0), at(1, 0.4, 1.0), at(2, 0.3, 2.0)], ["adaptive_accuracy", "latency_ms"])
    assert [each.number for each in kept] == [0, 1]


def test_a_trial_that_lacks_an_objective_is_on_no_front() -> None:
    assert front([trial(0, {"patch_size": 2}, 0.9)], ["adaptive_accuracy", "latency_ms"]) == []
