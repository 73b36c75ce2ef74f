"""Each flag is raised by the fault that it reports, and an honest purifier raises none."""

from __future__ import annotations

import pytest
import torch
from evaluate_toys import Noise, Rounding, Saturated, probabilities
from torch import Tensor, nn

from maep.artifact import Artifact
from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.evaluate import baselines
from maep.evaluate.measure import DefendedModel, ImageBatch
from maep.evaluate.trust.checks import gradient_free_stronger
from maep.evaluate.trust.flags import flags
from maep.models.build import load_purifier_artifact
from maep.models.classifiers.load import Classifier
from maep.models.purifier import defend


@pytest.fixture(scope="module")
def digits() -> ImageBatch:
    digits = load(DataConfig("digits"), "dev")
    return ImageBatch(*digits.batch(range(24)), torch.from_numpy(digits.indices[:24]))


class Quantised(nn.Module):
    """Whole logits only, with the gradient of the true ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images) / 4
        return logits + (logits.round() - logits).detach()


class Silent(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :10] * 0


def raised(model: nn.Module, digits: ImageBatch, randomised: bool = False) -> set[str]:
    return {flag.name for flag in flags(DefendedModel(model.eval(), randomised), digits)}


def test_honest_purifier_raises_none(classifier: Classifier, purifier: Artifact, digits: ImageBatch) -> None:
    model = defend(classifier, load_purifier_artifact(purifier))
    before = torch.random.get_rng_state()
    assert not raised(model, digits)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_each_flag_is_raised(classifier: Classifier, digits: ImageBatch) -> None:
    assert raised(defend(classifier, Noise()), digits) == {"randomised"}
    assert not raised(defend(classifier, Noise()), digits, randomised=True)  # it says so
    assert raised(defend(classifier, Rounding()), digits) == {"zero gradients"}
    assert raised(defend(classifier, baselines.build("jpeg-q50")), digits) == {"zero gradients"}
    assert raised(Quantised(classifier), digits) == {"discrete output"}
    assert "probabilities" in raised(probabilities(), digits)
    assert "saturated loss" in raised(Saturated(), digits)
    assert {"equal logits", "zero gradients", "discrete output"} <= raised(Silent(), digits)


def test_gradient_free_attack_that_finds_more_is_flagged() -> None:
    gradient = {index: index < 100 for index in range(200)}
    assert gradient_free_stronger(gradient, {index: index < 98 for index in range(300)}) is None  # one point of 200
    flag = gradient_free_stronger(gradient, {index: index < 97 for index in range(300)})
    assert flag is not None
    assert flag.name == "gradient-free attack is stronger"
    assert gradient_free_stronger(gradient, {index: index < 150 for index in range(200)}) is None
    assert gradient_free_stronger(gradient, {}) is None
