"""Low-rank adapters (LoRA, Hu et al. 2022, arXiv 2106.09685) on a purifier's transformer blocks, by the package peft.

A trained weight W is frozen and replaced by W + alpha / rank * B A, of which only A and B are trained. So a purifier is
adapted to another data set by a few per cent of its weights (arXiv 2501.16904 adapts the decoder alone). Training needs
peft; `merged` does not: it returns the weights of the plain model, as everything else expects them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from maep.errors import ConfigError
from maep.models.config import LoraConfig

_BLOCKS = {"decoder": "decoder_blocks", "encoder": "blocks"}
_LAYERS = r"(attn\.(qkv|proj)|mlp\.fc[12])"
_BASE, _ADAPTER = ".base_layer.", ".lora_"  # peft's names
_DOWN, _UP = ".lora_A.default.weight", ".lora_B.default.weight"


def attach(model: nn.Module, config: LoraConfig, trained: nn.Module) -> None:
    """Puts adapters on `model` and freezes `trained`, the part of it (or all of it) that was trained before.

    The rest of the model, such as a new stem and head, trains in full. A is drawn from torch's global generator and B
    is zero, so at first the output does not change.
    Raises ConfigError if peft is not installed or a target has no blocks.
    """
    for target in config.targets:
        if not len(getattr(model.get_submodule("mae"), _BLOCKS[target])):
            raise ConfigError(f"lora.targets: the {target} has no blocks: choose another target")
    try:
        import peft
    except ImportError:
        raise ConfigError("lora: the package peft is not installed: pip install 'maep[lora]'") from None
    frozen = {id(parameter) for parameter in trained.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in frozen]
    blocks = "|".join(_BLOCKS[target] for target in config.targets)
    adapters = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=rf"mae\.({blocks})\.\d+\.{_LAYERS}",
    )
    peft.inject_adapter_in_model(adapters, model)  # freezes all but the adapters
    for parameter in rest:
        parameter.requires_grad_(True)


def merged(weights: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The state dict of the plain model, from that of a model with adapters.

    Weights without an adapter are returned unchanged, bit for bit.
    """
    plain = {name.replace(_BASE, "."): tensor for name, tensor in weights.items() if _ADAPTER not in name}
    for name, down in weights.items():
        if name.endswith(_DOWN):
            layer = name.removesuffix(_DOWN)
            change = weights[f"{layer}{_UP}"] @ down  # [out, rank] and [rank, in]
            plain[f"{layer}.weight"] = torch.add(plain[f"{layer}.weight"], change, alpha=alpha / len(down))
    return plain


def num_trained(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
