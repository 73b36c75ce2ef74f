"""Randomised defences: gradients are means over draws, the known answer is met, and too few draws are flagged."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluate_toys import Linear, randomised, robust
from registering import registered
from torch import Tensor, nn

from maep import artifact, config, registry
from maep.data import lists
from maep.data.config import DataConfig
from maep.data.datasets import load
from maep.evaluate.config import EvaluateConfig
from maep.evaluate.measure import Expectation, ImageBatch
from maep.evaluate.protocol.context import FixedDraws
from maep.evaluate.protocol.run import evaluate
from maep.evaluate.trust import sanity
from maep.models.classifiers.load import Classifier
from maep.models.config import MaeConfig
from maep.models.families.purifier import PurifierConfig
from maep.models.purifier import Purifier, defend

LINEAR = "import:evaluate_toys:linear"
EPS = 40 / 255


class Ripple(nn.Module):
    """Adds a sine of random phase to every pixel: almost no change, but a gradient of up to +-`slope`.

    Its mean over phases is x -> HEIGHT + (1 - 2 HEIGHT) x exactly, so a linear model behind it has a known answer.
    """

    HEIGHT = 0.01
    differentiable = randomised = True

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, images: Tensor) -> Tensor:
        phase = 2 * math.pi * torch.rand_like(images)
        ripple = self.HEIGHT * torch.sin(self.slope / self.HEIGHT * images + phase)
        return (self.mean(images) + ripple).clamp(0, 1)

    def mean(self, images: Tensor) -> Tensor:
        return self.HEIGHT + (1 - 2 * self.HEIGHT) * images


class Shaken(nn.Module):
    """Noise so strong that the prediction depends on the draw."""

    differentiable = randomised = True

    def forward(self, images: Tensor) -> Tensor:
        return (images + 0.5 * torch.randn_like(images)).clamp(0, 1)


class Unsaid(Ripple):
    """The same, but not declared randomised."""

    randomised = False


@pytest.fixture
def linear(small: EvaluateConfig, monkeypatch: pytest.MonkeyPatch) -> EvaluateConfig:
    """The linear digits classifier behind a ripple, 120 images, of which the zeros and ones can be right."""
    for name, make in (("smooth", Ripple), ("rough", Ripple), ("unsaid", Unsaid)):
        slope = 2 if name == "smooth" else 20
        registered(monkeypatch, registry.baselines, name, make, slope=slope)
    return replace(
        small,
        classifiers=(LINEAR,),
        num_images=120,
        num_probes=60,
        batch_size=60,
        shard_size=60,
        eps=(32 / 255, EPS),
        oblivious_eps=EPS,
        eot=10,
    )


def known(eps: float) -> int:
    """Images of the 120 that no change within eps turns behind the mean of a ripple."""
    images, labels = lists.pick(load(DataConfig("digits"), "dev"), lists.named("digits-dev")).batch(range(120))
    shrunk = 1 - 2 * Ripple.HEIGHT
    return int(robust(Linear(), Ripple(0).mean(images), labels, eps * shrunk).sum())


def test_expectation_is_the_mean_over_draws() -> None:
    model = Ripple(slope=20)
    images = torch.full((2, 3, 16, 16), 0.5)
    torch.manual_seed(0)
    point = images.clone().requires_grad_(True)
    averaged = Expectation(model, 400)(point)
    (slope,) = torch.autograd.grad(averaged.sum(), point)
    assert torch.allclose(averaged, model.mean(images), atol=4 * 0.01 / math.sqrt(2 * 400))
    assert float(slope.mean()) == pytest.approx(0.98, abs=0.1)
    assert float(slope.std()) == pytest.approx(20 / math.sqrt(2 * 400), rel=0.2)  # of one draw: 14


def test_enough_draws_reach_the_known_accuracy(linear: EvaluateConfig, tmp_path: Path) -> None:
    found = evaluate(replace(linear, baselines=("smooth",)), {}, tmp_path / "out")
    assert not found.unreliable
    assert known(EPS) < known(32 / 255) < known(0)
    for eps in (32 / 255, EPS):
        assert abs(found.figure("smooth", LINEAR, "adaptive", eps).num_correct - known(eps)) <= 3
    table = found.rows().to_pandas()
    assert set(table[table["threat"] == "adaptive"]["eot"]) == {10}
    assert set(table[table["threat"] != "adaptive"]["eot"]) == {1}
    names = {check["name"] for check in found.values["sanity"][0]["checks"]}
    assert {"gradients agree", "eps 0 is clean", "adaptive is not above oblivious"} <= names


def test_too_few_draws_are_flagged(linear: EvaluateConfig, tmp_path: Path) -> None:
    found = evaluate(replace(linear, baselines=("rough",), eot=2), {}, tmp_path / "out")
    assert found.figure("rough", LINEAR, "adaptive", EPS).num_correct > known(EPS) + 3  # what must not be believed
    reasons = " ".join(found.unreliable["rough"])
    assert "gradients agree" in reasons
    assert "unconstrained attack failure" in reasons
    assert "adaptive is not above oblivious" in reasons


def test_undeclared_draws_are_flagged(linear: EvaluateConfig, tmp_path: Path) -> None:
    found = evaluate(replace(linear, baselines=("unsaid",)), {}, tmp_path / "out")
    assert any(reason.startswith("draws nothing") for reason in found.unreliable["unsaid"])
    assert set(found.rows().to_pandas()["eot"]) == {1}


def test_random_masks_go_through_the_protocol(small: EvaluateConfig, tmp_path: Path) -> None:
    described = PurifierConfig(
        mae=MaeConfig(
            image_size=(16, 16), width=16, depth=1, num_heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
        ),
        mask_ratio=0.2,
        stem_channels=(4, 8),
        stem_blocks=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = Purifier(described)
    masked = artifact.write(tmp_path / "mae", "purifier", {"model": config.to_dict(described)}, model.state_dict(), "-")
    few = replace(small, num_images=12, num_probes=8, baselines=(), eps=(8 / 255,), eot=3)
    first, second = (evaluate(few, {"masked": masked}, tmp_path / name) for name in ("first", "second"))
    assert first.rows().equals(second.rows())
    table = first.rows().to_pandas()
    assert set(table[table["threat"] == "adaptive"]["eot"]) == {3}
    once = evaluate(replace(few, eot=1), {"masked": masked}, tmp_path / "once")
    assert first.values["forward_passes"] > once.values["forward_passes"]


@pytest.mark.parametrize(("passes", "enough"), [(1, False), (10, True)])
def test_noise_before_a_classifier_needs_more_than_one_draw(classifier: Classifier, passes: int, enough: bool) -> None:
    class Noise(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images + 0.3 * torch.randn_like(images)).clamp(0, 1)

    digits = load(DataConfig("digits"), "dev")
    probes = ImageBatch(*digits.batch(range(60)), torch.from_numpy(digits.indices[:60]))
    defended = randomised(defend(classifier, Noise()), eot=passes)
    checks = sanity.battery(defended, probes, "adaptive", 8 / 255)
    assert next(check.passed for check in checks if check.name == "gradients agree") == enough


def test_a_randomised_purifier_is_judged_by_fresh_draws(
    linear: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(monkeypatch, registry.baselines, "shaken", Shaken)
    few = replace(linear, baselines=("shaken", "none"), num_images=60, draws=12, eps=(EPS,))
    found = evaluate(few, {}, tmp_path / "out")
    table = found.rows().to_pandas()
    drawn = table[table["purifier"] == "shaken"]
    assert set(drawn["num_draws"]) == {12}
    assert set(table[table["purifier"] == "none"]["num_draws"]) == {1}
    assert ((drawn["num_right"] > 6) <= drawn["correct"]).all()
    assert drawn["num_right"].between(1, 11).any(), "some image is right in some draws only"
    figure = found.figure("shaken", LINEAR, "adaptive", EPS)
    assert figure.mean_accuracy is not None
    assert figure.worst_accuracy is not None
    assert figure.worst_accuracy <= figure.mean_accuracy
    assert figure.worst_accuracy <= figure.accuracy
    assert found.figure("none", LINEAR, "adaptive", EPS).mean_accuracy is None
    assert not drawn[drawn["threat"] == "adaptive"]["inherited"].any(), "one draw breaks no randomised model"


def test_fixed_draws_are_the_same_in_every_call() -> None:
    model = FixedDraws(Ripple(slope=2), seed=3)
    images = torch.full((2, 3, 16, 16), 0.5)
    torch.manual_seed(0)
    first = model(images)
    state = torch.get_rng_state()
    assert torch.equal(first, model(images))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, FixedDraws(Ripple(slope=2), seed=4)(images))
