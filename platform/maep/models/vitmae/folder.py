"""Convert Hugging Face's ViTMAE folders (`config.json`, `model.safetensors`) to artifacts of kind `mae`, and back.

It imports nothing from transformers and reads no pickle. `preprocessor_config.json` holds the normalisation of the
images; it is folded into the weights (maep.models.vitmae.weights), because maep's models take plain pixels.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from maep import artifact, config, storage
from maep.artifact import Artifact
from maep.errors import ArtifactError
from maep.models.build import build_model, load_weights
from maep.models.classifiers.load import IMAGENET_MEAN, IMAGENET_STD
from maep.models.config import MaeConfig
from maep.models.mae import MaskedAutoencoder
from maep.models.vitmae.weights import from_vitmae, to_vitmae

CONFIG, WEIGHTS, IMAGES = "config.json", "model.safetensors", "preprocessor_config.json"
_PICKLE = "pytorch_model.bin"

_DEFAULTS = {  # of transformers' ViTMAEConfig; its files may omit them
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048,
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
}
_SAME = {  # ours: theirs
    "patch_size": "patch_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "decoder_width": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_heads": "decoder_num_attention_heads",
    "norm_eps": "layer_norm_eps",
}
_FIXED = {"num_channels": 3, "hidden_act": "gelu", "qkv_bias": True}
"""Settings for which MaskedAutoencoder supports one value only."""


def is_vitmae(folder: str | Path) -> bool:
    """Whether `folder` holds a ViTMAE of Hugging Face, and not an artifact."""
    root = Path(folder)
    if (root / artifact.MANIFEST).exists() or not (root / CONFIG).is_file():
        return False
    return _json(root / CONFIG).get("model_type") == "vit_mae"


def import_vitmae(folder: str | Path, out: str | Path) -> Artifact:
    """Writes the ViTMAEForPreTraining in `folder` to `out` as an artifact of kind `mae`, its weights as float32.

    Without `preprocessor_config.json` it assumes ImageNet's mean and std, as in the published models, and warns. Raises
    ArtifactError for a folder without a ViTMAE, pickled weights, unsupported settings, and an `out` that is not empty.
    """
    root = Path(folder)
    if not is_vitmae(root):
        raise ArtifactError(
            f"{root} holds no {CONFIG} of model_type vit_mae: name the folder of a ViTMAEForPreTraining"
        )
    _refuse_taken(Path(out))
    values = _DEFAULTS | _json(root / CONFIG)
    model = _model_config(values, root)
    mean, std = _normalisation(root)
    path = root / WEIGHTS
    if not path.is_file():
        reason = (
            f"only {_PICKLE}, a pickle, which can run code when it is read" if (root / _PICKLE).exists() else "none"
        )
        raise ArtifactError(
            f"{path} is needed, {root} holds {reason}: save the model with transformers' save_pretrained"
        )
    try:
        theirs = {name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()}
    except SafetensorError as error:
        raise ArtifactError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    weights = from_vitmae(theirs, model, mean, std)
    source = {"format": "vit_mae", "sha256": storage.sha256_file(path), "image_mean": mean, "image_std": std}
    train = {"mask_ratio": values["mask_ratio"], "norm_pix_loss": values["norm_pix_loss"]}
    card = "# Masked autoencoder\n\nMade by maep convert from a ViTMAEForPreTraining. Images are RGB in [0, 1].\n"
    if values["norm_pix_loss"]:
        card += "It was trained with norm_pix_loss: it predicts each patch up to a mean and a scale.\n"
    described = {"model": config.to_dict(model), "train": train, "source": source}
    return artifact.write(out, "mae", described, weights, card)


def export_vitmae(source: Artifact, folder: str | Path) -> Path:
    """Writes an artifact of kind `mae` to `folder`, for `ViTMAEForPreTraining.from_pretrained(folder)`.

    Images are plain pixels in [0, 1], and `preprocessor_config.json` says so. Raises ArtifactError for an artifact of
    another kind, images that are not square, and a folder that is not empty.
    """
    if source.kind != "mae":
        raise ArtifactError(
            f"{source.folder} holds a {source.kind}: only an autoencoder of maep pretrain can become a ViTMAE"
        )
    root = Path(folder)
    _refuse_taken(root)
    model = load_weights(build_model(source.config["model"]), source)
    assert isinstance(model, MaskedAutoencoder)
    ours = model.config
    height, width = ours.image_size
    if height != width:
        raise ArtifactError(f"{source.folder} takes images of {height}x{width}: ViTMAE takes square ones only")
    trained = source.config.get("train", {})
    values = _DEFAULTS | {theirs: getattr(ours, mine) for mine, theirs in _SAME.items()}
    values |= {"image_size": height, "mask_ratio": trained.get("mask_ratio", _DEFAULTS["mask_ratio"])}
    values["intermediate_size"] = int(ours.width * ours.mlp_ratio)
    values["decoder_intermediate_size"] = int(ours.decoder_width * ours.mlp_ratio)
    values["norm_pix_loss"] = bool(trained.get("norm_pix_loss", False))
    values |= {"model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"]}
    images = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
    }
    weights = to_vitmae(model.state_dict(), ours)
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()}, {"format": "pt"})
    storage.write_bytes(root / WEIGHTS, data)
    for name, content in ((IMAGES, images), (CONFIG, values)):
        storage.write_bytes(root / name, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    return root


def _refuse_taken(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise ArtifactError(f"{folder} is not empty: name another folder")


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} holds no JSON object: transformers did not write it")
    return values


def _model_config(values: Mapping[str, Any], root: Path) -> MaeConfig:
    for key, wanted in _FIXED.items():
        if values[key] != wanted:
            raise ArtifactError(f"{root / CONFIG}: {key} is {values[key]!r}, maep supports {wanted!r} only")
    ratio = values["intermediate_size"] / values["hidden_size"]
    if int(values["decoder_hidden_size"] * ratio) != values["decoder_intermediate_size"]:
        raise ArtifactError(
            f"{root / CONFIG}: decoder_intermediate_size is {values['decoder_intermediate_size']}; encoder and decoder"
            f" need the same ratio of intermediate_size to hidden_size, {ratio:g}"
        )
    mine = {ours: values[theirs] for ours, theirs in _SAME.items()}
    return config.build(MaeConfig, mine | {"image_size": values["image_size"], "mlp_ratio": ratio}, str(root / CONFIG))


def _normalisation(root: Path) -> tuple[list[float], list[float]]:
    """Mean and std (RGB, of pixels in [0, 1]) with which the model's images are normalised."""
    path = root / IMAGES
    if not path.is_file():
        warnings.warn(
            f"{root} holds no {IMAGES}: assuming images normalised with ImageNet's mean and std",
            stacklevel=3,
        )
        return list(IMAGENET_MEAN), list(IMAGENET_STD)
    values = _json(path)
    if not values.get("do_normalize", True):
        return [0.0] * 3, [1.0] * 3
    try:
        mean, std = ([float(value) for value in values[key]] for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError):
        mean, std = [], []
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ArtifactError(f"{path}: image_mean and image_std must be three numbers each, those of image_std above 0")
    return mean, std
