"""A small classifier, and the refusal of one that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from maep.errors import UserError
from maep.models.classifiers.architectures import build
from maep.models.classifiers.load import load_classifier


def trained_like(depth: int = 20, family: str = "resnet", width: int = 16) -> nn.Module:
    """Random weights with batch-norm statistics that are not the initial ones."""
    torch.manual_seed(0)
    model = build({"family": family, "depth": depth, "width": width})
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 32, 32))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return model.eval()


def refusal(spec: str, kind: type[UserError], root: Path | str = "data") -> str:
    """The one-line error with which loading `spec` fails."""
    with pytest.raises(kind) as caught:
        load_classifier(spec, root)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message
