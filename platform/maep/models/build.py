"""Builds models from a configuration or a verified artifact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from maep import config, registry
from maep.artifact import Artifact
from maep.errors import ArtifactError, nearest
from maep.models.config import MaeConfig
from maep.models.lora import merged
from maep.models.mae import MaskedAutoencoder


def build_model(values: Mapping[str, Any]) -> nn.Module:
    """The module that `values` describes, with initial weights: an autoencoder (`name: mae`) or a purifier.

    Raises ArtifactError for an unknown name, UserError if the package that registers it fails to load.
    """
    name = str(values.get("name", ""))
    if name == "mae":
        return MaskedAutoencoder(config.build(MaeConfig, values, "model"))
    known = registry.families.names()
    if name not in known:
        raise ArtifactError(f"model.name: {name!r} is not known: {nearest(name, ['mae', *known])}")
    settings: Any = config.build(registry.families.config_class(name), values, "model")
    model: nn.Module = registry.families.get(name)(settings)
    for attribute, usual in (
        ("image_size", getattr(settings, "image_size", None)),
        ("stride", 1),
        ("randomised", False),
    ):
        if not hasattr(model, attribute):
            setattr(model, attribute, usual)
    return model


def load_purifier_artifact(artifact: Artifact) -> nn.Module:
    """The purifier in `artifact`, in eval mode with frozen weights: [B, 3, H, W] in [0, 1] to the same.

    Its weights are in channels_last, in which convolutions on a CPU are fastest whatever the layout of their input.
    """
    if artifact.kind != "purifier":
        raise ArtifactError(f"{artifact.folder} holds a {artifact.kind}, not a purifier: run maep finetune first")
    values = artifact.config.get("model")
    if not isinstance(values, Mapping):
        raise ArtifactError(f"{artifact.folder}: its configuration has no section 'model': it was not written by maep")
    purifier = load_weights(build_model(values), artifact).eval().requires_grad_(False)
    return purifier.to(memory_format=torch.channels_last)


def load_weights(model: nn.Module, artifact: Artifact) -> nn.Module:
    """Loads the artifact's weights into `model`; LoRA adapters of a checkpoint are merged.

    Raises ArtifactError for names or shapes that do not fit `model`, and for NaN or infinite values.
    """
    weights = artifact.weights()
    lora = artifact.config.get("train", {}).get("lora")
    if lora is not None:
        weights = merged(weights, lora["alpha"])
    damaged = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if damaged:
        raise ArtifactError(f"{artifact.folder}: weights {damaged[0]!r} hold NaN or infinity: train it again")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{artifact.folder}: the weights do not fit the configuration: {reason}") from None
    return model
