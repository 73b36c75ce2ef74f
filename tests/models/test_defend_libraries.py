"""`maep.defend(classifier, purifier)` as it is in the libraries that attack: AutoAttack, foolbox, ART and secml-torch.

Each takes the defended model for any other, and its gradient goes through the purifier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import maep
from maep import config
from maep.models.classifiers.load import CifarResNet, Classifier
from maep.models.families.purifier import PurifierConfig
from maep.models.purifier import Purifier

NUM, EPS, STEPS = 32, 8 / 255, 5
SMALL = {
    "mae": {"width": 16, "depth": 1, "num_heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2},
    "stem_channels": [4, 8],
    "stem_blocks": 1,
}

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""model, images float [B, 3, H, W], labels int64 [B] -> attacked images."""


class Watched(nn.Module):
    """A purifier that counts the gradients that come back to it, and those that go on to the image."""

    def __init__(self, purifier: nn.Module) -> None:
        super().__init__()
        self.purifier = purifier
        self.passed: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            images = images.clone()  # the library's own leaf stays as it was
            images.register_hook(lambda slope: self.passed.append(float(slope.abs().sum())))
        purified: Tensor = self.purifier(images)
        return purified


@pytest.fixture
def purifier() -> Watched:
    torch.manual_seed(0)
    made = Purifier(config.build(PurifierConfig, SMALL))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return Watched(made.requires_grad_(False))


@pytest.fixture
def defended(purifier: Watched, images: Tensor) -> nn.Module:
    torch.manual_seed(1)
    classifier = Classifier(CifarResNet(8, width=4).eval(), "small").requires_grad_(False)
    with torch.no_grad():
        classifier.model.linear.weight.mul_(30)
        classifier.model.linear.bias -= classifier(purifier(images)).mean(dim=0)  # the classes' share is alike
    return maep.defend(classifier, purifier)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(NUM, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def autoattack(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    from pyautoattack import AutoAttack

    attacks: Any = ["apgd-ce", "apgd-t", "fab-t", "square"]
    attack = AutoAttack(model, norm="Linf", eps=EPS, version="custom", attacks=attacks, seed=0)
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = STEPS
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = 1
    attack.square.n_queries = STEPS
    attacked: Tensor
    attacked, _ = attack.run_standard_evaluation(images, labels, batch_size=NUM)
    return attacked


def foolbox(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    library: Any = pytest.importorskip("foolbox")
    attack = library.attacks.LinfPGD(steps=STEPS)
    bounded = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, attacked, _ = attack(bounded, images, labels, epsilons=EPS)
    found: Tensor = attacked
    return found


def art(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    estimators: Any = pytest.importorskip("art.estimators.classification")
    evasion: Any = pytest.importorskip("art.attacks.evasion")
    classifier = estimators.PyTorchClassifier(
        model=model, loss=nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=10, clip_values=(0.0, 1.0),
        device_type="cpu",
    )  # fmt: skip
    attack = evasion.ProjectedGradientDescent(
        classifier, eps=EPS, eps_step=2.5 * EPS / STEPS, max_iter=STEPS, batch_size=NUM, verbose=False
    )
    return torch.from_numpy(np.asarray(attack.generate(x=images.numpy(), y=labels.numpy())))


def secml(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    pgd: Any = pytest.importorskip("secmlt.adv.evasion.pgd")
    from torch.utils.data import DataLoader, TensorDataset

    attack = pgd.PGD(
        perturbation_model="linf", epsilon=EPS, num_steps=STEPS, step_size=2.5 * EPS / STEPS, backend="native"
    )
    attacked = attack(model, DataLoader(TensorDataset(images, labels), batch_size=NUM))
    return torch.cat([batch for batch, _ in attacked])


@pytest.mark.parametrize("attack", [autoattack, foolbox, art, secml], ids=lambda attack: attack.__name__)
def test_library_attacks_through_the_purifier(
    defended: nn.Module, purifier: Watched, images: Tensor, attack: Attack
) -> None:
    labels = defended(images).argmax(dim=1)
    labels[::8] = (labels[::8] + 1) % 10
    clean = (defended(images).argmax(dim=1) == labels).float().mean()
    attacked = attack(defended, images.clone(), labels).detach().to(images.dtype)
    assert attacked.shape == images.shape
    assert (attacked - images).abs().max() <= EPS + 1e-6
    assert 0 <= attacked.min() <= attacked.max() <= 1
    robust = (defended(attacked).argmax(dim=1) == labels).float().mean()
    assert robust <= clean
    assert robust < 0.5  # a steep untrained network: whoever has its gradient breaks it
    assert purifier.passed
    assert all(0 < total < float("inf") for total in purifier.passed)
    assert not defended.training
    assert torch.equal(defended(images).argmax(dim=1)[1::8], labels[1::8])  # nothing of the model has changed
