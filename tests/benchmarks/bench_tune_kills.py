"""A search killed at five seeded moments and resumed each time, against the same search without a kill.

A kill is SIGKILL to the whole process group of `maep tune`. Its moment is drawn by seed: after which of the marks that
a search leaves on disk (a trial's plan, a rung's measurement, a shared pretraining), and how much later. The two must
agree in trial ids, seeds, statuses, images seen and what was measured. About ten minutes on two cores.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from maep import config
from maep.tune import record
from maep.tune.trial.plan import PLAN
from maep.tune.trial.trial import PRETRAINED, SPENT
from maep_jobs.config_files import find

SEEDS = range(5)
LATEST_S = 2.0
MARKS = (f"{record.TRIALS}/*/{PLAN}", f"{record.TRIALS}/*/{record.CURVE}", f"{PRETRAINED}/*/{SPENT}")


def started(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """`maep tune`, in a process group of its own."""
    line = [sys.executable, "-m", "maep_jobs.cli", "tune", *words, "--tracking.enabled", "false"]
    return subprocess.Popen(
        line, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def marks(output: Path) -> int:
    """How many there are; a curve counts once a rung."""
    found = [path for pattern in MARKS for path in output.glob(pattern)]
    return sum(len(path.read_bytes().splitlines()) for path in found)


def outcome(output: Path) -> list[tuple[Any, ...]]:
    """The trials and their results."""
    found = record.read_all(output)
    return [(t.trial_id, t.seed, t.status, t.budget.samples_seen, t.objectives, t.counts) for t in found]


@pytest.mark.timeout(3600)
def test_a_search_killed_at_seeded_moments_is_the_one_that_was_not(tmp_path: Path) -> None:
    values = config.read_yaml(find("digits/tune")) | {"num_trials": 8}
    values["budget"] |= {"amount": 4096}
    values["classifiers"][0]["loop"] |= {"samples": 3200}
    values["measure"] |= {"num_images": 32, "steps": 3, "adaptive_steps": 3}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(values))
    assert started(tmp_path, "--config", "search.yaml", "--output", "whole").wait(900) == 0
    whole, all_marks = outcome(tmp_path / "whole"), marks(tmp_path / "whole")
    print(f"\nwhole: {len(whole)} trials, {sum(each[3] for each in whole):,} images, {all_marks} marks")
    print("| seed | killed after mark | and seconds | trials ended by then | the same trials, seeds and images |")
    print("|---|---|---|---|---|")
    same = []
    for seed in SEEDS:
        draw, output = random.Random(seed), tmp_path / f"killed-{seed}"
        mark, later = draw.randrange(1, all_marks), draw.uniform(0, LATEST_S)
        process = started(tmp_path, "--config", "search.yaml", "--output", output.name)
        deadline = time.monotonic() + 900
        while marks(output) < mark:
            assert process.poll() is None, "it ended before its moment"
            assert time.monotonic() < deadline, "it takes too long"
            time.sleep(0.05)  # between two looks
        time.sleep(later)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        ended = len(record.read_all(output))
        assert started(tmp_path, "--output", output.name, "--resume").wait(900) == 0
        same.append(outcome(output) == whole)
        print(f"| {seed} | {mark} of {all_marks} | {later:.2f} | {ended} of {len(whole)} | {same[-1]} |")
    assert all(same)
