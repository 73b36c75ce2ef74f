"""FAB and C&W, which search for the nearest misclassified image: distances of linear models, and C&W's oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from query_toys import Counter, curved, gap, images_and_labels, inner_images, keys, linear
from torch import Tensor, nn

from maep.attacks.config import AttackConfig
from maep.attacks.norms import lengths
from maep.attacks.run import attack

DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
CASES: list[Any] = [("fab-t", "Linf", 30), ("fab-t", "L2", 30), ("fab-t", "L1", 30), ("cw", "L2", 150)]
CW_STEP = 1e-3  # the boundary is near; FAB has no step


def balanced(images: Tensor) -> nn.Sequential:
    """A linear model of two classes whose boundary runs amid the images: none meets black or white before it."""
    model = linear()
    logits = model(images)
    with torch.no_grad():
        model[1].bias[0] -= (logits[:, 0] - logits[:, 1]).mean()
    return model


def nearest(model: nn.Sequential, images: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Labels, and the closed form of the distance to the boundary: margin / ||w||_dual."""
    labels, wins, along = gap(model, images)
    return labels, wins / lengths(along, DUAL[norm])


@pytest.mark.parametrize(("name", "norm", "steps"), CASES)
def test_distance_matches_the_closed_form_of_a_linear_model(name: Any, norm: str, steps: int) -> None:
    images = inner_images(16, low=0.45, high=0.55)
    model = balanced(images)
    labels, wanted = nearest(model, images, norm)
    recipe = AttackConfig(name, 0.5 if norm == "Linf" else 50.0, steps, CW_STEP, norm=norm)
    found = attack(model, images, labels, recipe, keys(16))
    assert (model(found).argmax(dim=1) != labels).all()
    assert wanted.max() < 0.45  # so the range cuts nothing, not even of L1's, which is the change of one value
    ratio = lengths(found - images, norm) / wanted
    assert (ratio >= 1 - 1e-4).all()
    assert ratio.mean() < 1.08
    assert (ratio < 1.2).all()


@pytest.mark.parametrize(("name", "norm", "steps"), CASES)
@pytest.mark.parametrize("stop", [False, True])
def test_images_beyond_eps_are_returned_unchanged(name: Any, norm: str, steps: int, stop: bool) -> None:
    images = inner_images(16, low=0.45, high=0.55)
    model = balanced(images)
    labels, distance = nearest(model, images, norm)
    eps = float(distance.median())
    attacked = attack(model, images, labels, AttackConfig(name, eps, steps, CW_STEP, norm=norm), keys(16), stop)
    broken = model(attacked).argmax(dim=1) != labels
    assert broken[distance < 0.85 * eps].all()
    assert not broken[distance > eps].any()
    assert torch.equal(attacked[~broken], images[~broken])


def test_fab_aims_at_the_configured_number_of_classes() -> None:
    model, images = linear(classes=4), inner_images(8)
    with torch.no_grad():
        model[1].weight[3] *= 8
        model[1].bias[3] -= 1 + model(images)[:, 3].mean()  # unlikely, and near: its logit is steep
    labels = model(images).argmax(dim=1)
    distances = []
    for targets in (1, 2, 3, 9):  # of four classes
        recipe = AttackConfig("fab-t", 10.0, 10, norm="L2", targets=targets)
        found = attack(model, images, labels, recipe, keys(8))
        assert (model(found).argmax(dim=1) != labels).all()
        distances.append(lengths(found - images, "L2"))
    assert (distances[0] >= distances[1]).all()
    assert (distances[1] >= distances[2]).all()
    assert (distances[0] > distances[2] + 1e-3).any()  # the likeliest class is not always the nearest
    assert torch.equal(distances[2], distances[3])


def test_fab_stops_at_the_first_target_that_succeeds() -> None:
    model, images = linear(classes=4), inner_images(8)
    labels = model(images).argmax(dim=1)
    recipe = AttackConfig("fab-t", 10.0, 10, norm="L2", targets=3)
    full, stopping = Counter(model), Counter(model)
    attack(full, images, labels, recipe, keys(8), False)
    attack(stopping, images, labels, recipe, keys(8), True)
    assert sum(stopping.batches) < 0.5 * sum(full.batches)


def test_cw_matches_foolbox() -> None:
    """The same constants, steps and starts: the same distances. Foolbox stops a batch early unless told not to."""
    foolbox = pytest.importorskip("foolbox", reason="the oracle is not installed")
    model = curved()
    images, _ = images_and_labels(model, 5)
    labels = model(images).argmax(dim=1)
    ours = attack(model, images, labels, AttackConfig("cw", 100.0, 30, norm="L2"), keys(5))
    oracle = foolbox.attacks.L2CarliniWagnerAttack(steps=30, abort_early=False)
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1))
    theirs = oracle.run(bounded, images, foolbox.criteria.Misclassification(labels))
    theirs = torch.where(theirs.any(dim=(1, 2, 3), keepdim=True), theirs, images)  # black: its word for none found
    ours_broken, theirs_broken = (model(found).argmax(dim=1) != labels for found in (ours, theirs))
    assert theirs_broken.any()
    assert torch.equal(ours_broken, theirs_broken)
    ours_length, theirs_length = (lengths(found - images, "L2")[theirs_broken] for found in (ours, theirs))
    torch.testing.assert_close(ours_length, theirs_length, rtol=0.03, atol=1e-4)
