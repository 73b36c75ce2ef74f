"""A small gate for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SMALL_GATE: dict[str, Any] = {
    "images": "digits-dev",
    "num_images": 20,
    "clean_floor": 0.0,
    "oblivious_eps": "32/255",
    "adaptive_eps": ["4/255"],
    "over_baselines": [],
}
"""20 dev images, and a floor that anything reaches."""


def small_gate(classifier: Path, cache: Path) -> dict[str, Any]:
    """What `maep promote` takes: the gate, and an evaluation of its size."""
    return {
        "evaluate": {
            "data": {"name": "digits"},
            "classifiers": [str(classifier)],
            "baselines": ["none"],
            "num_probes": 8,
            "cache": str(cache),
        },
        "gate": dict(SMALL_GATE),
    }
