"""Ray's share of a training step: the loop inside a Ray Train worker over the same loop in a plain process."""

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
from train_toys import lines, written

from maep import cluster, config
from maep.train.config import PretrainConfig, WorkersConfig
from maep.train.distributed import train
from maep_jobs.arguments import find

ROUNDS = 3
STEPS = 150  # fewer than two log points apart, so that every step is reported
PLAIN = """
import functools, json, sys
from pathlib import Path
from train_toys import written
from maep import config
from maep.train.config import PretrainConfig
from maep.train.distributed import train
settings = config.build(PretrainConfig, json.loads(sys.argv[1]))
train(settings, Path(sys.argv[2]) / "out", functools.partial(written, Path(sys.argv[2]) / "log"))
"""


def step_times(log: Path) -> dict[str, list[float]]:
    """Seconds of each step after the first ten: by the clock, and of processor time of all threads."""
    reported = lines(log)[10:]
    return {
        clock: [later[clock] - earlier[clock] for earlier, later in itertools.pairwise(reported)]
        for clock in ("wall", "cpu")
    }


@pytest.mark.timeout(1800)
def test_ray_takes_at_most_a_twentieth_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alternates plain and Ray runs of `digits/pretrain`, so that both meet the same machine; medians of all steps."""
    words = ["--loop.samples", str(64 * STEPS), "--loop.checkpoint_every", "1000000", "--loop.device", "cpu"]
    settings = config.load(PretrainConfig, find("digits/pretrain"), words)
    support = str(Path(__file__).resolve().parents[1] / "support")
    times: dict[str, dict[str, list[float]]] = {kind: {"wall": [], "cpu": []} for kind in ("plain", "ray")}
    monkeypatch.setenv("PYTHONPATH", support)
    with cluster.session(None, 1):
        for number in range(ROUNDS):
            plain, ray = tmp_path / f"plain-{number}", tmp_path / f"ray-{number}"
            plain.mkdir()
            ray.mkdir()
            command: list[Any] = [sys.executable, "-c", PLAIN, json.dumps(config.to_dict(settings)), plain]
            subprocess.run(command, check=True, timeout=600)
            on_ray = replace(settings, workers=WorkersConfig(num_workers=1))
            train(on_ray, ray / "out", functools.partial(written, ray / "log"))
            for kind, folder in (("plain", plain), ("ray", ray)):
                for clock, values in step_times(folder / "log").items():
                    times[kind][clock] += values
    medians = {kind: {clock: statistics.median(v) for clock, v in each.items()} for kind, each in times.items()}
    ratio = {clock: medians["ray"][clock] / medians["plain"][clock] for clock in ("wall", "cpu")}
    print(
        f"\na step in a Ray Train worker over one in a plain process, medians of {len(times['ray']['wall'])} steps:"
        f" {ratio['cpu']:.3f} in processor time, {ratio['wall']:.3f} by the clock"
        f" ({1000 * medians['ray']['wall']:.1f} ms over {1000 * medians['plain']['wall']:.1f} ms)"
    )
    assert ratio["cpu"] <= 1.05
