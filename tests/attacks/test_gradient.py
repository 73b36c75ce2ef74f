"""The attacks in the Linf ball, on models small enough to know the answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from query_toys import curved, images_and_labels, keys
from torch import Tensor, nn

from maep import config, seeding
from maep.attacks.config import AttackConfig
from maep.attacks.losses import cross_entropy
from maep.attacks.methods.apgd import checkpoints
from maep.attacks.run import attack
from maep.errors import ConfigError
from maep.models.classifiers.load import CifarResNet, Classifier, fold_batch_norm

EPS = 8 / 255
ATTACKS = [
    AttackConfig("fgsm"),
    AttackConfig("pgd", steps=5),
    AttackConfig("pgd", steps=5, random_start=False),
    AttackConfig("pgd", steps=3, step_size=1.0),
    AttackConfig("apgd-ce", steps=12),
    AttackConfig("apgd-ce", steps=1),
    AttackConfig("apgd-ce", steps=7, random_start=False),
]
every_attack = pytest.mark.parametrize("recipe", ATTACKS, ids=lambda a: f"{a.label}-{a.random_start}-{a.step_size}")


class Recorder(nn.Module):
    """Returns its input and records the batches it received."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        logits: Tensor = self.model(images)
        return logits

    @property
    def num_images(self) -> int:
        """Forward passes, counted by image."""
        return sum(map(len, self.seen))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return curved()


def with_eps(recipe: AttackConfig, eps: float) -> AttackConfig:
    return AttackConfig(recipe.name, eps, recipe.steps, recipe.step_size, recipe.random_start)


@every_attack
@pytest.mark.parametrize("eps", [0.0, 1 / 255, 8 / 255, 0.3, 1.0])
@pytest.mark.parametrize("stop", [False, True])
def test_budget_and_range_are_held(model: nn.Module, recipe: AttackConfig, eps: float, stop: bool) -> None:
    images, labels = images_and_labels(model, side=16)
    before = images.clone()
    recorder = Recorder(model)
    attacked = attack(recorder, images, labels, with_eps(recipe, eps), keys(len(images)), stop)
    assert torch.equal(images, before)
    assert attacked.shape == images.shape
    assert not attacked.requires_grad
    assert (attacked <= (images + eps).clamp(max=1)).all()  # as float32 rounds it, to the last bit
    assert (attacked >= (images - eps).clamp(min=0)).all()
    if eps == 0:
        assert torch.equal(attacked, images)
        assert not recorder.seen
    grid = eps * 255
    if grid == round(grid):  # also what is stored: 8 bits
        steps = (attacked * 255).round() - (images * 255).round()
        assert steps.abs().max() <= grid
    if not stop:
        for seen in recorder.seen:
            assert ((seen - images).abs() <= eps + 1e-6).all()
            assert 0 <= seen.min() <= seen.max() <= 1


@pytest.mark.parametrize("recipe", ATTACKS[1:], ids=lambda a: f"{a.label}-{a.random_start}-{a.step_size}")
def test_the_iterate_of_highest_loss_is_kept(model: nn.Module, recipe: AttackConfig) -> None:
    images, labels = images_and_labels(model, side=16)
    recorder = Recorder(model)
    attacked = attack(recorder, images, labels, with_eps(recipe, EPS), keys(len(images)))
    losses = torch.stack([cross_entropy(model(seen), labels) for seen in recorder.seen])
    torch.testing.assert_close(cross_entropy(model(attacked), labels), losses.amax(dim=0), rtol=1e-5, atol=1e-5)
    assert (torch.stack(recorder.seen) == attacked).flatten(2).all(dim=2).any(dim=0).all()  # one of them, untouched
    clean = cross_entropy(model(images), labels)
    assert (losses.amax(dim=0) >= clean - 1e-6).all()
    assert (losses.amax(dim=0)[2:] > clean[2:]).all()  # the black image stands where the gradient is zero
    assert len(recorder.seen) == recipe.steps + 1


def test_last_iterate_is_evaluated() -> None:
    """On a linear model every step helps, so the best is the one after the last step."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images, labels = torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 1])
    recipe = AttackConfig("pgd", 0.2, steps=4, step_size=0.01, random_start=False)
    attacked = attack(linear, images, labels, recipe, keys(2))
    torch.testing.assert_close((attacked - images).abs().amax(dim=(1, 2, 3)), torch.full((2,), 0.04))


def test_fgsm_matches_its_formula(model: nn.Module) -> None:
    images, labels = images_and_labels(model, side=16)
    point = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(point), labels), point)
    wanted = (images + EPS * slope.sign()).clamp(0, 1)
    found = attack(model, images, labels, AttackConfig("fgsm", EPS), keys(len(images)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)
    assert (cross_entropy(model(found), labels) > cross_entropy(model(images), labels)).float().mean() > 0.8


def test_fgsm_keeps_its_step_where_that_lowers_the_loss() -> None:
    class Ditch(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            level = images.mean(dim=(1, 2, 3))
            return torch.stack([torch.zeros_like(level), torch.sin(40 * level)], dim=1)

    images = torch.full((1, 3, 2, 2), 0.03)
    attacked = attack(Ditch(), images, torch.tensor([0]), AttackConfig("fgsm", 0.1), keys(1))
    torch.testing.assert_close(attacked, images + 0.1)


@every_attack
def test_stopping_leaves_misclassified_images_unchanged(recipe: AttackConfig) -> None:
    model = curved(torch.float64)  # in float32 the order of a batch's sums is noise that a sign can blow up
    images, labels = images_and_labels(model, side=16)
    wrong = model(images).argmax(dim=1) != labels
    assert wrong.any()
    assert not wrong.all()
    recipe = with_eps(recipe, EPS)
    full, stopping = Recorder(model), Recorder(model)
    without = attack(full, images, labels, recipe, keys(len(images)))
    attacked = attack(stopping, images, labels, recipe, keys(len(images)), stop_at_success=True)
    assert stopping.num_images <= full.num_images
    assert len(stopping.seen) <= len(full.seen)
    broken = model(attacked).argmax(dim=1) != labels
    ever = torch.stack([model(seen).argmax(dim=1) != labels for seen in full.seen]).any(dim=0)
    assert torch.equal(broken, ever | broken)  # one success on the way is a success
    survivors = ~broken
    torch.testing.assert_close(attacked[survivors], without[survivors])
    if recipe.name == "fgsm" or not recipe.random_start:
        assert torch.equal(attacked[wrong], images[wrong])  # wrong from the first look


@every_attack
def test_stopping_on_a_model_that_is_always_wrong_takes_one_pass(recipe: AttackConfig) -> None:
    recorder = Recorder(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    with torch.no_grad():
        recorder.model[1].bias.copy_(torch.tensor([100.0, 0, 0]))
    images = torch.rand(4, 3, 2, 2)
    attack(recorder, images, torch.full((4,), 2), with_eps(recipe, EPS), keys(4), stop_at_success=True)
    assert len(recorder.seen) == 1


@every_attack
@pytest.mark.parametrize("stop", [False, True])
def test_result_is_independent_of_batch_composition(model: nn.Module, recipe: AttackConfig, stop: bool) -> None:
    """In float64: in float32 the order of a batch's sums is rounding noise that the sign function amplifies."""
    exact = fold_batch_norm(Classifier(CifarResNet(8, width=4), "e").eval()).double()
    images, labels = images_and_labels(model, 6, side=16)
    images, place = images.double(), keys(6)
    recipe = with_eps(recipe, EPS)
    together = attack(exact, images, labels, recipe, place, stop)
    for part in (slice(0, 1), slice(2, 5), slice(5, 6)):
        alone = attack(exact, images[part], labels[part], recipe, place[part], stop)
        assert ((alone - together[part]).abs() < 1e-6).float().mean() > 0.999


def test_apgd_checkpoints_match_the_authors_code() -> None:
    assert [step for step in checkpoints(100) if step <= 100] == [22, 41, 57, 70, 80, 87, 93, 99]
    assert 1 in checkpoints(1)


def test_keys_decide_the_start(model: nn.Module) -> None:
    images, labels = images_and_labels(model, side=16)
    recipe = AttackConfig("pgd", EPS, steps=1)
    recorder = Recorder(model)
    for seed in (0, 0, 1):
        attack(recorder, images, labels, recipe, seeding.mix(seed, torch.arange(len(images))))
    first, again, other = recorder.seen[::2]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    offsets = (first - images)[2:].flatten()
    assert abs(offsets.mean()) < EPS / 20
    assert offsets.abs().max() > 0.95 * EPS


@pytest.mark.parametrize(
    "recipe",
    [
        AttackConfig("fgsm", 0.1),
        AttackConfig("pgd", 0.1, 20),
        AttackConfig("pgd", 0.1, 10, random_start=False),
        AttackConfig("apgd-ce", 0.1, 20),
    ],
    ids=lambda a: a.label,
)
def test_linear_model_reaches_its_closed_form_optimum(recipe: AttackConfig) -> None:
    """Two classes: the worst point of the ball is a corner of it, x - eps sign(w_y - w_other), cut to [0, 1]."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    images, labels = torch.rand(64, 3, 4, 4), torch.randint(0, 2, (64,))
    weight = linear[1].weight.detach()
    away = (weight[1 - labels] - weight[labels]).view_as(images)
    wanted = torch.clamp(images + 0.1 * away.sign(), 0, 1)
    attacked = attack(linear, images, labels, recipe, keys(64))
    torch.testing.assert_close(attacked, wanted, rtol=0, atol=1e-6)
    margin = linear(attacked).gather(1, labels[:, None]) - linear(attacked).gather(1, 1 - labels[:, None])
    closed = linear(wanted).gather(1, labels[:, None]) - linear(wanted).gather(1, 1 - labels[:, None])
    torch.testing.assert_close(margin, closed, rtol=1e-4, atol=1e-5)


@every_attack
def test_more_budget_never_lowers_the_loss_of_the_start(model: nn.Module, recipe: AttackConfig) -> None:
    images, labels = images_and_labels(model, side=16)
    losses = [
        cross_entropy(model(attack(model, images, labels, with_eps(recipe, eps), keys(len(images)))), labels).mean()
        for eps in (0.0, 2 / 255, 8 / 255)
    ]
    assert losses[0] < losses[1] < losses[2]


@every_attack
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_logits_are_an_error(recipe: AttackConfig, value: float) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        linear[1].bias[1] = value
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        attack(linear, torch.rand(2, 3, 2, 2), torch.tensor([0, 1]), with_eps(recipe, EPS), keys(2))


def test_attacks_leave_no_gradients(model: nn.Module) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():  # also where the caller records nothing
        attack(linear, torch.rand(2, 3, 2, 2), torch.tensor([0, 1]), AttackConfig("pgd", EPS, 3), keys(2))
    assert all(parameter.grad is None for parameter in linear.parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eps": 8}, "eps: 8.0 must be in .*8/255 may be written so"),
        ({"eps": -0.1}, "eps"),
        ({"steps": 0}, "steps: 0"),
        ({"step_size": 0}, "step_size"),
        ({"name": "pdg"}, "did you mean 'pgd'"),
    ],
)
def test_inconsistent_configurations_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.build(AttackConfig, values, "attack")


def test_labels_for_tables() -> None:
    assert [recipe.label for recipe in ATTACKS[:2]] == ["FGSM", "PGD-5"]
    assert config.build(AttackConfig, {"name": "apgd-ce", "eps": "4/255", "steps": 50}).label == "APGD-CE-50"


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("images", lambda images: 255 * images),
        ("images", lambda images: images - 0.5),
        ("images", lambda images: (255 * images).byte()),
        ("images", lambda images: images[0]),
        ("images", lambda images: images[:, :1]),
        ("images", lambda images: images.numpy()),
        ("labels", lambda labels: labels[1:]),
        ("labels", lambda labels: labels.float()),
        ("labels", lambda labels: labels.tolist()),
        ("keys", lambda keys: keys[1:]),
        ("keys", lambda keys: torch.cat([keys, keys])),
    ],
)
def test_images_labels_and_keys_that_do_not_fit_are_refused(model: nn.Module, name: str, wrong: Any) -> None:
    images, labels = images_and_labels(model, side=16)
    given: dict[str, Any] = {"images": images, "labels": labels, "keys": keys(len(images))}
    with pytest.raises(ValueError, match=name):
        attack(model, **given | {name: wrong(given[name])})


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_that_is_no_positive_number_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match="step_size"):
        AttackConfig(step_size=step)
