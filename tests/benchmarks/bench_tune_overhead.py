"""The overhead of Ray Tune for a small trial: work items on Ray Tune against the same ones in this process.

Both play the same search, one trial at a time, so the difference of a trial's seconds, from its handing out to its end,
is Ray's. The first one starts the process that the others use again; it is printed, and counts too.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from tune_toys import run_here

from maep import config
from maep.tune import record
from maep.tune.config import TuneConfig
from maep.tune.record import TrialRecord
from maep.tune.search import execute
from maep.tune.search.rounds import Listener, Search, WorkItem
from maep.tune.trial.trial import Trial
from maep_jobs.config_files import find
from maep_jobs.search.run import train_classifiers

MOST_S = 3.0
NUM_TRIALS = 6


class Clock(Listener):
    """Seconds of each trial, by its number."""

    def __init__(self) -> None:
        self.began: dict[int, float] = {}
        self.seconds: dict[int, float] = {}

    def on_start(self, item: WorkItem) -> None:
        """The trial is handed out."""
        self.began[item.trial.number] = time.monotonic()

    def on_end(self, trial: Trial, ended: TrialRecord) -> None:
        """The result has arrived."""
        self.seconds[trial.number] = time.monotonic() - self.began[trial.number]


@pytest.mark.timeout(1800)
def test_ray_adds_at_most_three_seconds_to_a_small_trial(tmp_path: Path) -> None:
    values = config.read_yaml(find("digits/tune"))
    values.pop("tracking")
    cores = os.cpu_count() or 1
    values |= {"pretrain": None, "halving": None, "num_trials": NUM_TRIALS, "generation": NUM_TRIALS}
    values |= {"searcher": "random", "space": {"noise": {"uniform": [0, 0.25]}}, "cpus_per_trial": cores}
    values["budget"] = {"kind": "samples_seen", "amount": 8000}
    settings = train_classifiers(config.build(TuneConfig, values), tmp_path / "shared")
    torch.set_num_threads(cores)  # as many as a trial on Ray has
    here, there = Clock(), Clock()
    run_here(Search(settings, tmp_path / "here", (here,)))
    with execute.room(settings, tmp_path / "there"):
        execute.on_ray(Search(settings, tmp_path / "there", (there,)))
    assert {each.status for name in ("here", "there") for each in record.read_all(tmp_path / name)} == {"done"}
    added = [there.seconds[number] - here.seconds[number] for number in sorted(here.seconds)]
    print(f"\nseconds of a trial here: {', '.join(f'{s:.1f}' for s in here.seconds.values())}")
    print(f"seconds that Ray adds, the first first: {', '.join(f'{s:.1f}' for s in added)}")
    assert sorted(added)[len(added) // 2] <= MOST_S
