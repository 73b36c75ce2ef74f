"""Each indicator of attack failure fires on the failure that it is for, on no other, and names what to do about it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from evaluate_toys import Digits, Linear, NotANumber, Rounding, Saturated, Shattered, Shifted, Trapped, zeros_and_ones
from torch import Tensor, nn

from maep.attacks.config import AttackConfig
from maep.evaluate import baselines
from maep.evaluate.measure import Batch, attack_images
from maep.evaluate.trust.findings import Check
from maep.evaluate.trust.indicators import indicators
from maep.models.purifier import defend

EPS = 8 / 255


@pytest.fixture(scope="module")
def digits() -> Digits:
    return zeros_and_ones()


def fired(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.passed}


def test_a_sound_attack_on_an_honest_model_fires_none(digits: Digits) -> None:
    for eps in (EPS, 40 / 255):  # of which one breaks no image and the other a quarter
        assert not fired(indicators(Linear().eval(), *digits, eps, seed=0))


def test_six_of_them_in_the_order_of_the_paper(digits: Digits) -> None:
    names = [check.name for check in indicators(Linear().eval(), *digits, EPS, seed=0)]
    assert names == [
        "unavailable gradients",
        "unstable predictions",
        "silent success",
        "incomplete optimization",
        "transfer failure",
        "unconstrained attack failure",
    ]


@pytest.mark.parametrize(
    ("defence", "seen"),
    [(baselines.build("jpeg-q50"), "not differentiable"), (NotANumber(), "51 NaN")],
    ids=["detached", "nan"],
)
def test_unavailable_gradients_and_no_attack_without(digits: Digits, defence: nn.Module, seen: str) -> None:
    found = indicators(defend(Linear(), defence), *digits, EPS, seed=0)
    assert [check.name for check in found] == ["unavailable gradients"]
    assert not found[0].passed
    assert seen in found[0].detail
    assert "BPDA" in found[0].detail


@pytest.mark.parametrize(
    "model", [Saturated().eval(), defend(Linear(), Rounding())], ids=["saturated loss", "rounded image"]
)
def test_gradients_of_zero_are_unavailable(digits: Digits, model: nn.Module) -> None:
    found = fired(indicators(model, *digits, EPS, seed=0))
    assert {"unavailable gradients", "unconstrained attack failure"} <= found.keys()
    assert "51 zero" in found["unavailable gradients"]


def test_unstable_predictions(digits: Digits) -> None:
    mild, strong = (indicators(defend(Linear(), Shattered(slope)), *digits, EPS, seed=0) for slope in (0.5, 5.0))
    assert not fired(mild)  # a ripple that the gradient outweighs does no harm
    found = fired(strong)
    assert "EOT" in found["unstable predictions"]
    assert found.keys() <= {"unstable predictions", "unconstrained attack failure"}


def test_draws_of_a_randomised_model_must_agree(digits: Digits) -> None:
    class Flipped(nn.Module):
        """Turns the gradient of whole images around, every second time, and changes nothing else."""

        def forward(self, images: Tensor) -> Tensor:
            turned = torch.rand(len(images), 1, 1, 1) < 0.5
            return torch.where(turned, 2 * images.detach() - images, images)

    found = fired(indicators(defend(Linear(), Flipped()), *digits, EPS, seed=0, passes=1))
    assert "EOT" in found["gradients agree"]


def test_silent_success(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(target: nn.Module, batch: Batch, *rest: Any) -> Tensor:
        attack_images(target, batch, *rest)
        return batch.images.clone()

    monkeypatch.setattr("maep.evaluate.trust.probes.attack_images", forgetful)
    found = fired(indicators(Linear().eval(), *digits, 80 / 255, seed=0))
    assert "51 of 51" in found["silent success"]
    assert "return the best iterate" in found["silent success"]


@pytest.mark.parametrize("name", ["pgd", "apgd-ce"])
def test_the_best_iterate_is_returned(digits: Digits, name: Any) -> None:
    config = AttackConfig(name, 60 / 255, 20)
    found = {check.name: check for check in indicators(Linear().eval(), *digits, 0.0, seed=0, config=config)}
    assert found["silent success"].passed
    assert "0 of 0 " not in found["silent success"].detail


def test_incomplete_optimization(digits: Digits) -> None:
    eps = 60 / 255
    small = AttackConfig("pgd", eps, 20, step_size=eps / 60)
    found = fired(indicators(Linear().eval(), *digits, eps, seed=0, config=small))
    assert found.keys() == {"incomplete optimization"}
    assert "more steps or a larger step" in found["incomplete optimization"]
    enough = AttackConfig("pgd", eps, 100, step_size=eps / 40)
    assert not fired(indicators(Linear().eval(), *digits, eps, seed=0, config=enough))


def test_transfer_failure(digits: Digits) -> None:
    model, eps = Linear().eval(), 20 / 255
    found = fired(indicators(model, *digits, eps, seed=0, surrogate=Shifted(10).eval()))
    assert found.keys() == {"transfer failure"}
    assert "surrogate" in found["transfer failure"]
    assert not fired(indicators(model, *digits, eps, seed=0, surrogate=Linear().eval()))


def test_an_answer_that_hangs_on_the_batch_does_not_transfer(digits: Digits) -> None:
    """An attack drops what is broken: the model that it saw then is not the one that answers."""

    class Crowded(Linear):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = super().forward(images)
            return logits if len(images) == 51 else logits.roll(1, dims=1)

    assert "transfer failure" in fired(indicators(Crowded().eval(), *digits, 60 / 255, seed=0))


def test_unconstrained_attack_failure(digits: Digits) -> None:
    found = fired(indicators(Trapped().eval(), *digits, EPS, seed=0))
    assert found.keys() == {"unconstrained attack failure"}
    assert "change its loss" in found["unconstrained attack failure"]


def test_nothing_to_attack(digits: Digits) -> None:
    images, labels, indices = digits
    assert fired(indicators(Linear().eval(), images, 1 - labels, indices, EPS, seed=0)).keys() == {"attackable"}
