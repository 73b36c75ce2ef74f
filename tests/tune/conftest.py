"""A tiny search on the digits: seconds for all of it, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from train_toys import LOOP, MAE, Make

from maep import config
from maep.artifact import Artifact
from maep.train.classifier import classification
from maep.train.config import ClassifierConfig
from maep.train.loop.run import run
from maep.tune.config import TuneConfig


@pytest.fixture(scope="session")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A digits classifier that is right more often than not."""
    loop = LOOP | {"samples": 3200, "batch_size": 50, "lr": 1e-2, "checkpoint_every": 10**6}
    settings = config.build(ClassifierConfig, {"name": "tiny", "depth": 8, "width": 4, "loop": loop})
    return run(classification(settings), tmp_path_factory.mktemp("classifier"))


def search_values(classifier: str | Path) -> dict[str, Any]:
    """A search of a few trials of a few steps each."""
    return {
        "pretrain": {"model": MAE, "mask_ratio": 0.5, "loop": LOOP},
        "finetune": {
            "model": {"name": "purifier", "mae": MAE, "stem_channels": [4], "stem_blocks": 0},
            "classifiers": [str(classifier)],
            "attacks": {"eps": "32/255", "mixture": [{"name": "fgsm", "share": 0.5}, {"name": "none", "share": 0.5}]},
            "loop": LOOP,
        },
        "space": {"mask_ratio": {"uniform": [0.3, 0.8]}, "patch_size": {"choice": [4, 8]}},
        "objectives": ["clean_accuracy"],
        "measure": {"num_images": 16, "oblivious": ["fgsm"], "steps": 2, "adaptive": "pgd", "adaptive_steps": 2},
        "budget": {"amount": 512, "pretrain_share": 0.25},
        "searcher": "random",
        "num_trials": 3,
        "generation": 3,
    }


@pytest.fixture(scope="session")
def searched(protected: Artifact) -> Make:
    """A tiny TuneConfig; keywords change its keys."""

    def make(**keys: Any) -> TuneConfig:
        return config.build(TuneConfig, search_values(protected.folder) | keys)

    return make
