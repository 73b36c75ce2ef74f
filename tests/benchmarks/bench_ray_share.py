"""Ray's share of a training step: the loop inside a Ray Train worker over the same loop in a plain process.

Both run at the same time and take turns, ten steps each, so that whatever else the machine does meets both alike.
"""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import train_toys
from train_toys import TURN, lines, taking_turns

from maep import cluster, config
from maep.train.config import PretrainConfig, WorkersConfig
from maep.train.ray.workers import train
from maep_jobs.config_files import find

PAIRS = 3
TURNS = 35  # fewer steps than two for each log point, so that every step is reported
WARM_UP = 3  # turns at the start, and steps of each turn, that are not counted
PLAIN = """
import functools, json, sys
from pathlib import Path
from train_toys import taking_turns
from maep import config
from maep.train.config import PretrainConfig
from maep.train.ray.workers import train
settings = config.build(PretrainConfig, json.loads(sys.argv[1]))
folder = Path(sys.argv[2])
train(settings, folder / "plain", functools.partial(taking_turns, folder, "plain", "ray"))
"""


def turn_medians(log: Path, clock: str) -> list[float]:
    """Seconds of a step by `clock`: the median of each turn."""
    reported = lines(log)
    medians = []
    for turn in [reported[start : start + TURN] for start in range(0, len(reported), TURN)]:
        times = [later[clock] - earlier[clock] for earlier, later in itertools.pairwise(turn)]
        medians.append(statistics.median(times[WARM_UP:]))
    return medians[WARM_UP:]


@pytest.mark.timeout(1800)
def test_ray_takes_at_most_three_percent_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`digits/pretrain`, by the clock: the median over the turns of Ray's step by the plain one of the same turn.

    Two processes of the same program can differ by some percent for as long as they live, so several pairs are
    started, and the median of theirs counts; all are printed.
    """
    words = ["--loop.samples", str(64 * TURN * TURNS), "--loop.checkpoint_every", "1000000", "--loop.device", "cpu"]
    settings = config.load(PretrainConfig, find("digits/pretrain"), words)
    monkeypatch.setenv("PYTHONPATH", str(Path(train_toys.__file__).parent))
    with cluster.session(None, 1):
        folders = [tmp_path / str(number) for number in range(PAIRS)]
        for folder in folders:
            _train_pair(settings, folder)
    ratios = {clock: [_ratio(folder, clock) for folder in folders] for clock in ("wall", "cpu")}
    middle = {clock: statistics.median(each) for clock, each in ratios.items()}
    print(
        "\na step in a Ray Train worker over one in a plain process:"
        f" {middle['wall']:.3f} by the clock, {middle['cpu']:.3f} in processor time"
        f" (pairs: {', '.join(f'{wall:.3f}/{cpu:.3f}' for wall, cpu in zip(*ratios.values(), strict=True))})"
    )
    assert middle["wall"] > 0.8, "the two did not do the same work"
    assert middle["wall"] <= 1.03


def _train_pair(settings: PretrainConfig, folder: Path) -> None:
    """Trains both at once, into folders and logs named plain and ray."""
    folder.mkdir()
    command: list[Any] = [sys.executable, "-c", PLAIN, json.dumps(config.to_dict(settings)), folder]
    with subprocess.Popen(command) as plain:
        try:
            on_ray = replace(settings, workers=WorkersConfig(num_workers=1, max_failures=0))
            train(on_ray, folder / "ray", functools.partial(taking_turns, folder, "ray", "plain"))
            assert plain.wait(timeout=60) == 0
        finally:
            plain.kill()


def _ratio(folder: Path, clock: str) -> float:
    pairs = zip(turn_medians(folder / "ray.log", clock), turn_medians(folder / "plain.log", clock), strict=True)
    return statistics.median(ray / alone for ray, alone in pairs)
