"""The sanity battery: what is masked or wrong is flagged, what is honest is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from evaluate_toys import (
    CountsItsBatch,
    Linear,
    NoisyInGradient,
    Rounding,
    linear,
    probabilities,
    randomised,
    zeros_and_ones,
)
from torch import Tensor, nn

from maep.artifact import Artifact
from maep.attacks.config import AttackConfig
from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.errors import DataError
from maep.evaluate.measure import DefendedModel, ImageBatch, attack_images
from maep.evaluate.results.summary import Result
from maep.evaluate.trust import sanity
from maep.evaluate.trust.checks import adaptive_not_above, budget_rounded, eps_zero, monotone
from maep.evaluate.trust.findings import Check
from maep.models.build import load_purifier_artifact
from maep.models.classifiers.load import Classifier
from maep.models.purifier import defend

INDICATORS = {
    "unavailable gradients",
    "unstable predictions",
    "silent success",
    "incomplete optimization",
    "transfer failure",
    "unconstrained attack failure",
}


@pytest.fixture(scope="module")
def probes() -> ImageBatch:
    digits = load(DataConfig("digits"), "dev")
    images, labels = digits.batch(range(24))
    return ImageBatch(images, labels, torch.from_numpy(digits.indices[:24]))


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def test_honest_purifier_is_not_flagged(classifier: Classifier, purifier: Artifact, probes: ImageBatch) -> None:
    model = defend(classifier, load_purifier_artifact(purifier))
    checks = sanity.battery(DefendedModel(model), probes, "adaptive", 8 / 255)
    assert not failed(checks)
    assert {check.name for check in checks} == {
        "eval mode",
        "logits",
        "draws nothing",
        *INDICATORS,
        "budget and range",
        "noise is weaker than PGD",
        "more steps are not weaker",
    }


def test_masked_gradients_are_flagged(classifier: Classifier, probes: ImageBatch) -> None:
    checks = sanity.battery(DefendedModel(defend(classifier, Rounding())), probes, "adaptive", 8 / 255)
    assert {"unavailable gradients", "unconstrained attack failure"} <= failed(checks)


class Rippled(Linear):
    """The linear classifier with ripples on its margin: many small steps settle in one, a large one jumps over."""

    def margin(self, pixels: Tensor) -> Tensor:
        plain = super().margin(pixels)
        return plain + 3 * torch.sin(2 * torch.pi * plain / 4)


def test_one_step_that_beats_twenty_is_flagged() -> None:
    digits = load(DataConfig("digits"), "dev")
    images, labels = digits.batch(range(240))
    images, labels, indices = (part[labels < 2] for part in (images, labels, torch.from_numpy(digits.indices[:240])))
    for model, flagged in ((Rippled(), True), (linear(), False)):
        checks = sanity.battery(DefendedModel(model.eval()), ImageBatch(images, labels, indices), "adaptive", 40 / 255)
        assert ("more steps are not weaker" in failed(checks)) == flagged


def test_eps_zero_that_is_not_clean_is_flagged() -> None:
    """The clean rows come from other batches than the battery: a prediction may depend on the image only."""
    images, labels, indices = (part[:24] for part in zeros_and_ones())

    def check(model: nn.Module, moved: int = 0) -> Check:
        predictions = model(images).argmax(dim=1)
        answers = zip(predictions.tolist(), (predictions == labels).tolist(), strict=True)
        clean = dict(zip(indices.roll(moved).tolist(), answers, strict=True))
        few = ImageBatch(images[:9], labels[:9], indices[:9])
        return eps_zero(sanity.at_eps_zero(DefendedModel(model), few), clean)

    assert len(set(labels[:9].tolist())) == 2
    assert check(linear()).passed
    assert not check(CountsItsBatch().eval()).passed
    assert not check(linear(), moved=1).passed  # answers that stand beside other images' indices
    assert not eps_zero({7: (1, True)}, {}).passed


def test_eps_zero_allows_a_randomised_model_its_draws() -> None:
    clean = {index: (0, index < 60) for index in range(100)}
    few = {index: (0, index < 57 or index == 99) for index in range(100)}
    many = {index: (0, index < 40) for index in range(100)}
    assert eps_zero(few, clean, randomised=True).passed
    assert not eps_zero(few, clean).passed
    assert not eps_zero(many, clean, randomised=True).passed
    assert not eps_zero(clean, many, randomised=True).passed


def test_adaptive_above_oblivious_is_flagged() -> None:
    oblivious = {index: index < 50 for index in range(300)}

    def check(right: int, count: int = 200, randomised: bool = False) -> Check:
        return adaptive_not_above({i: i < right for i in range(count)}, oblivious, "oblivious", 8 / 255, randomised)

    assert check(20).passed
    assert check(52).passed  # one point of 200
    assert not check(53).passed
    assert check(53, randomised=True).passed  # three images may turn by chance
    assert not check(70, randomised=True).passed
    assert check(53).name == "adaptive is not above oblivious"
    assert "53 of 200" in check(53).detail


@pytest.mark.parametrize(
    ("make", "name"), [(probabilities, "logits"), (lambda: linear().train(), "eval mode")], ids=["softmax", "training"]
)
def test_wrong_models_are_flagged(make: Callable[[], nn.Module], name: str, probes: ImageBatch) -> None:
    model = make()
    model = model if name == "eval mode" else model.eval()
    assert name in failed(sanity.battery(DefendedModel(model), probes, "bpda", 8 / 255))


def test_draws_made_only_under_autograd_are_flagged(classifier: Classifier, probes: ImageBatch) -> None:
    model = defend(classifier, NoisyInGradient())
    with torch.no_grad():
        assert torch.equal(model(probes[0]), model(probes[0]))
    assert "draws nothing" in failed(sanity.battery(DefendedModel(model), probes, "bpda", 8 / 255))


def test_battery_restores_and_ignores_the_global_generator(classifier: Classifier, probes: ImageBatch) -> None:
    class Faint(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images + 0.02 * torch.randn_like(images)).clamp(0, 1)

    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        defended = randomised(defend(classifier, Faint()), eot=2)
        checks = sanity.battery(defended, probes, "adaptive", 8 / 255)
        answers = sanity.at_eps_zero(defended, probes)
        assert torch.equal(torch.random.get_rng_state(), before)
        found.append((checks, answers))
    assert found[0] == found[1]


def test_no_right_image_fails_as_unattackable(probes: ImageBatch) -> None:
    wrong = probes.where(probes.labels > 1)
    assert "attackable" in failed(sanity.battery(DefendedModel(linear().eval()), wrong, "adaptive", 8 / 255))


def test_attack_outside_the_norm_ball_is_flagged(
    classifier: Classifier, probes: ImageBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wide(target: nn.Module, batch: ImageBatch, config: AttackConfig, *rest: Any) -> Tensor:
        return attack_images(target, batch, replace(config, eps=2 * config.eps), *rest)

    monkeypatch.setattr("maep.evaluate.trust.probes.attack_images", wide)
    assert "budget and range" in failed(sanity.battery(DefendedModel(classifier), probes, "bpda", 8 / 255))


def test_attack_weaker_than_noise_is_flagged(
    classifier: Classifier, probes: ImageBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maep.evaluate.trust.probes.attack_images", lambda target, batch, *rest: batch.images.clone())
    assert "noise is weaker than PGD" in failed(sanity.battery(DefendedModel(classifier), probes, "adaptive", 64 / 255))


def test_images_out_of_range_are_refused(classifier: Classifier, probes: ImageBatch) -> None:
    bright = probes._replace(images=probes.images * 255)
    with pytest.raises(DataError, match="0 to 255"):
        sanity.battery(DefendedModel(classifier), bright, "adaptive", 8 / 255)


def test_accuracy_that_rises_with_eps_is_flagged() -> None:
    assert monotone("eps", {2 / 255: 0.50, 8 / 255: 0.505}, 1000).passed
    assert not monotone("eps", {2 / 255: 0.50, 8 / 255: 0.52}, 1000).passed
    assert monotone("eps", {2 / 255: 0.50, 8 / 255: 0.55}, 20).passed  # one image of twenty


def test_honest_evaluation_is_reliable(result: Result) -> None:
    assert result.values["reliable"]
    assert not result.unreliable
    reported = {(entry["purifier"], check["name"]) for entry in result.values["sanity"] for check in entry["checks"]}
    assert ("conv", "monotone in eps") in reported
    assert ("conv", "adaptive is not above oblivious") in reported
    assert ("jpeg-q50", "adaptive is not above oblivious") not in reported
    assert {name for name, check in reported if check == "eps 0 is clean"} == {"none", "jpeg-q50", "conv"}
    assert ("jpeg-q50", "unstable predictions") not in reported
    assert {("jpeg-q50", "unavailable gradients"), ("conv", "unstable predictions")} <= reported


def test_black_box_below_adaptive_is_flagged() -> None:
    adaptive = {index: index < 100 for index in range(200)}

    def check(right: int, randomised: bool = False, first: int = 0) -> Check:
        other = {index: index < right for index in range(first, 400)}
        return adaptive_not_above(adaptive, other, "black-box", 8 / 255, randomised)

    assert check(120).passed  # it knows less, and finds less
    assert check(96).passed  # two points of 200
    assert not check(95).passed
    assert check(95, randomised=True).passed  # five images may turn by chance
    assert not check(80, randomised=True).passed
    assert "100 of 200" in check(95).detail
    assert not check(400, first=200).passed  # no image in common says nothing
    assert adaptive_not_above(adaptive, adaptive, "bpda", 8 / 255).name == "adaptive is not above bpda"


def test_accuracy_that_rises_with_steps_is_flagged() -> None:
    assert monotone("steps", {10: 0.6, 100: 0.5, 20: 0.55}, 1000).passed
    assert not monotone("steps", {10: 0.6, 100: 0.57, 20: 0.55}, 1000).passed
    assert monotone("steps", {1: 0.5, 20: 0.55}, 20).passed  # one image of twenty


def test_rows_beyond_their_budget_are_flagged() -> None:
    eps = 8 / 255
    assert budget_rounded([0.0, eps, eps + 5e-7], eps).passed
    assert budget_rounded([0.4 / 255, 0.5 / 255], 0.5 / 255).passed
    for beyond in (eps + 1e-5, 9 / 255, math.nan, -eps):
        assert not budget_rounded([eps, beyond], eps).passed
    assert "1 of 2" in budget_rounded([eps, 9 / 255], eps).detail
