"""Each indicator of attack failure fires on the failure that it is for, on no other, and names what to do about it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from evaluate_toys import Linear, NotANumber, Rounding, Saturated, Shattered, Shifted, Trapped, zeros_and_ones
from torch import Tensor, nn

from maep.attacks.config import AttackConfig
from maep.evaluate import baselines
from maep.evaluate.measure import DefendedModel, ImageBatch, attack_images
from maep.evaluate.trust.findings import Check
from maep.evaluate.trust.indicators import indicators as indicators_of
from maep.models.purifier import defend

EPS = 8 / 255


@pytest.fixture(scope="module")
def digits() -> ImageBatch:
    return zeros_and_ones()


def indicators(
    model: nn.Module,
    digits: ImageBatch,
    eps: float = EPS,
    config: AttackConfig | None = None,
    eot: int | None = None,
    surrogate: nn.Module | None = None,
) -> list[Check]:
    """Of PGD-20 at `eps`, or of `config`; `eot`: of a randomised model."""
    defended = DefendedModel(model, eot is not None, eot or 1)
    return indicators_of(defended, digits, config or AttackConfig("pgd", eps, 20), surrogate=surrogate)


def fired(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.passed}


def test_sound_attack_on_an_honest_model_passes(digits: ImageBatch) -> None:
    for eps in (EPS, 40 / 255):  # of which one breaks no image and the other a quarter
        assert not fired(indicators(Linear().eval(), digits, eps))


def test_six_indicators_in_the_order_of_the_paper(digits: ImageBatch) -> None:
    names = [check.name for check in indicators(Linear().eval(), digits)]
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
def test_unavailable_gradients_stop_before_the_attack(digits: ImageBatch, defence: nn.Module, seen: str) -> None:
    found = indicators(defend(Linear(), defence), digits)
    assert [check.name for check in found] == ["unavailable gradients"]
    assert not found[0].passed
    assert seen in found[0].detail
    assert "BPDA" in found[0].detail


@pytest.mark.parametrize(
    "model", [Saturated().eval(), defend(Linear(), Rounding())], ids=["saturated loss", "rounded image"]
)
def test_gradients_of_zero_are_unavailable(digits: ImageBatch, model: nn.Module) -> None:
    found = fired(indicators(model, digits))
    assert {"unavailable gradients", "unconstrained attack failure"} <= found.keys()
    assert "51 zero" in found["unavailable gradients"]


def test_unstable_predictions(digits: ImageBatch) -> None:
    mild, strong = (indicators(defend(Linear(), Shattered(slope)), digits) for slope in (0.5, 5.0))
    assert not fired(mild)  # a ripple that the gradient outweighs does no harm
    found = fired(strong)
    assert "EOT" in found["unstable predictions"]
    assert found.keys() <= {"unstable predictions", "unconstrained attack failure"}


def test_draws_of_a_randomised_model_must_agree(digits: ImageBatch) -> None:
    class Flipped(nn.Module):
        """Turns the gradient of whole images around, every second time, and changes nothing else."""

        def forward(self, images: Tensor) -> Tensor:
            turned = torch.rand(len(images), 1, 1, 1) < 0.5
            return torch.where(turned, 2 * images.detach() - images, images)

    found = fired(indicators(defend(Linear(), Flipped()), digits, eot=1))
    assert "EOT" in found["gradients agree"]


def test_silent_success(digits: ImageBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(target: nn.Module, batch: ImageBatch, *rest: Any) -> Tensor:
        attack_images(target, batch, *rest)
        return batch.images.clone()

    monkeypatch.setattr("maep.evaluate.trust.probes.attack_images", forgetful)
    found = fired(indicators(Linear().eval(), digits, 80 / 255))
    assert "51 of 51" in found["silent success"]


@pytest.mark.parametrize("name", ["pgd", "apgd-ce"])
def test_the_best_iterate_is_returned(digits: ImageBatch, name: Any) -> None:
    config = AttackConfig(name, 60 / 255, 20)
    found = {check.name: check for check in indicators(Linear().eval(), digits, config=config)}
    assert found["silent success"].passed
    assert "0 of 0 " not in found["silent success"].detail


def test_incomplete_optimization(digits: ImageBatch) -> None:
    eps = 60 / 255
    small = AttackConfig("pgd", eps, 20, step_size=eps / 60)
    found = fired(indicators(Linear().eval(), digits, config=small))
    assert found.keys() == {"incomplete optimization"}
    enough = AttackConfig("pgd", eps, 100, step_size=eps / 40)
    assert not fired(indicators(Linear().eval(), digits, config=enough))


def test_transfer_failure(digits: ImageBatch) -> None:
    model, eps = Linear().eval(), 20 / 255
    found = fired(indicators(model, digits, eps, surrogate=Shifted(10).eval()))
    assert found.keys() == {"transfer failure"}
    assert not fired(indicators(model, digits, eps, surrogate=Linear().eval()))


def test_dependence_on_the_batch_is_a_transfer_failure(digits: ImageBatch) -> None:
    """An attack drops what is broken: the model that it saw then is not the one that answers."""

    class Crowded(Linear):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = super().forward(images)
            return logits if len(images) == 51 else logits.roll(1, dims=1)

    assert "transfer failure" in fired(indicators(Crowded().eval(), digits, 60 / 255))


def test_unconstrained_attack_failure(digits: ImageBatch) -> None:
    found = fired(indicators(Trapped().eval(), digits))
    assert found.keys() == {"unconstrained attack failure"}


def test_nothing_to_attack(digits: ImageBatch) -> None:
    assert fired(indicators(Linear().eval(), digits._replace(labels=1 - digits.labels))).keys() == {"attackable"}
