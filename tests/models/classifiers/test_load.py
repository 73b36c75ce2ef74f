"""Protected classifiers: accuracy, identity, batch-norm folding and architectures."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers import trained_like
from safetensors.torch import load_file
from torch import nn

from maep.data import datasets, lists
from maep.data.config import DataConfig
from maep.models.classifiers.architectures import CifarResNet, ThinVgg
from maep.models.classifiers.load import Classifier, fold_batch_norm, load_classifier, weights_sha256

NORMALISATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def num_correct(classifier: nn.Module, images: Any, batch_size: int = 250) -> int:
    correct = 0
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            pixels, labels = images.batch(range(start, min(start + batch_size, len(images))))
            correct += int((classifier(pixels).argmax(dim=1) == labels).sum())
    return correct


def assert_same_classes(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Compares images whose two highest logits differ by more than rounding."""
    best = wanted.topk(2, dim=1).values
    sure = best[:, 0] - best[:, 1] > 1e-3 * wanted.abs().max()
    assert sure.float().mean() > 0.5
    assert torch.equal(found.argmax(dim=1)[sure], wanted.argmax(dim=1)[sure])


def shared(root: Path, name: str, image_list: str) -> Any:
    named = lists.named(image_list)
    return lists.pick(datasets.load(DataConfig(name, str(root)), named.split), named)  # type: ignore[arg-type]


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("spec", "data", "image_list", "num", "correct"),
    [
        ("cifar10_resnet20", "cifar10", "cifar10-dev-500", 500, 455),
        ("cifar10_resnet56", "cifar10", "cifar10-test-256", 256, 239),
        ("imagenet_squeezenet1_0", "imagenet", "imagenet-slice-dev-128", 32, 16),
    ],
)
def test_accuracy_on_a_list(shared_data: Path, spec: str, data: str, image_list: str, num: int, correct: int) -> None:
    classifier = load_classifier(spec, shared_data)
    images = shared(shared_data, data, image_list)
    assert (
        abs(num_correct(classifier, images.select(range(num))) - correct) <= 2
    )  # rounding may flip an image at the boundary
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    assert not any(module.training for module in classifier.modules())
    assert len(classifier.classes) == {"cifar10": 10, "imagenet": 1000}[data]


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("spec", "data", "correct"),
    [
        ("cifar10_resnet20", "cifar10", 8243),
        ("cifar10_resnet44", "cifar10", 8374),
        ("cifar10_resnet56", "cifar10", 8402),
        ("imagenet_squeezenet1_0", "imagenet", 507),
    ],
)
def test_accuracy_on_all_shared_images(shared_data: Path, spec: str, data: str, correct: int) -> None:
    classifier = load_classifier(spec, shared_data)
    config = DataConfig(data, str(shared_data))  # type: ignore[arg-type]
    parts = [datasets.load(config, "dev"), datasets.load(config, "test")]
    assert sum(map(len, parts)) == {"cifar10": 9000, "imagenet": 800}[data]
    assert abs(sum(num_correct(classifier, part) for part in parts) - correct) <= 0.003 * sum(map(len, parts))


@pytest.mark.parametrize("family", ["resnet", "vgg"])
def test_folding_changes_no_prediction(family: str) -> None:
    plain = Classifier(trained_like(20, family, 8), "plain")
    images = torch.rand(64, 3, 32, 32)
    with torch.no_grad():
        wanted = plain(images)
        folded = fold_batch_norm(plain)
        found = folded(images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-4
    assert_same_classes(found, wanted)


@pytest.mark.shared_data
def test_folding_keeps_the_identity_of_shared_weights(shared_data: Path) -> None:
    folded = load_classifier("cifar10_resnet20", shared_data)
    model = CifarResNet(20).eval()
    model.load_state_dict(load_file(shared_data / "weights" / "cifar10_resnet20.safetensors"))
    plain = Classifier(model, "plain", *NORMALISATION)
    images, _ = shared(shared_data, "cifar10", "cifar10-dev-500").batch(range(128))
    with torch.no_grad():
        wanted, found = plain(images), folded(images)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-4
    assert_same_classes(found, wanted)
    assert folded.sha256 == plain.sha256  # of the original weights, not the folded ones
    assert folded.sha256 != Classifier(folded.model, "folded", *NORMALISATION).sha256
    assert folded.sha256 == load_classifier("cifar10_resnet20", shared_data).sha256


def test_weights_sha256_covers_names_and_values() -> None:
    model = nn.Linear(2, 1)
    model.load_state_dict({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])})
    digest = hashlib.sha256(b"weight" + b"\0\0\x80?\0\0\0@" + b"bias" + b"\0\0@@").hexdigest()
    assert weights_sha256(model) == digest
    with torch.no_grad():
        model.bias.add_(1e-6)
    assert weights_sha256(model) != digest
    assert len(weights_sha256(nn.Linear(2, 1).bfloat16())) == 64


def test_identity_covers_everything_that_decides_the_logits() -> None:
    def sha256(model: nn.Module, *rest: Any, **more: Any) -> str:
        return Classifier(model, "any name", *rest, **more).sha256

    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU())
    first = sha256(model)
    assert first == sha256(model) == Classifier(model, "another name", classes=("a", "b", "c")).sha256
    others = [
        sha256(model, (0.1, 0.0, 0.0)),
        sha256(model, (0.0, 0.0, 0.0), (1.0, 1.0, 0.9)),
        sha256(nn.Sequential(model[0], model[1], nn.GELU())),  # equal weights under equal names
        sha256(model, code="the text of a forward"),
    ]
    with torch.no_grad():
        model[1].bias[0] += 1e-6
    others.append(sha256(model))
    assert len({first, *others}) == 6


def test_identity_ignores_object_addresses() -> None:
    """As printed by a model, they differ from process to process."""

    class Printed(nn.Module):
        def extra_repr(self) -> str:
            return f"function={object()!r}, size=3"

    first, second = Printed(), Printed()
    assert Classifier(first, "c").sha256 == Classifier(second, "c").sha256


def test_gradients_reach_the_images_through_a_frozen_classifier() -> None:
    classifier = fold_batch_norm(Classifier(trained_like(8), "c").eval()).requires_grad_(False)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    classifier(images).logsumexp(dim=1).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_classifier_normalises_its_images() -> None:
    probe = Classifier(nn.Identity(), "probe", (0.5, 0.4, 0.3), (0.1, 0.2, 0.4))
    images = torch.rand(1, 3, 2, 2)
    wanted = torch.stack([(images[0, 0] - 0.5) / 0.1, (images[0, 1] - 0.4) / 0.2, (images[0, 2] - 0.3) / 0.4])[None]
    torch.testing.assert_close(probe(images), wanted)
    assert not probe.state_dict()


@pytest.mark.parametrize("depth", [0, 2, 10, 21])
def test_impossible_depths_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="6n \\+ 2"):
        CifarResNet(depth)
    with pytest.raises(ValueError, match="3n \\+ 2"):
        ThinVgg(depth)


def test_depth_counts_the_layers_with_weights() -> None:
    for model in (CifarResNet(20, width=4), ThinVgg(20, width=4)):
        layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        assert len(layers) == 20
        assert model(torch.rand(2, 3, 16, 16)).shape == (2, 10)
