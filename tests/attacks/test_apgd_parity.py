"""APGD against its authors' code (pyautoattack, MIT): the same images are broken from the same starting points."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maep import seeding
from maep.attacks import losses
from maep.attacks.config import AttackConfig
from maep.attacks.norms import L1
from maep.attacks.run import attack
from maep.data import datasets, lists
from maep.data.config import DataConfig
from maep.models.classifiers.load import load_classifier

NUM = 200
THEIR_LOSS: dict[str, str] = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "dlr-targeted"}
RESNET = [  # where the reference leaves a good part of the images
    AttackConfig("apgd-ce", 0.75 / 255, 20),
    AttackConfig("apgd-dlr", 0.75 / 255, 10),
    AttackConfig("apgd-t", 0.75 / 255, 10, targets=2),
    AttackConfig("apgd-ce", 0.1, 20, norm="L2"),
    AttackConfig("apgd-dlr", 0.1, 10, norm="L2"),
    AttackConfig("apgd-t", 0.1, 10, norm="L2", targets=2),
    AttackConfig("apgd-ce", 1.75, 20, norm="L1"),
    AttackConfig("apgd-dlr", 1.75, 10, norm="L1"),
    AttackConfig("apgd-t", 1.75, 10, norm="L1", targets=2),
]
LINEAR_EPS: dict[str, float] = {"Linf": 0.02, "L2": 0.15, "L1": 0.6}


class Seen(nn.Module):
    """Records the points at which the attack evaluates the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.points: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.points.append(images.detach().clone())
        logits: Tensor = self.model(images)
        return logits


def name(config: AttackConfig) -> str:
    return f"{config.label}-{config.norm}"


def holds(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(dim=1) == labels


def theirs(model: nn.Module, images: Tensor, labels: Tensor, config: AttackConfig, points: list[Tensor]) -> Tensor:
    """bool [B]: images still right after the authors' code, run from our attack's starts; it evaluated `points`."""
    standing = torch.ones(len(labels), dtype=torch.bool)
    for start, target in starts(model, images, labels, config, points):
        for factor, steps in ((3, 3), (2, 3), (1, 4)) if config.norm == "L1" else ((1, 10),):
            made = reference(model, images, config, factor * config.eps, steps * config.steps // 10)
            made.y_target = target
            if config.norm == "L1":  # as its decr_eps_pgd does, whose start cannot be given
                start = start + project_l1(images, start - images, factor * config.eps)
            start, right, *_ = made.attack_single_run(images, labels, x_init=start)
        standing &= right.bool()
    return standing


def reference(model: nn.Module, images: Tensor, config: AttackConfig, eps: float, steps: int) -> Any:
    from pyautoattack import autopgd_base

    kind = autopgd_base.APGDAttack_targeted if config.name == "apgd-t" else autopgd_base.APGDAttack
    loss = {} if config.name == "apgd-t" else {"loss": THEIR_LOSS[config.name]}
    log = logging.getLogger(__name__)  # it warns of images without a DLR gradient, which are expected here
    made = kind(model, n_iter=steps, norm=config.norm, eps=eps, device="cpu", logger=log, **loss)
    made.init_hyperparam(images)
    return made


def project_l1(images: Tensor, offset: Tensor, eps: float) -> Tensor:
    from pyautoattack.autopgd_base import L1_projection

    correction: Tensor = L1_projection(images, offset, eps)
    return correction


def starts(
    model: nn.Module, images: Tensor, labels: Tensor, config: AttackConfig, points: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The starting point and target class of each of our runs; targets are chosen as the authors do."""
    if config.name != "apgd-t":
        yield points[0], None
        return
    with torch.no_grad():
        ranked = model(images).argsort(dim=1, descending=True)
    ranked = ranked[ranked != labels[:, None]].view(len(images), -1)
    looks = (len(points) - 1) // config.targets
    for rank in range(config.targets):
        yield points[1 + rank * looks], ranked[:, rank]


def compare(model: nn.Module, images: Tensor, labels: Tensor, config: AttackConfig) -> None:
    seen = Seen(model)
    ours = holds(model, attack(seen, images, labels, config, seeding.mix(0, torch.arange(len(images)))), labels)
    authors = theirs(model, images, labels, config, seen.points)
    same = float((ours == authors).float().mean())
    print(f"{name(config)}: survivors {int(ours.sum())} and {int(authors.sum())}, {same:.1%} the same")
    assert 0.2 < authors.float().mean() < 0.8
    assert int(ours.sum()) - int(authors.sum()) <= 0.005 * len(images)
    if config.norm != "L1":  # where ours has been found to break one point more
        assert int(authors.sum()) - int(ours.sum()) <= 0.005 * len(images)
    assert same >= 0.98


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.shared_data
@pytest.mark.parametrize("config", RESNET, ids=name)
def test_apgd_breaks_the_same_cifar10_images_as_the_authors_code(shared_data: Path, config: AttackConfig) -> None:
    pytest.importorskip("pyautoattack", reason="the authors' code is not installed")
    classifier = load_classifier("cifar10_resnet20", shared_data)
    named = lists.named("cifar10-dev-500")
    chosen = lists.pick(datasets.load(DataConfig("cifar10", str(shared_data)), named.split), named)
    images, labels = chosen.batch(range(NUM))
    # Float64, so that rounding decides nothing; but the authors' L1 counts pixels that differ at all, for which their
    # projection is good enough in float32 only.
    dtype = torch.float32 if config.norm == "L1" else torch.float64
    compare(classifier.to(dtype), images.to(dtype), labels, config)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("attack_name", THEIR_LOSS)
def test_apgd_breaks_the_same_images_of_a_linear_model(attack_name: str, norm: str) -> None:
    pytest.importorskip("pyautoattack", reason="the authors' code is not installed")
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)).requires_grad_(False)
    linear[1].weight.mul_(8)
    images = torch.rand(NUM, 3, 8, 8)
    labels = linear(images).argmax(dim=1)
    compare(linear, images, labels, AttackConfig(attack_name, LINEAR_EPS[norm], 20, norm=norm, targets=3))


@pytest.mark.parametrize("targeted", [False, True])
def test_dlr_matches_the_authors_code(targeted: bool) -> None:
    base = pytest.importorskip("pyautoattack.autopgd_base", reason="the authors' code is not installed")
    torch.manual_seed(0)
    logits, labels, targets = torch.randn(50, 10), torch.arange(50) % 10, (torch.arange(50) + 3) % 10
    authors = base.APGDAttack_targeted(nn.Identity(), eps=1.0) if targeted else base.APGDAttack(nn.Identity(), eps=1.0)
    if targeted:
        authors.y_target = targets
        found, wanted = losses.targeted_dlr(logits, labels, targets), authors.dlr_loss_targeted(logits, labels)
    else:
        found, wanted = losses.dlr(logits, labels), authors.dlr_loss(logits, labels)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("eps", [0.5, 3.0, 50.0])
@pytest.mark.parametrize("scale", [0.01, 0.3])
def test_l1_projection_matches_the_authors_code(eps: float, scale: float) -> None:
    pytest.importorskip("pyautoattack", reason="the authors' code is not installed")
    torch.manual_seed(0)
    images = torch.rand(8, 3, 16, 16)
    images[0], images[1] = 0, 1
    offset = scale * torch.randn(images.shape)
    found = L1.project(images + offset, images, torch.full((8, 1, 1, 1), eps))
    wanted = images + offset + project_l1(images, offset, eps)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
