"""A digits classifier trained in seconds, an honest purifier for it, and a small evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from purifier_toys import small_unet

from maep import artifact
from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.evaluate.config import EvaluateConfig
from maep.evaluate.protocol.run import evaluate
from maep.evaluate.results.summary import Result
from maep.models.classifiers.load import CifarResNet, Classifier, load_classifier


@pytest.fixture(scope="session")
def digits_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier artifact: ResNet-8, about 90 % right on the digits."""
    digits = load(DataConfig("digits"), "train")
    images, labels = digits.batch(range(len(digits)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarResNet(8, width=4)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(4):
            for batch in torch.randperm(len(images)).split(64):
                loss = F.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    folder = tmp_path_factory.mktemp("classifier") / "resnet8"
    described = {
        "name": "digits_resnet8",
        "model": {"depth": 8, "num_classes": 10, "width": 4},
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
    }
    artifact.write(folder, "classifier", described, model.state_dict(), "A test's classifier.")
    return folder


@pytest.fixture(scope="session")
def classifier(digits_classifier: Path) -> Classifier:
    return load_classifier(str(digits_classifier))


@pytest.fixture(scope="session")
def purifier(tmp_path_factory: pytest.TempPathFactory) -> artifact.Artifact:
    """A small U-Net that changes images a little: honest, and of no use."""
    return small_unet(tmp_path_factory.mktemp("purifier") / "conv", 1, 0.005)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacked")


@pytest.fixture(scope="session")
def small(digits_classifier: Path, cache: Path) -> EvaluateConfig:
    """24 digits in two shards, two baselines."""
    return EvaluateConfig(
        data=DataConfig("digits"),
        images="digits-dev",
        num_images=24,
        classifiers=(str(digits_classifier),),
        baselines=("none", "jpeg-q50"),
        num_probes=12,
        batch_size=12,
        shard_size=12,
        cache=str(cache),
    )


@pytest.fixture(scope="session")
def result(small: EvaluateConfig, purifier: artifact.Artifact, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The small evaluation, done once without interruption in this process."""
    return evaluate(small, {"conv": purifier}, tmp_path_factory.mktemp("evaluation") / "whole")
