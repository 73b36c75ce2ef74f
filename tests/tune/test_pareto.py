"""What is best: alone, under limits, and of several objectives."""

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


def test_a_stopped_trial_is_never_best_for_it_has_not_spent_the_same() -> None:
    assert best([*TRIALS, at(5, 0.9, 0.1, "failed")], "adaptive_accuracy").status == "done"


def test_limits_are_the_most_of_what_should_be_small_and_the_least_of_what_should_be_large() -> None:
    assert best(TRIALS, "adaptive_accuracy", {"latency_ms": 8.0}).number == 0
    assert best(TRIALS, "adaptive_accuracy", {"latency_ms": 1.0}).number == 2
    assert best(TRIALS, "latency_ms", {"adaptive_accuracy": 0.37}).number == 0


def test_of_equals_the_earlier_one_is_best() -> None:
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
def test_what_cannot_be_answered_is_said_in_one_line(objective: str, limits: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        best(TRIALS, objective, limits)


def test_without_a_trial_that_trained_to_the_end_none_is_best() -> None:
    with pytest.raises(ConfigError, match="adaptive_accuracy"):
        best(TRIALS[-1:], "adaptive_accuracy")


def test_the_front_holds_those_that_no_other_beats_in_all() -> None:
    kept = front(TRIALS, ["adaptive_accuracy", "latency_ms"])
    assert [each.number for each in kept] == [1, 0, 2]  # 3 is beaten by 0; 4 was stopped
    assert [each.number for each in front(TRIALS, ["adaptive_accuracy"])] == [1]


def test_equals_stay_on_the_front_together() -> None:
    kept = front([at(0, 0.4, 1.0), at(1, 0.4, 1.0), at(2, 0.3, 2.0)], ["adaptive_accuracy", "latency_ms"])
    assert [each.number for each in kept] == [0, 1]


def test_a_trial_that_lacks_an_objective_is_on_no_front() -> None:
    assert front([trial(0, {"patch_size": 2}, 0.9)], ["adaptive_accuracy", "latency_ms"]) == []
