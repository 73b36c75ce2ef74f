"""Logits and last features of any classifier from one forward pass."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torchvision.models import squeezenet1_0

from maep.models.classifiers.features import logits_and_features
from maep.models.classifiers.load import CifarResNet, Classifier, fold_batch_norm
from maep.models.conv import ConvPurifier
from maep.models.families.conv import ConvConfig
from maep.models.purifier import defend


def head(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Logits from the last layer's input, as each architecture computes them."""
    if isinstance(model, CifarResNet):
        return model.linear(features)
    if hasattr(model, "head"):
        return model.head(features)
    return model.classifier[1:](features.view(-1, 512, 13, 13)).flatten(1)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: CifarResNet(8), 32),
        (lambda: squeezenet1_0(weights=None), 224),
        (lambda: timm.create_model("test_vit", pretrained=False), 160),
        (lambda: timm.create_model("test_resnet", pretrained=False).eval(), 64),
    ],
    ids=["cifar", "squeezenet", "timm vit", "timm resnet"],
)
def test_features_are_the_input_of_the_head(make: object, size: int) -> None:
    torch.manual_seed(0)
    model = make().eval()  # type: ignore[operator]
    images = torch.rand(2, 3, size, size)
    logits, features = logits_and_features(model, images)
    assert torch.equal(logits, model(images))
    assert features.ndim == 2
    assert len(features) == 2
    rebuilt = model.fc(features) if hasattr(model, "fc") else head(model, features)
    torch.testing.assert_close(rebuilt, logits)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_features_behind_a_purifier_have_a_gradient() -> None:
    torch.manual_seed(0)
    classifier = fold_batch_norm(Classifier(CifarResNet(8), "c").eval())
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    defended = defend(classifier, ConvPurifier(ConvConfig(channels=(4,), blocks=1)))
    logits, features = logits_and_features(defended, images)
    torch.testing.assert_close(classifier.model.linear(features), logits)
    features.square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_hook_is_removed_when_the_model_fails() -> None:
    model = CifarResNet(8)
    with pytest.raises(RuntimeError):
        logits_and_features(model, torch.rand(2, 5, 32, 32))
    assert not model.linear._forward_pre_hooks
