"""Evaluation, validation and search measure one purifier alike: the same images are right, randomised or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_toys import Linear, robust, zeros_and_ones
from registering import registered
from torch import Tensor, nn

from maep import registry
from maep.artifact import Artifact
from maep.attacks.config import AttackConfig
from maep.data import lists
from maep.data.config import DataConfig
from maep.data.image_set import ImageSet
from maep.evaluate.config import EvaluateConfig, Threat
from maep.evaluate.measure import DefendedModel, ImageBatch, Measurement, attack_images, measure, rounds
from maep.evaluate.protocol.run import evaluate
from maep.train.config import FinetuneConfig, LoopConfig, ValidationConfig
from maep.train.validation import validate
from maep.tune.config import MeasureConfig
from maep.tune.metrics import candidate

EPS = 8 / 255
EOT = 25
SPEC = f"import:{__name__}:Sides"
OFFSETS = (1, 5, 16)
"""Grey levels between an image and the decision boundary: EPS crosses the first by any attack, the second only if
nearly every pixel moves the right way, the third never."""
COUNT = 8


def signs() -> Tensor:
    """float [3, 16, 16]: a fixed pattern of -1 and 1."""
    return torch.arange(3 * 16 * 16).mul(7).remainder(13).lt(6).float().mul(2).sub(1).view(3, 16, 16)


class Sides(nn.Module):
    """Class 0 on one side of mid-grey along `signs`, class 1 on the other."""

    def forward(self, images: Tensor) -> Tensor:
        margin = ((images - 128 / 255) * signs()).mean(dim=(1, 2, 3)) * 255
        return torch.stack([margin, -margin], dim=1)


class Plain(nn.Module):
    """Changes nothing."""

    differentiable = True
    randomised = False

    def forward(self, images: Tensor) -> Tensor:
        return images


class NoisyGradient(nn.Module):
    """Changes nothing; the gradient of one pass is lost in noise that the mean of many passes averages out."""

    differentiable = randomised = True

    def forward(self, images: Tensor) -> Tensor:
        if not images.requires_grad:
            return images
        factor = 1 + 5 * torch.randn_like(images)
        return images.detach() + factor * (images - images.detach())


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ImageSet:
    """`dev` of the digits, replaced by images that are OFFSETS from the boundary, of both classes by turns."""
    offset = torch.tensor(OFFSETS).repeat(COUNT)
    labels = torch.arange(len(offset)).remainder(2)
    pixels = 128 + (offset * (1 - 2 * labels)).view(-1, 1, 1, 1) * signs().permute(1, 2, 0)
    indices = np.array(lists.named("digits-dev").indices[: len(offset)])
    lossless = np.ones(len(offset), dtype=bool)
    bytes_NHWC = pixels.to(torch.uint8).numpy()
    made = ImageSet("digits", "dev", bytes_NHWC, labels.numpy(), indices, ("left", "right"), lossless)
    for module in ("maep.data.datasets", "maep.train.validation", "maep.tune.metrics.candidate"):
        monkeypatch.setattr(f"{module}.load", lambda data, split: made)
    monkeypatch.setenv("MAEP_CACHE", str(tmp_path / "cache"))
    return made


def counts(
    purifier: nn.Module, saved: Artifact, images: ImageSet, monkeypatch: pytest.MonkeyPatch, output: Path, eot: int
) -> dict[str, tuple[int, int, int]]:
    """(clean, oblivious, adaptive) images right by PGD-20 at EPS, according to each of the three."""
    for module in ("maep.train.validation", "maep.tune.metrics.candidate"):
        monkeypatch.setattr(f"{module}.load_weights", lambda *_: purifier)
    registered(monkeypatch, registry.baselines, "toy", lambda: purifier)
    digits = DataConfig("digits")
    common = FinetuneConfig(
        digits,
        classifiers=(SPEC,),
        loop=LoopConfig(seed=0),
        validation=ValidationConfig(num_images=len(images), eps=EPS, steps=20, eot=eot, draws=3),
    )
    validated = validate(saved.folder, common)
    how = MeasureConfig(len(images), EPS, ("pgd",), adaptive="pgd", eot=eot, draws=3)
    searched = candidate.measure_trial(saved.folder, common, {"oblivious_accuracy", "adaptive_accuracy"}, how, 0).counts
    settings = EvaluateConfig(
        digits, "digits-dev", len(images), (SPEC,), ("toy",), eps=(EPS,), oblivious_eps=EPS, eot=eot, draws=3,
        num_probes=4, shard_size=10, batch_size=5,
    )  # fmt: skip
    result = evaluate(settings, {}, output)
    assert (result.rows()["change"].to_numpy() * 255).round(3).tolist() == pytest.approx(
        (result.rows()["change"].to_numpy() * 255).round().tolist()
    ), "attacked images are on the 8-bit grid"
    threats = ("clean", "oblivious", "adaptive")
    evaluated = [result.figure("toy", SPEC, threat, EPS * (threat != "clean"), "PGD-20") for threat in threats]
    return {
        "evaluate": tuple(figure.num_correct for figure in evaluated),
        "validation": tuple(round(validated[f"dev_{name}"] * len(images)) for name in ("clean", "oblivious", "robust")),
        "search": tuple(searched[f"{threat}_accuracy"][0] for threat in threats),
    }  # type: ignore[return-value]


def test_evaluation_validation_and_search_agree_on_a_deterministic_purifier(
    images: ImageSet, purifier: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = counts(Plain(), purifier, images, monkeypatch, tmp_path / "out", EOT)
    assert set(found.values()) == {(3 * COUNT, COUNT, COUNT)}


def test_evaluation_validation_and_search_agree_on_a_randomised_purifier(
    images: ImageSet, purifier: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The gradient of one pass leaves the middle images right, which no attacker with EOT does."""
    found = counts(NoisyGradient(), purifier, images, monkeypatch, tmp_path / "eot", EOT)
    assert set(found.values()) == {(3 * COUNT, COUNT, COUNT)}
    found = counts(NoisyGradient(), purifier, images, monkeypatch, tmp_path / "one", 1)
    assert set(found.values()) == {(3 * COUNT, COUNT, 2 * COUNT)}


def test_a_cascade_attacks_only_what_is_right() -> None:
    pixels = (128 + torch.tensor([1.0, 16.0]).view(-1, 1, 1, 1) * signs()) / 255
    batch = ImageBatch(pixels, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    defended = DefendedModel(Sides())
    first = measure(defended, batch, AttackConfig("fgsm", EPS, 1))
    assert first.prediction.tolist() == [1, 0]
    second = measure(defended, batch, AttackConfig("pgd", EPS, 3), previous=first)
    assert second.inherited.tolist() == [True, False]
    broken = Measurement(1 - batch.labels, *(getattr(first, name) for name in Measurement.COLUMNS[1:]), num_draws=1)
    assert measure(defended, batch, AttackConfig("pgd", EPS, 3), previous=broken).inherited.all()


@pytest.mark.parametrize(
    ("config", "rounded"),
    [
        (AttackConfig("pgd", EPS), True),
        (AttackConfig("pgd", 0.5 / 255), False),
        (AttackConfig("pgd", 0.5, norm="L2"), False),
        (AttackConfig("spatial", 0.1, norm="spatial"), True),
    ],
    ids=["Linf", "below one level", "L2", "spatial"],
)
def test_what_is_rounded_to_8_bits(config: AttackConfig, rounded: bool) -> None:
    assert rounds(config) == rounded


@pytest.mark.parametrize("eps", [8 / 255, 2 / 255, 2.6 / 255, 0.03])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd-ce", "square"])
def test_attacked_images_are_on_the_grid_within_the_budget(name: str, eps: float) -> None:
    batch = zeros_and_ones()
    attacked = attack_images(Linear(), batch, AttackConfig(name, eps, steps=3, queries=10), 0, stop_at_success=True)
    levels = (attacked - batch.images) * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    assert levels.abs().max() <= eps * 255 + 1e-3
    assert 0 <= attacked.min() <= attacked.max() <= 1


@pytest.mark.parametrize("eps", [30.9 / 255, 40 / 255])
@pytest.mark.parametrize("threat", ["adaptive", "oblivious"])
def test_success_is_one_of_the_rounded_image(eps: float, threat: Threat) -> None:
    """A linear model has its closed-form accuracy at the whole levels of the budget, stopped early or not."""
    model, batch = Linear(), zeros_and_ones()
    found = measure(DefendedModel(model), batch, AttackConfig("pgd", eps, 20), threat)
    truth = robust(model, batch.images, batch.labels, int(eps * 255) / 255)
    assert 0 < truth.sum() < len(truth)
    assert found.right(batch.labels).tolist() == truth.tolist()
