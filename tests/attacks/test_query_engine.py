"""Properties of every query attack: budget, range, batches, stopping, and what is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from query_toys import Counter, curved, images_and_labels, keys, linear
from torch import Tensor, nn

from maep.attacks.config import AttackConfig
from maep.attacks.losses import margin
from maep.attacks.norms import lengths
from maep.attacks.run import attack

ATTACKS = [
    AttackConfig("square", 8 / 255, queries=15),
    AttackConfig("square", 0.5, queries=15, norm="L2"),
    AttackConfig("noise", 8 / 255, draws=6),
    AttackConfig("noise", 0.5, draws=6, norm="L2"),
    AttackConfig("hard-label", 8 / 255, queries=30),
    AttackConfig("patch", 0.3, 5, norm="patch"),
    AttackConfig("patch", 0.3, 5, step_size=0.1, random_start=False, norm="patch"),
    AttackConfig("cw", 0.5, 3, norm="L2"),
    AttackConfig("fab-t", 8 / 255, 4, targets=3),
    AttackConfig("fab-t", 0.5, 4, norm="L2", targets=2),
    AttackConfig("fab-t", 5.0, 4, norm="L1", targets=2),
    AttackConfig("spatial", 0.1, norm="spatial"),
]
NEAREST = ("cw", "fab-t")  # keep the nearest image that is wrong, not the one of highest loss


def name_of(recipe: AttackConfig) -> str:
    return f"{recipe.label}-{recipe.norm}-{recipe.random_start}"


every_attack = pytest.mark.parametrize("recipe", ATTACKS, ids=name_of)
every_search = pytest.mark.parametrize("recipe", [a for a in ATTACKS if a.name != "fab-t"], ids=name_of)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return curved()


def queries(recipe: AttackConfig) -> int:
    """How often each image is shown to the model."""
    return {
        "patch": recipe.steps + 2,
        "cw": 9 * recipe.steps,
        "spatial": 775,
    }.get(recipe.name, recipe.effort)


@every_attack
@pytest.mark.parametrize("stop", [False, True])
def test_budget_and_range_are_held(model: nn.Module, recipe: AttackConfig, stop: bool) -> None:
    images, labels = images_and_labels(model, 4 if recipe.name == "spatial" else 8)
    before = images.clone()
    eps = recipe.eps
    counter = Counter(model)
    attacked = attack(counter, images, labels, recipe, keys(len(images)), stop)
    assert torch.equal(images, before)
    assert attacked.shape == images.shape
    assert attacked.dtype == images.dtype
    assert not attacked.requires_grad
    for seen in [attacked, *counter.seen]:
        assert 0 <= seen.min() <= seen.max() <= 1
    if recipe.norm == "Linf":
        assert (attacked <= images + eps).all()  # as float32 rounds it, to the last bit
        assert (attacked >= images - eps).all()
    elif recipe.norm in ("L2", "L1"):
        assert (lengths(attacked - images, recipe.norm) <= eps * (1 + 1e-5)).all()


@every_attack
def test_zero_budget_returns_the_images(model: nn.Module, recipe: AttackConfig) -> None:
    images, labels = images_and_labels(model, 4)
    counter = Counter(model)
    assert torch.equal(attack(counter, images, labels, replace(recipe, eps=0.0), keys(4)), images)
    assert not counter.seen


@every_search
def test_full_budget_is_spent_exactly(model: nn.Module, recipe: AttackConfig) -> None:
    images, labels = images_and_labels(model, 5)
    counter = Counter(model)
    attack(counter, images, labels, recipe, keys(5))
    assert counter.batches == [5] * queries(recipe)
    stopping = Counter(model)
    attack(stopping, images, labels, recipe, keys(5), True)
    assert sum(stopping.batches) < sum(counter.batches)  # some are wrong to begin with


@every_search
def test_batches_stay_full_while_images_leave(model: nn.Module, recipe: AttackConfig) -> None:
    images, labels = images_and_labels(model, 12)
    counter = Counter(model)
    attack(counter, images, labels, recipe, keys(12), True, 4)
    full = len(counter.batches) - counter.batches[::-1].index(4)  # up to here
    assert max(counter.batches) == 4
    assert set(counter.batches[:full]) == {4}
    if full < len(counter.batches):  # nobody is left to enter
        tail = counter.batches[full:]
        assert tail == sorted(tail, reverse=True)


@every_attack
@pytest.mark.parametrize("stop", [False, True])
def test_result_is_independent_of_batch_composition(recipe: AttackConfig, stop: bool) -> None:
    """In float64: in float32 the order of a batch's sums is noise that a comparison can blow up."""
    exact = curved(torch.float64)
    images, labels = images_and_labels(exact, 6)
    if recipe.name == "spatial":
        images, labels = images[1:4], labels[1:4]
    place = keys(len(images))
    together = attack(exact, images, labels, recipe, place, stop)
    close = {"rtol": 0, "atol": 1e-4 if recipe.name == "fab-t" else 1e-9}  # the authors' code is of float32
    torch.testing.assert_close(attack(exact, images, labels, recipe, place, stop, 2), together, **close)
    alone = attack(exact, images[2:3], labels[2:3], recipe, place[2:3], stop)
    torch.testing.assert_close(alone, together[2:3], **close)


@pytest.mark.parametrize("recipe", [a for a in ATTACKS if a.name in ("square", "noise")], ids=name_of)
def test_the_candidate_of_highest_margin_is_kept(model: nn.Module, recipe: AttackConfig) -> None:
    images, labels = images_and_labels(model, 6)
    counter = Counter(model)
    attacked = attack(counter, images, labels, recipe, keys(6))
    margins = torch.stack([margin(model(seen), labels) for seen in counter.seen])
    torch.testing.assert_close(margin(model(attacked), labels), margins.amax(dim=0), rtol=1e-4, atol=1e-4)
    assert (torch.stack(counter.seen) == attacked).flatten(2).all(dim=2).any(dim=0).all()  # one of them, untouched


@every_attack
def test_stopping_finds_what_the_full_budget_finds(recipe: AttackConfig) -> None:
    model = curved(torch.float64)
    images, labels = images_and_labels(model, 12)
    if recipe.name == "spatial":
        images, labels = images[:4], labels[:4]
    place = keys(len(images))
    wrong = model(images).argmax(dim=1) != labels
    full, stopping = (attack(model, images, labels, recipe, place, stop) for stop in (False, True))
    full_broken, stopping_broken = (model(attacked).argmax(dim=1) != labels for attacked in (full, stopping))
    if recipe.name not in ("square", "patch"):  # those walk on from what is best, so a broken one may be left behind
        assert torch.equal(full_broken, stopping_broken)
    assert (full_broken <= stopping_broken).all()
    if recipe.name not in ("square", "noise"):  # whose first query is the image itself
        assert torch.equal(stopping[wrong], images[wrong])


@every_attack
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_logits_are_an_error(recipe: AttackConfig, value: float) -> None:
    damaged = linear(3, 8)
    with torch.no_grad():
        damaged[1].bias[1] = value
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        attack(damaged, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), recipe, keys(2))


@every_attack
def test_attacks_leave_no_gradients_and_print_nothing(recipe: AttackConfig, capsys: pytest.CaptureFixture[str]) -> None:
    trained = linear(3, 8).requires_grad_(True)
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():  # also where the caller records nothing
        attack(trained, images, trained(images).argmax(dim=1), recipe, keys(2))
    assert all(parameter.grad is None for parameter in trained.parameters())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("recipe", [a for a in ATTACKS if a.name in ("square", "noise", "patch")], ids=name_of)
def test_keys_decide_the_draws(model: nn.Module, recipe: AttackConfig) -> None:
    images, labels = images_and_labels(model, 4)

    def made(seed: int) -> Tensor:
        return attack(
            model, images, labels, replace(recipe, steps=1, queries=1, draws=1, step_size=0.01), keys(4, seed)
        )

    assert torch.equal(made(3), made(3))
    if recipe.random_start:
        assert not torch.equal(made(3), made(4))


@pytest.mark.parametrize("recipe", [a for a in ATTACKS if a.name not in (*NEAREST, "spatial")], ids=name_of)
def test_more_budget_is_never_weaker_on_average(model: nn.Module, recipe: AttackConfig) -> None:
    images, labels = images_and_labels(model, 6)
    margins = [
        margin(model(attack(model, images, labels, replace(recipe, eps=recipe.eps * scale), keys(6))), labels).mean()
        for scale in (0.05, 1.0)
    ]
    assert margin(model(images), labels).mean() <= margins[0] + (1e-3 if recipe.name == "hard-label" else 0)
    if recipe.name != "hard-label":  # which looks at decisions, not at margins
        assert margins[0] < margins[1]
