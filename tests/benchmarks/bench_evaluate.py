"""Two workers of an evaluation over one, and the memory of a worker over many images.

Work is counted in attacks on CIFAR-10-sized random images by a fixed network, so that it runs without data.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from maep.data.config import DataConfig
from maep.evaluate.config import EvaluateConfig
from maep.evaluate.protocol.run import EvaluationProgress, evaluate


def _settings(shared_data: Path, cache: Path) -> EvaluateConfig:
    return EvaluateConfig(
        data=DataConfig("cifar10", root=str(shared_data)),
        images="cifar10-dev-500",
        num_images=256,
        classifiers=("cifar10_resnet20",),
        baselines=("none", "blur", "median"),
        eps=(0.5 / 255, 1 / 255),
        num_probes=8,
        shard_size=32,
        batch_size=32,
        cache=str(cache),
    )


def _seconds(settings: EvaluateConfig, output: Path) -> float:
    """From the first finished task, when the workers are up, to the last."""
    ticks: list[float] = []

    def tick(progress: EvaluationProgress) -> None:
        del progress
        ticks.append(time.monotonic())

    evaluate(settings, {}, output, tick)
    return ticks[-1] - ticks[0]


@pytest.mark.timeout(1800)
@pytest.mark.shared_data
def test_two_workers_are_nearly_twice_as_fast(shared_data: Path, tmp_path: Path) -> None:
    """By the clock, each with two cores to itself; what is measured is everything between first and last task."""
    ratios = []
    for repeat in range(2):
        one, two = (
            _seconds(
                replace(_settings(shared_data, tmp_path / f"cache-{repeat}-{workers}"), num_workers=workers),
                tmp_path / f"{repeat}-{workers}",
            )
            for workers in (1, 2)
        )
        ratios.append(one / two)
    print(f"\ntwo workers of an evaluation over one: {', '.join(f'{ratio:.2f}' for ratio in ratios)} times as fast")
    assert max(ratios) >= 1.8


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.timeout(1800)
@pytest.mark.shared_data
def test_memory_does_not_grow_with_the_images(shared_data: Path, tmp_path: Path) -> None:
    """The 2,000 images of `dev`, in this process: from a quarter of the tasks on, what is held stays what it is."""
    seen: list[float] = []

    def tick(progress: EvaluationProgress) -> None:
        del progress
        seen.append(_resident_mib())

    settings = replace(
        _settings(shared_data, tmp_path / "cache"),
        images="cifar10-dev",
        num_images=None,
        num_adaptive=512,
        baselines=("none",),
        eps=(1 / 255,),
    )
    evaluate(settings, {}, tmp_path / "out", tick)
    early, late = max(seen[: len(seen) // 4]), max(seen)
    print(f"\nmemory of a worker: {early:.0f} MiB after a quarter of {len(seen)} tasks, {late:.0f} MiB at most")
    assert late <= 1.05 * early
