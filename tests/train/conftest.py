"""Tiny phases on digits: a step takes milliseconds, a classifier seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from train_toys import LOOP, MAE, Heard, Make

from maep import config
from maep.artifact import Artifact
from maep.data.config import DataConfig
from maep.train.build_tasks import pretraining
from maep.train.classifier import classification, dev_accuracy
from maep.train.config import ClassifierConfig, FinetuneConfig, PretrainConfig
from maep.train.loop.run import run


@pytest.fixture(scope="session")
def pretrain() -> Make:
    """A tiny PretrainConfig; keywords change its loop, `top` its other keys."""

    def make(top: dict[str, Any] | None = None, **loop: Any) -> PretrainConfig:
        return config.build(PretrainConfig, {"model": MAE, "mask_ratio": 0.5, "loop": LOOP | loop} | (top or {}))

    return make


@pytest.fixture(scope="session")
def trained_classifier(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A digits classifier by the loop itself, in seconds."""
    settings = config.build(
        ClassifierConfig,
        {
            "name": "tiny",
            "depth": 8,
            "width": 6,
            "loop": LOOP | {"samples": 7000, "batch_size": 50, "lr": 1e-2, "checkpoint_every": 10**6},
        },
    )
    return run(classification(settings), tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def trained_accuracy(trained_classifier: Artifact) -> float:
    return dev_accuracy(trained_classifier, DataConfig("digits"))


@pytest.fixture(scope="session")
def finetune(trained_classifier: Artifact) -> Make:
    """A tiny FinetuneConfig that attacks the digits classifier; keywords as in `pretrain`."""

    def make(top: dict[str, Any] | None = None, **loop: Any) -> FinetuneConfig:
        values: dict[str, Any] = {
            "model": {"name": "purifier", "mae": MAE, "stem_channels": [4, 8], "stem_blocks": 1},
            "classifiers": [str(trained_classifier.folder)],
            "attacks": {"eps": "32/255", "mixture": [{"name": "fgsm", "share": 0.5}, {"name": "pgd", "share": 0.5}]},
            "loop": LOOP | loop,
        }
        return config.build(FinetuneConfig, values | (top or {}))

    return make


@pytest.fixture(scope="session")
def conv_model() -> dict[str, Any]:
    return {"name": "conv", "image_size": 16, "channels": [4, 8], "blocks": 1}


@pytest.fixture(scope="session")
def unkilled_pretrain(pretrain: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Heard, Path]:
    """The tiny pretraining without interruption: result, reports, output."""
    heard, output = Heard(), tmp_path_factory.mktemp("unkilled")
    return run(pretraining(pretrain()), output, [heard]), heard, output
