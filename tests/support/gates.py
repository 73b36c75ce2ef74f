"""A gate that a test can afford."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def small_gate(classifier: Path, cache: Path) -> dict[str, Any]:
    """What `maep promote` takes: 20 dev images, and a floor that anything reaches."""
    return {
        "evaluate": {
            "data": {"name": "digits"},
            "classifiers": [str(classifier)],
            "baselines": ["none"],
            "num_probes": 8,
            "cache": str(cache),
        },
        "gate": {
            "images": "digits-dev",
            "num_images": 20,
            "clean_floor": 0.0,
            "oblivious_eps": "32/255",
            "adaptive_eps": ["4/255"],
            "over_baselines": [],
        },
    }
