"""A search whose trials are not trained but valued by a formula: in any order, and killed wherever one likes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from train_toys import LOOP, MAE

from maep import config
from maep.tune import record
from maep.tune.config import TuneConfig
from maep.tune.record import Budget, Point
from maep.tune.search.rounds import Listener, Search, Work

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


def arrive(search: Search, work: Work) -> None:
    """What a trial leaves at a rung."""
    assert work.rung is not None
    seen = IMAGES // 3 ** (search.num_rungs - 1 - work.rung)
    worth = value(work.trial.settings, work.rung)
    objectives = {"clean_accuracy": worth, "latency_ms": 8.0 / work.trial.settings.get("patch_size", 4)}
    point = Point(seen, objectives, {"clean_accuracy": (round(100 * worth), 100)}, Budget(seen, 2.0 * seen, 0.0))
    record.append(search.output, work.trial.trial_id, point)


def play(
    settings: TuneConfig,
    output: Path,
    order: int = 0,
    at_once: int = 3,
    kill_after: int | None = None,
    listener: Listener | None = None,
) -> int:
    """Plays the search to its end, `at_once` pieces at a time that end in the order that `order` draws.

    `kill_after` so many pieces it stops dead, with the next one's result on disk and not yet heard of. Returns how many
    pieces were done.
    """
    draw, search, running, done = random.Random(order), Search(settings, output, listener), list[Work](), 0
    while not search.is_finished:
        while len(running) < at_once and (work := search.next()) is not None:
            running.append(work)
        work = running.pop(draw.randrange(len(running)))
        arrive(search, work)
        if done == kill_after:
            return done
        search.ended(work, None)
        done += 1
    return done


def outcome(output: Path) -> list[tuple[Any, ...]]:
    """All that a search decides: who was tried, with what seed, and how far."""
    found = record.read_all(output)
    return [(each.trial_id, each.seed, each.status, each.reason, each.budget, each.objectives) for each in found]
