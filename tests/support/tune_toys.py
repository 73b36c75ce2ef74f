"""Searches in this process: trials that a formula scores, in any order and killed at any point, or trained ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train_toys import LOOP, MAE

from maep import config
from maep.tune import record
from maep.tune.config import TuneConfig
from maep.tune.record import Budget, RungResult
from maep.tune.search.execute import do, located
from maep.tune.search.rounds import Listener, Search, WorkItem

IMAGES = 960


def toy(**keys: Any) -> TuneConfig:
    """A search of trials without pretraining; keywords change its keys."""
    values: dict[str, Any] = {
        "finetune": {
            "model": {"name": "purifier", "mae": MAE, "stem_channels": [4], "stem_blocks": 0},
            "classifiers": ["anything"],
            "loop": LOOP,
        },
        "space": {"noise": {"uniform": [0, 1]}, "patch_size": {"choice": [2, 4, 8]}},
        "objectives": ["clean_accuracy"],
        "num_trials": 12,
        "generation": 4,
    }
    return config.build(TuneConfig, values | keys)


def value(settings: dict[str, Any], rung: int) -> float:
    """Best at noise 0.6 and patches of 4; later rungs see finer differences."""
    return 1 - abs(settings.get("noise", 0) - 0.6) - 0.05 * abs(settings.get("patch_size", 4) - 4) + 0.01 * rung


def arrive(search: Search, item: WorkItem) -> None:
    """Writes what a trial leaves at a rung."""
    assert item.rung is not None
    seen = IMAGES // 3 ** (search.num_rungs - 1 - item.rung)
    worth = value(item.trial.settings, item.rung)
    objectives = {"clean_accuracy": worth, "latency_ms": 8.0 / item.trial.settings.get("patch_size", 4)}
    result = RungResult(seen, objectives, {"clean_accuracy": (round(100 * worth), 100)}, Budget(seen, 2.0 * seen, 0.0))
    record.append(search.output, item.trial.trial_id, result)


def run_here(search: Search) -> None:
    """Trains the trials of the search in this process, one item after the other."""
    settings = located(search.config)
    while not search.is_finished:
        item = search.next_item()
        assert item is not None
        search.end_item(item, do(search.output, settings, item.trial.number, item.trial.settings, item.rung))


def play(
    settings: TuneConfig,
    output: Path,
    order: int = 0,
    at_once: int = 3,
    kill_after: int | None = None,
    listeners: Sequence[Listener] = (),
) -> int:
    """Plays the search to its end, `at_once` items at a time, which end in an order drawn with seed `order`.

    After `kill_after` items it stops, with the result of the next one on disk but not reported. Returns how many items
    were done.
    """
    draw, search, running, done = random.Random(order), Search(settings, output, listeners), list[WorkItem](), 0
    while not search.is_finished:
        while len(running) < at_once and (item := search.next_item()) is not None:
            running.append(item)
        item = running.pop(draw.randrange(len(running)))
        arrive(search, item)
        if done == kill_after:
            return done
        search.end_item(item, None)
        done += 1
    return done


def outcome(output: Path) -> list[tuple[Any, ...]]:
    """All that a search decides: the trials, their seeds, and how far they trained."""
    found = record.read_all(output)
    return [(each.trial_id, each.seed, each.status, each.reason, each.budget, each.objectives) for each in found]
