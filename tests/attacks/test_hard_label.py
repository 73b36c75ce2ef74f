"""RayS: it sees decisions only, and on a linear model it finds the nearest point of the boundary."""

from __future__ import annotations

from dataclasses import replace

import torch
from query_toys import Counter, Decisions, curved, gap, images_and_labels, inner_images, keys, linear

from maep.attacks.config import AttackConfig
from maep.attacks.methods.hard_label import _RayS
from maep.attacks.norms import lengths
from maep.attacks.run import attack
from maep.attacks.task import AttackTask


def nearest(model: torch.nn.Sequential, images: torch.Tensor) -> torch.Tensor:
    """[B]: the closed form, margin / ||w||_1."""
    _, wins, along = gap(model, images)
    return wins / along.abs().sum(dim=1)


def test_radius_matches_the_closed_form_of_a_linear_model() -> None:
    model, images = linear(), inner_images(16)
    labels, wanted = gap(model, images)[0], nearest(model, images)
    search = _RayS(AttackTask(model, images, labels, AttackConfig("hard-label", 0.5, queries=1500), keys(16)))
    search.run(1500)
    assert (search.radius >= wanted * (1 - 1e-4)).all()
    assert (search.radius <= wanted * 1.02 + 1e-3 / 48**0.5).all()


def test_only_images_within_eps_of_the_boundary_are_broken() -> None:
    model, images = linear(), inner_images(16)
    labels, distance = gap(model, images)[0], nearest(model, images)
    eps = float(distance.median())
    recipe = AttackConfig("hard-label", eps, queries=1500)
    for stop in (False, True):
        attacked = attack(model, images, labels, recipe, keys(16), stop)
        broken = model(attacked).argmax(dim=1) != labels
        assert broken[distance < 0.96 * eps].all()
        assert not broken[distance > eps].any()
        changed = lengths(attacked - images, "Linf")
        if not stop:  # all go as far as they may, where the model is still wrong
            torch.testing.assert_close(changed, torch.full((16,), eps), rtol=1e-4, atol=0)
        else:
            assert (changed[distance < 0.5 * eps] < eps).all()


def test_only_the_predicted_class_is_used() -> None:
    model = curved()
    images, labels = images_and_labels(model)
    for stop in (False, True):
        recipe = AttackConfig("hard-label", 8 / 255, queries=120)
        open_eyes = attack(model, images, labels, recipe, keys(12), stop)
        blindfolded = attack(Decisions(model), images, labels, recipe, keys(12), stop)
        assert torch.equal(open_eyes, blindfolded)


def test_stopping_saves_queries_and_more_of_them_find_more() -> None:
    model, images = linear(side=8), inner_images(16, side=8)
    labels, distance = gap(model, images)[0], nearest(model, images)
    recipe = AttackConfig("hard-label", 2.5 * float(distance.median()), queries=1000)
    counter = Counter(model)
    broken = [
        int(
            (
                model(attack(counter, images, labels, replace(recipe, queries=queries), keys(16), True)).argmax(1)
                != labels
            ).sum()
        )
        for queries in (2, 1000)
    ]
    assert broken[0] < broken[1]
    assert sum(counter.batches) < 16 * 1002
