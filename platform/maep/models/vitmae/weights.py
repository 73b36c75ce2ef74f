"""Convert weights of Hugging Face's ViTMAEForPreTraining to those of a MaskedAutoencoder, and back.

The two compute the same function, except for the pixels: ViTMAE takes and predicts normalised pixels (x - mean) / std,
maep's model plain pixels in [0, 1]. `mean` and `std` are therefore folded into the patch projection and the pixel head.
A ViTMAE trained with `norm_pix_loss` predicts each patch up to a mean and a scale that its weights do not hold: its
encoder is converted exactly, but its pixel head still predicts such normalised patches.

It reads three naming schemes: that of the published files (`vit.encoder.layer.0.attention.attention.query`,
`decoder.decoder_layers.0...`), and those of transformers 5 in memory (`vit.layers.0.attention.q_proj`) and in files
(`decoder.decoder_encoder.layer.0...`). It writes the published names.
Set `norm_eps` to ViTMAE's `layer_norm_eps`, 1e-12.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maep.errors import ArtifactError
from maep.models.config import MaeConfig
from maep.models.mae import sincos_positions

_PLAIN_MEAN, _PLAIN_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

_OUTSIDE = {  # ours: ViTMAE's
    "class_token": "vit.embeddings.cls_token",
    "patch_embed.weight": "vit.embeddings.patch_embeddings.projection.weight",
    "patch_embed.bias": "vit.embeddings.patch_embeddings.projection.bias",
    "norm.weight": "vit.layernorm.weight",
    "norm.bias": "vit.layernorm.bias",
    "decoder_embed.weight": "decoder.decoder_embed.weight",
    "decoder_embed.bias": "decoder.decoder_embed.bias",
    "mask_token": "decoder.mask_token",
    "decoder_norm.weight": "decoder.decoder_norm.weight",
    "decoder_norm.bias": "decoder.decoder_norm.bias",
    "decoder_pixels.weight": "decoder.decoder_pred.weight",
    "decoder_pixels.bias": "decoder.decoder_pred.bias",
}
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_QKV = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
_POSITIONS = {"vit.embeddings.position_embeddings": "width", "decoder.decoder_pos_embed": "decoder_width"}
_BLOCKS = {"blocks": "vit.encoder.layer", "decoder_blocks": "decoder.decoder_layers"}

_RENAMED = (  # transformers 5: as published
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def from_vitmae(
    state_dict: Mapping[str, Tensor],
    config: MaeConfig,
    mean: Sequence[float] = _PLAIN_MEAN,
    std: Sequence[float] = _PLAIN_STD,
) -> dict[str, Tensor]:
    """The state dict of `MaskedAutoencoder(config)`, from that of a ViTMAEForPreTraining, in its dtypes.

    Its images were normalised with `mean` and `std` (RGB, [0, 1]).
    Raises ArtifactError for weights that are missing, left over, or of a shape other than in `config`, and for
    positions other than ViTMAE's fixed sines and cosines.
    """
    left = {_published(name): tensor for name, tensor in state_dict.items()}

    def take(name: str, *shape: int) -> Tensor:
        if name not in left:
            raise ArtifactError(f"ViTMAE weights lack {name!r}: they must be of a ViTMAEForPreTraining of this depth")
        tensor = left.pop(name)
        if shape and tuple(tensor.shape) != shape:
            raise ArtifactError(f"ViTMAE weights {name!r} have shape {list(tensor.shape)}, not {list(shape)}")
        return tensor.detach()

    for name, key in _POSITIONS.items():
        _check_positions(name, take(name), sincos_positions(getattr(config, key), config.grid))
    weights = {ours: take(theirs) for ours, theirs in _OUTSIDE.items()}
    for prefix, depth, width in _stacks(config):
        hidden = int(width * config.mlp_ratio)
        sizes: dict[str, tuple[int, ...]] = {"norm1": (width,), "attn.proj": (width, width), "norm2": (width,)}
        sizes |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
        for i in range(depth):
            theirs = f"{_BLOCKS[prefix]}.{i}"
            for ours, part in _IN_BLOCK.items():
                weights[f"{prefix}.{i}.{ours}.weight"] = take(f"{theirs}.{part}.weight", *sizes[ours])
                weights[f"{prefix}.{i}.{ours}.bias"] = take(f"{theirs}.{part}.bias", sizes[ours][0])
            for leaf in ("weight", "bias"):
                weights[f"{prefix}.{i}.attn.qkv.{leaf}"] = torch.cat([take(f"{theirs}.{x}.{leaf}") for x in _QKV])
    if left:
        raise ArtifactError(f"ViTMAE weights hold {sorted(left)[0]!r}, which is not part of a model of this depth")
    projection = weights["patch_embed.weight"]
    weights["patch_embed.weight"] = projection.permute(0, 2, 3, 1).reshape(len(projection), -1)
    return _scaled(weights, config, mean, std)


def to_vitmae(
    state_dict: Mapping[str, Tensor],
    config: MaeConfig,
    mean: Sequence[float] = _PLAIN_MEAN,
    std: Sequence[float] = _PLAIN_STD,
) -> dict[str, Tensor]:
    """The inverse of `from_vitmae`: the state dict of a ViTMAEForPreTraining, under the published names."""
    back = [-m / s for m, s in zip(mean, std, strict=True)], [1 / s for s in std]
    weights = _scaled(state_dict, config, *back)
    projection = weights["patch_embed.weight"]
    size = config.patch_size
    weights["patch_embed.weight"] = projection.reshape(-1, size, size, 3).permute(0, 3, 1, 2).contiguous()
    result = {theirs: weights[ours] for ours, theirs in _OUTSIDE.items()}
    for name, key in _POSITIONS.items():
        table = sincos_positions(getattr(config, key), config.grid).to(projection)
        result[name] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)  # the class token has no position
    for prefix, depth, _ in _stacks(config):
        for i in range(depth):
            theirs = f"{_BLOCKS[prefix]}.{i}"
            for leaf in ("weight", "bias"):
                for ours, part in _IN_BLOCK.items():
                    result[f"{theirs}.{part}.{leaf}"] = weights[f"{prefix}.{i}.{ours}.{leaf}"]
                thirds = weights[f"{prefix}.{i}.attn.qkv.{leaf}"].chunk(3)
                result |= {f"{theirs}.{x}.{leaf}": third.clone() for x, third in zip(_QKV, thirds, strict=True)}
    return result


def _published(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _stacks(config: MaeConfig) -> tuple[tuple[str, int, int], ...]:
    return ("blocks", config.depth, config.width), ("decoder_blocks", config.decoder_depth, config.decoder_width)


def _check_positions(name: str, given: Tensor, ours: Tensor) -> None:
    """MaskedAutoencoder computes positions and does not store them, so other positions would be lost."""
    expected = [1, ours.shape[1] + 1, ours.shape[2]]
    if list(given.shape) != expected:
        raise ArtifactError(
            f"ViTMAE weights {name!r} have shape {list(given.shape)}, not {expected}: image_size, patch_size or width"
        )
    if given[:, 0].abs().max() > 0 or (given[:, 1:].float() - ours.to(given.device)).abs().max() > 1e-3:
        raise ArtifactError(f"ViTMAE weights {name!r} are not the fixed sine-cosine positions that maep computes")


def _scaled(
    weights: Mapping[str, Tensor], config: MaeConfig, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Tensor]:
    """Weights for pixels x, from those for (x - mean) / std. Values of a patch are in row, column, channel order."""
    dtype = weights["patch_embed.weight"].dtype
    means = torch.tensor(mean, dtype=torch.float64).repeat(config.patch_size**2)
    stds = torch.tensor(std, dtype=torch.float64).repeat(config.patch_size**2)
    projection = weights["patch_embed.weight"].double() / stds
    pixels, offset = weights["decoder_pixels.weight"].double(), weights["decoder_pixels.bias"].double()
    return dict(weights) | {
        "patch_embed.weight": projection.to(dtype),
        "patch_embed.bias": (weights["patch_embed.bias"].double() - projection @ means).to(dtype),
        "decoder_pixels.weight": (pixels * stds[:, None]).to(dtype),
        "decoder_pixels.bias": (offset * stds + means).to(dtype),
    }
