"""Models whose right answer is known: the masked and the random ones are flagged, the honest ones are not.

And a linear model is left exactly the images that no change within the budget can turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from evaluate_toys import Contrast, Linear, Noise, Saturated, Shattered, Sigmoid, robust, zeros_and_ones
from torch import Tensor, nn

from maep import artifact
from maep.attacks.bpda import BackwardIdentity
from maep.attacks.config import AttackConfig
from maep.attacks.run import attack
from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.evaluate import baselines
from maep.evaluate.cost import CostMeter
from maep.evaluate.measure import DefendedModel, ImageBatch
from maep.evaluate.trust import sanity
from maep.evaluate.trust.findings import Check
from maep.evaluate.trust.flags import flags
from maep.models import build
from maep.models.classifiers.load import load_classifier
from maep.models.purifier import defend

EPS = 40 / 255
BUNDLED = Path(build.__file__).parents[1] / "bundled" / "cifar10"


@pytest.fixture(scope="module")
def digits() -> ImageBatch:
    return zeros_and_ones()


def failed(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.passed}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (defend(Linear(), Sigmoid()), "unavailable gradients"),
        (Saturated().eval(), "unavailable gradients"),
        (defend(Linear(), Shattered()), "unstable predictions"),
        (defend(Linear(), Noise()), "draws nothing"),
    ],
    ids=["steep sigmoid", "saturated loss", "shattered", "undeclared noise"],
)
def test_masked_gradients_fail_the_battery(digits: ImageBatch, model: nn.Module, name: str) -> None:
    images, labels, indices = digits
    attacked = attack(model, images, labels, AttackConfig("pgd", EPS, 20), indices, stop_at_success=True)
    with torch.no_grad():  # what must not be believed: more stand than the undefended model can keep
        assert int((model(attacked).argmax(dim=1) == labels).sum()) > int(robust(Linear(), images, labels, EPS).sum())
    found = failed(sanity.battery(DefendedModel(model), digits, "adaptive", EPS))
    assert {name, "unconstrained attack failure"} <= found.keys()


def test_defence_without_gradient_belongs_under_bpda(digits: ImageBatch) -> None:
    jpeg = baselines.build("jpeg-q50")
    found = failed(sanity.battery(DefendedModel(defend(Linear(), jpeg)), digits, "adaptive", EPS))
    assert found.keys() == {"unavailable gradients"}
    assert not failed(sanity.battery(DefendedModel(defend(Linear(), BackwardIdentity(jpeg))), digits, "bpda", EPS))


@pytest.mark.parametrize("defence", ["none", "blur", "median"])
def test_honest_defences_are_not_flagged(digits: ImageBatch, defence: Any) -> None:
    assert not failed(
        sanity.battery(DefendedModel(defend(Linear(), baselines.build(defence))), digits, "adaptive", EPS)
    )


@pytest.mark.parametrize("name", ["pgd", "pgd-cw", "apgd-ce"])
def test_linear_model_keeps_exactly_its_robust_images(digits: ImageBatch, name: Any) -> None:
    images, labels, indices = digits
    for kept, model in ((1.0, Linear().eval()), (Contrast.KEPT, defend(Linear(), Contrast()))):
        seen = 0.5 + kept * (images - 0.5)
        for eps in (32 / 255, EPS, 56 / 255):
            attacked = attack(model, images, labels, AttackConfig(name, eps, 40), indices, stop_at_success=True)
            with torch.no_grad():
                stand = model(attacked).argmax(dim=1) == labels
            worst = 0.5 + kept * ((images - eps * _direction(labels)).clamp(0, 1) - 0.5)
            known = (Linear()(worst).argmax(dim=1) == labels) & (Linear()(seen).argmax(dim=1) == labels)
            assert torch.equal(stand, known)
            if kept == 1:
                assert torch.equal(known, robust(Linear(), images, labels, eps))


def _direction(labels: Tensor) -> Tensor:
    """[B, 3, H, W]: the sign of the margin's gradient of the own class."""
    sign = torch.where(labels == 0, 1.0, -1.0)[:, None]
    return (sign * Linear().weight.sign()).view(-1, 3, 16, 16)


@pytest.mark.shared_data
def test_bundled_purifier_is_not_flagged(shared_data: Path) -> None:
    """And its battery costs what an attack of 20 steps does: about 20 passes an image."""
    classifier = load_classifier("cifar10_resnet20", shared_data)
    model = defend(classifier, build.load_purifier_artifact(artifact.read(BUNDLED)))
    dev = load(DataConfig("cifar10", root=str(shared_data)), "dev")
    images, labels = dev.batch(range(16))
    defended, batch = DefendedModel(model), ImageBatch(images, labels, torch.from_numpy(dev.indices[:16]))
    meter = CostMeter()
    with meter.on(model):
        checks = sanity.battery(defended, batch, "adaptive", 8 / 255)
    assert not failed(checks)
    assert not flags(defended, batch)
    assert meter.cost.forward_passes <= 25 * len(images)
