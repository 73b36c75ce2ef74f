"""Two workers that train together, one thread each, over one: DDP on gloo, the same batch for both.

Rates are by the clock, because waiting for each other is what is measured; beside them stands what share of a core
each worker had. On a machine that others use too that falls, and the ratio says nothing.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
from figures import held
from workers import together

STEPS, WARM_UP, BATCH = 14, 4, 128
ROUNDS = 3
VALUES: dict[str, Any] = {
    "model": {"preset": "Ti/4", "image_size": 32},
    "data": {"name": "cifar10"},
    "loader": {"kind": "synthetic"},
    "loop": {"samples": STEPS * BATCH, "batch_size": BATCH, "checkpoint_every": 10**9, "device": "cpu"},
}


def rate(size: int, folder: Path) -> tuple[float, list[float], float]:
    """Images/s over all workers (the median over steps), each worker's share of a core, and the wait in a step."""
    folder.mkdir()
    told = together({"run": {"values": VALUES}}, folder, size)["run"]
    steps = told[0]["steps"][WARM_UP:]
    waited = statistics.median(step.get("communication_s", 0.0) for step in steps)
    return statistics.median(step["images_per_s"] for step in steps), [each["cpu_share"] for each in told], waited


@pytest.mark.timeout(1800)
def test_two_workers_are_nearly_twice_as_fast(tmp_path: Path) -> None:
    """Ti/4 at 32 px, 5.7 million weights, 128 images a step: noise, so that nothing is loaded."""
    ratios, shares = [], []
    for number in range(ROUNDS):
        (one, alone, _), (two, both, waited) = (rate(size, tmp_path / f"{number}-{size}") for size in (1, 2))
        ratios.append(two / one)
        shares += alone + both
        print(
            f"\none worker {one:.1f} images/s ({alone[0]:.2f} of a core), two {two:.1f} images/s"
            f" ({' and '.join(f'{share:.2f}' for share in both)} of a core, {waited:.3f} s a step waited):"
            f" {two / one:.2f} times as fast"
        )
    print(f"the least share of a core {min(shares):.2f}")
    held("two workers over one", statistics.median(ratios), asked=1.85)
