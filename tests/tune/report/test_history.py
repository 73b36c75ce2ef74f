"""The history of a search, and what early stopping saved."""

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
    entries = history(trials, "adaptive_accuracy")
    assert [(entry.trial.number, entry.samples_seen, entry.best) for entry in entries] == [
        (0, 40_000, 0.30),
        (1, 45_000, 0.30),
        (3, 86_000, 0.30),
        (4, 126_000, 0.35),
    ]


def test_before_a_trial_has_trained_to_the_end_there_is_no_best() -> None:
    entries = history([trial(0, SPACE, 0.9, "stopped", 5_000)], "adaptive_accuracy")
    assert [entry.best for entry in entries] == [None]
    assert history([trial(0, SPACE, None, "failed")], "adaptive_accuracy") == []


def test_of_latency_the_lowest_is_the_best_so_far() -> None:
    entries = history([trial(i, SPACE, latency_ms=value) for i, value in enumerate((3.0, 5.0, 2.0))], "latency_ms")
    assert [entry.best for entry in entries] == [3.0, 3.0, 2.0]


def test_what_stopped_trials_did_not_spend_is_saved_and_what_failed_ones_did_not_is_not() -> None:
    trials = [
        trial(0, SPACE),
        trial(1, SPACE, 0.1, "stopped", 10_000),
        trial(2, SPACE, 0.1, "stopped", 10_000),
        trial(3, SPACE, None, "failed", 0),
    ]
    assert saved(trials, settings().budget) == (60_000, 3 * AMOUNT)
    assert saved(trials, settings(budget={"kind": "core_seconds", "amount": 40}).budget) == pytest.approx((60, 120))
    assert saved(trials[3:], settings().budget) == (0, 0)
