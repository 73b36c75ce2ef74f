"""The last features of any classifier and its logits, from one forward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def logits_and_features(classifier: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, classes], and the input of the classifier's last linear or convolutional layer, [B, features]."""
    layers = [module for module in classifier.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert layers, "a classifier without a linear or convolutional layer has no features"
    seen: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].flatten(1))

    handle = layers[-1].register_forward_pre_hook(keep)
    try:
        logits: Tensor = classifier(images)
    finally:
        handle.remove()
    return logits, seen[-1]
