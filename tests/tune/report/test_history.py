"""The course of a search, and what stopping early has saved."""

from __future__ import annotations

import pytest
from searches import AMOUNT, settings, trial

from maep.tune.report.history import history, saved

SPACE = {"patch_size": 2}


def test_best_so_far_is_of_trials_to_the_end_by_images_of_all() -> None:
    trials = [
        trial(0, SPACE, 0.30),
        trial(1, SPACE, 0.90, "stopped", 5_000),
        trial(2, SPACE, None, "failed", 1_000),
        trial(3, SPACE, 0.20),
        trial(4, SPACE, 0.35),
    ]
    steps = history(trials, "adaptive_accuracy")
    assert [(step.trial.number, step.samples_seen, step.best) for step in steps] == [
        (0, 40_000, 0.30),
        (1, 45_000, 0.30),
        (3, 86_000, 0.30),
        (4, 126_000, 0.35),
    ]


def test_before_a_trial_has_trained_to_the_end_there_is_no_best() -> None:
    steps = history([trial(0, SPACE, 0.9, "stopped", 5_000)], "adaptive_accuracy")
    assert [step.best for step in steps] == [None]
    assert history([trial(0, SPACE, None, "failed")], "adaptive_accuracy") == []


def test_of_latency_the_lowest_is_the_best_so_far() -> None:
    steps = history([trial(i, SPACE, latency_ms=value) for i, value in enumerate((3.0, 5.0, 2.0))], "latency_ms")
    assert [step.best for step in steps] == [3.0, 3.0, 2.0]


def test_what_stopped_trials_did_not_spend_is_saved_and_what_failed_ones_did_not_is_not() -> None:
    trials = [
        trial(0, SPACE),
        trial(1, SPACE, 0.1, "stopped", 10_000),
        trial(2, SPACE, 0.1, "stopped", 10_000),
        trial(3, SPACE, None, "failed", 0),
    ]
    whole = saved(trials, settings().budget)
    assert (whole.num_trials, whole.num_stopped, whole.spent, whole.full) == (3, 2, 60_000, 3 * AMOUNT)
    assert whole.share == pytest.approx(0.5)
    seconds = saved(trials, settings(budget={"kind": "core_seconds", "amount": 40}).budget)
    assert seconds.share == pytest.approx(0.5)
    assert saved(trials[3:], settings().budget).share == 0.0
