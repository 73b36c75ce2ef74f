"""PGD and APGD in every norm: their constraints, and linear models with a known answer."""

from __future__ import annotations

import copy

import pytest
import torch
from query_toys import curved, images_and_labels, keys
from torch import Tensor, nn

from maep.attacks import losses, norms
from maep.attacks.config import AttackConfig
from maep.attacks.run import attack

NAMES: tuple[str, ...] = ("pgd", "pgd-cw", "apgd-ce", "apgd-dlr", "apgd-t")
NORMS: tuple[str, ...] = ("Linf", "L2", "L1")
EPS: dict[str, float] = {"Linf": 8 / 255, "L2": 0.3, "L1": 4.0}
every_name = pytest.mark.parametrize("name", NAMES)
every_norm = pytest.mark.parametrize("norm", NORMS)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """In float64, where the order of a batch's sums adds no rounding noise for the sign function to amplify."""
    return curved(torch.float64)


def size_of(offset: Tensor, norm: str) -> Tensor:
    order = {"Linf": torch.inf, "L2": 2, "L1": 1}[norm]
    return torch.linalg.vector_norm(offset.flatten(1), order, dim=1)


def recipe(name: str, norm: str, steps: int = 10, random_start: bool = True) -> AttackConfig:
    return AttackConfig(name, EPS[norm], steps, norm=norm, targets=3, random_start=random_start)


class Seen(nn.Module):
    """Records its inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.points = model, list[Tensor]()

    def forward(self, images: Tensor) -> Tensor:
        self.points.append(images.detach().clone())
        logits: Tensor = self.model(images)
        return logits


@every_norm
@every_name
@pytest.mark.parametrize("random_start", [False, True])
def test_budget_and_range_are_held(model: nn.Module, name: str, norm: str, random_start: bool) -> None:
    images, labels = images_and_labels(model, 7)
    for dtype, rounding in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        originals = images.to(dtype)
        config = recipe(name, norm, random_start=random_start)
        attacked = attack(copy.deepcopy(model).to(dtype), originals, labels, config, keys(7), dtype == torch.float32)
        assert attacked.dtype == dtype
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        used = size_of(attacked - originals, norm)
        assert used.max() <= EPS[norm] * (1 + rounding)
        assert used.max() >= 0.9 * EPS[norm]  # and it is used


@every_norm
@every_name
def test_best_iterate_is_returned(model: nn.Module, name: str, norm: str) -> None:
    """By the loss; by the margin where runs aim at several classes; among those within the budget."""
    images, labels = images_and_labels(model, 7)
    seen = Seen(model)
    attacked = attack(seen, images, labels, recipe(name, norm), keys(7))
    merit = {"pgd-cw": losses.margin, "apgd-t": losses.margin, "apgd-dlr": losses.dlr}.get(name, losses.cross_entropy)
    points = torch.stack(seen.points[1:] if name == "apgd-t" else seen.points)
    merits = torch.stack([merit(model(each), labels) for each in points])
    inside = torch.stack([size_of(each - images, norm) <= EPS[norm] * (1 + 1e-6) for each in points])
    best = merits.masked_fill(~inside, -torch.inf).amax(dim=0)
    torch.testing.assert_close(merit(model(attacked), labels), best)
    looks = {"pgd": 11, "pgd-cw": 11}.get(name, 13 if norm == "L1" else 11)
    assert len(points) == looks * (3 if name == "apgd-t" else 1)  # no pass but those


@every_norm
@every_name
@pytest.mark.parametrize("stop", [False, True])
def test_result_is_independent_of_other_images(model: nn.Module, name: str, norm: str, stop: bool) -> None:
    images, labels = images_and_labels(model, 7)
    config = recipe(name, norm, steps=10 if norm == "L1" else 4)
    together = attack(model, images, labels, config, keys(7), stop)
    backwards = torch.arange(6, -1, -1)
    for order, size in ((backwards, None), (torch.arange(7), 3), (backwards, 2)):
        shuffled = attack(model, images[order], labels[order], config, keys(7)[order], stop, size)
        torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-6)


def linear_model(num_pixels: int) -> tuple[nn.Module, Tensor]:
    """Two classes, and the weight of their difference."""
    weight = torch.randn(num_pixels, generator=torch.Generator().manual_seed(0)).pow(3)
    linear = nn.Linear(num_pixels, 2).requires_grad_(False)
    linear.weight.copy_(torch.stack([weight, -weight]) / 2)
    linear.bias.copy_(torch.stack([-weight.sum(), weight.sum()]) / 4)
    return nn.Sequential(nn.Flatten(), linear), weight


@every_norm
@every_name
def test_the_robust_accuracy_of_a_linear_model(name: str, norm: str) -> None:
    """Closed form, by the dual norm: right for every change within eps where |margin| > eps ||w||_q, 1/p + 1/q = 1.

    The images are far enough from 0 and 1 for the box to be out of play. L1-APGD spreads its last steps evenly over
    three values or fewer (its next step moves 1 / 1.5 of those that it has changed), so it gets that far for certain.
    """
    num = 200
    model, weight = linear_model(3 * 4 * 4)
    images = 0.35 + 0.3 * torch.rand(num, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(dim=1)
    margin = -losses.margin(model(images), labels)
    dual = float(torch.linalg.vector_norm(weight, {"Linf": 1, "L2": 2, "L1": torch.inf}[norm]))
    eps = float(margin.median()) / dual
    assert eps < 0.35
    attacked = attack(model, images, labels, AttackConfig(name, eps, 40, norm=norm), keys(num), True, batch_size=50)
    holds = model(attacked).argmax(dim=1) == labels
    assert holds[margin > eps * dual * (1 + 1e-5)].all()
    sparse = norm == "L1" and name.startswith("apgd")
    reach = float(weight.abs().topk(3).values.mean()) if sparse else dual
    assert not holds[margin < 0.97 * eps * reach].any()
    if not sparse:
        assert float(holds.float().mean()) == pytest.approx(0.5, abs=0.02)


@every_norm
def test_projection_leaves_what_is_inside_and_is_idempotent(norm: str) -> None:
    images = torch.rand(6, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eps = torch.full((6, 1, 1, 1), EPS[norm], dtype=torch.float64)
    ball = norms.NORMS[norm]
    far = images + torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    once = ball.project(far, images, eps)
    torch.testing.assert_close(ball.project(once, images, eps), once)
    torch.testing.assert_close(ball.project(images, images, eps), images, rtol=0, atol=0)


@every_norm
@every_name
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_losses_work_with_few_classes(name: str, norm: str, classes: int) -> None:
    """DLR needs three of them and its targeted form four; below, the margin takes their place."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, classes)).requires_grad_(False)
    images = torch.rand(8, 3, 2, 2)
    labels = linear(images).argmax(dim=1)
    attacked = attack(linear, images, labels, recipe(name, norm, steps=3), keys(8))
    gained = losses.margin(linear(attacked), labels) - losses.margin(linear(images), labels)
    assert torch.isfinite(gained).all()
    assert gained.mean() > 0  # of three steps; DLR may lose some margin of an image while it rises itself
