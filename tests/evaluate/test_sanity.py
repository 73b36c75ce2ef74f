"""The sanity battery: what is masked or wrong is flagged, what is honest is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from evaluate_toys import Rounding, linear, probabilities
from torch import Tensor, nn

from maep.artifact import Artifact
from maep.data.datasets import DataConfig, load
from maep.errors import DataError
from maep.evaluate import baselines, sanity
from maep.evaluate.results import Result
from maep.models.build import load_purifier_artifact
from maep.models.classifiers import Classifier
from maep.models.purifier import defend

Probes = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def probes() -> Probes:
    digits = load(DataConfig("digits"), "dev")
    images, labels = digits.batch(range(24))
    return images, labels, torch.from_numpy(digits.indices[:24])


def failed(checks: list[sanity.Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def test_honest_purifier_is_not_flagged(classifier: Classifier, purifier: Artifact, probes: Probes) -> None:
    model = defend(classifier, load_purifier_artifact(purifier))
    checks = sanity.battery(model, *probes, "adaptive", 8 / 255)
    assert not failed(checks)
    assert {check.name for check in checks} == {
        "eval mode",
        "logits",
        "eps 0 is clean",
        "gradients",
        "budget and range",
        "noise is weaker than PGD",
        "a large eps breaks all",
    }


def test_masked_gradients_are_flagged(classifier: Classifier, probes: Probes) -> None:
    checks = sanity.battery(defend(classifier, Rounding()), *probes, "adaptive", 8 / 255)
    assert {"gradients", "a large eps breaks all"} <= failed(checks)


def test_saturated_logits_are_flagged(probes: Probes) -> None:
    class Saturated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = linear()

        def forward(self, images: Tensor) -> Tensor:
            return 1e4 * self.model(images)

    images, labels, indices = (part[probes[1] < 2] for part in probes)
    assert "gradients" in failed(sanity.battery(Saturated().eval(), images, labels, indices, "adaptive", 8 / 255))
    assert not failed(sanity.battery(linear().eval(), images, labels, indices, "adaptive", 8 / 255))


def test_detached_defence_belongs_under_bpda(classifier: Classifier, probes: Probes) -> None:
    checks = sanity.battery(defend(classifier, baselines.build("jpeg-q50")), *probes, "adaptive", 8 / 255)
    assert "bpda" in next(check.detail for check in checks if check.name == "gradients")


@pytest.mark.parametrize(
    ("make", "name"), [(probabilities, "logits"), (lambda: linear().train(), "eval mode")], ids=["softmax", "training"]
)
def test_wrong_models_are_flagged(make: Callable[[], nn.Module], name: str, probes: Probes) -> None:
    model = make()
    model = model if name == "eval mode" else model.eval()
    assert name in failed(sanity.battery(model, *probes, "bpda", 8 / 255))


def test_images_out_of_range_are_refused(classifier: Classifier, probes: Probes) -> None:
    images, labels, indices = probes
    with pytest.raises(DataError, match=r"values of 0 to 255: all must be in \[0, 1\]"):
        sanity.battery(classifier, images * 255, labels, indices, "adaptive", 8 / 255)


def test_accuracy_that_rises_with_eps_is_flagged() -> None:
    assert sanity.monotone({2 / 255: 0.50, 8 / 255: 0.505}, 1000).passed
    assert not sanity.monotone({2 / 255: 0.50, 8 / 255: 0.52}, 1000).passed
    assert sanity.monotone({2 / 255: 0.50, 8 / 255: 0.55}, 20).passed  # one image of twenty


def test_honest_evaluation_is_reliable(result: Result) -> None:
    assert result.values["reliable"]
    assert not result.unreliable
    reported = {(entry["purifier"], check["name"]) for entry in result.values["sanity"] for check in entry["checks"]}
    assert ("conv", "monotone in eps") in reported
    assert ("jpeg-q50", "gradients") not in reported
