"""MaskedAutoencoder matches transformers' ViTMAEForPreTraining for equal weights and noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining

from maep.artifact import Artifact
from maep.config import to_dict
from maep.errors import ArtifactError
from maep.models.build import build_model, load_weights
from maep.models.classifiers.load import IMAGENET_MEAN, IMAGENET_STD
from maep.models.config import MaeConfig
from maep.models.mae import MaskedAutoencoder
from maep.models.vitmae.folder import export_vitmae, import_vitmae
from maep.models.vitmae.weights import _published, from_vitmae, to_vitmae

SIZES = [(32, 2), (32, 4), (32, 8), (32, 16), (224, 16), (224, 32)]


def configs(size: int, patch: int, mask_ratio: float = 0.75) -> tuple[ViTMAEConfig, MaeConfig]:
    theirs = ViTMAEConfig(
        image_size=size,
        patch_size=patch,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        mask_ratio=mask_ratio,
        norm_pix_loss=False,
    )
    ours = MaeConfig(
        image_size=(size, size),
        patch_size=patch,
        width=24,
        depth=2,
        num_heads=3,
        decoder_width=16,
        decoder_depth=2,
        decoder_heads=2,
        mlp_ratio=2.0,
        norm_eps=theirs.layer_norm_eps,
    )
    return theirs, ours


def vitmae(config: ViTMAEConfig, dtype: torch.dtype = torch.float32) -> ViTMAEForPreTraining:
    """Random weights of a size that makes attention and biases matter, and the positions of its own code.

    The wider, the smaller: else attention in twelve layers makes of a rounding error a difference of a hundredth.

    A model of transformers 5 that is not loaded from a file has zeros for positions: its initialisation passes them
    over in the encoder and overwrites them in the decoder.
    """
    torch.manual_seed(7)
    model = ViTMAEForPreTraining(config).eval().requires_grad_(False)
    for tensor in [*model.modules(), *model.parameters()]:
        if hasattr(tensor, "_is_hf_initialized"):
            del tensor._is_hf_initialized
    model.vit.embeddings.initialize_weights()
    model.decoder.initialize_weights(model.vit.embeddings.patch_embeddings.num_patches)
    assert model.vit.embeddings.position_embeddings.abs().max() == 1
    assert model.decoder.decoder_pos_embed.abs().max() == 1
    for name, parameter in model.named_parameters():
        if "pos" not in name:
            parameter.add_(torch.randn_like(parameter) * 0.2 * (24 / config.hidden_size) ** 0.5)
    return model.to(dtype)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-8)])
@pytest.mark.parametrize("mask_ratio", [0.75, 0.5])
@pytest.mark.parametrize(("size", "patch"), SIZES)
def test_loss_and_reconstruction(
    size: int, patch: int, mask_ratio: float, dtype: torch.dtype, tolerance: float
) -> None:
    their_config, our_config = configs(size, patch, mask_ratio)
    theirs = vitmae(their_config, dtype)
    ours = MaskedAutoencoder(our_config).to(dtype)
    ours.load_state_dict(from_vitmae(theirs.state_dict(), our_config))
    images = torch.rand(2, 3, size, size, dtype=dtype)
    noise = torch.rand(2, (size // patch) ** 2, dtype=dtype)
    wanted = theirs(images, noise=noise)
    with torch.no_grad():
        found = ours(images, mask_ratio, noise)
    assert torch.equal(found.mask, wanted.mask.to(dtype))
    assert relative(found.patches, wanted.logits) <= tolerance
    assert relative(found.loss, wanted.loss) <= tolerance


def test_mean_and_std_are_folded_into_the_weights() -> None:
    their_config, our_config = configs(32, 8)
    theirs = vitmae(their_config, torch.float64)
    ours = MaskedAutoencoder(our_config).double()
    ours.load_state_dict(from_vitmae(theirs.state_dict(), our_config, IMAGENET_MEAN, IMAGENET_STD))
    images, noise = torch.rand(2, 3, 32, 32, dtype=torch.float64), torch.rand(2, 16)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    wanted = theirs.unpatchify(theirs((images - mean) / std, noise=noise).logits) * std + mean
    with torch.no_grad():
        found = ours.unpatchify(ours(images, 0.75, noise).patches, our_config.grid)
    assert relative(found, wanted) <= 1e-8


@pytest.mark.parametrize("normalised", [False, True])
def test_conversion_round_trip(normalised: bool) -> None:
    their_config, config = configs(32, 4)
    settings = (IMAGENET_MEAN, IMAGENET_STD) if normalised else ()
    weights = MaskedAutoencoder(config).state_dict()
    there = to_vitmae(weights, config, *settings)
    back = from_vitmae(there, config, *settings)
    assert back.keys() == weights.keys()
    for name, tensor in weights.items():
        assert back[name].dtype == tensor.dtype
        torch.testing.assert_close(back[name], tensor, rtol=1e-6, atol=1e-7 if normalised else 0)
    theirs = vitmae(their_config)
    assert sum(tensor.numel() for tensor in there.values()) == sum(p.numel() for p in theirs.state_dict().values())


def test_transformers_and_maep_read_each_other(tmp_path: Path) -> None:
    """transformers reads what maep writes, and vice versa, whichever layer names its version uses."""
    their_config, config = configs(32, 8)
    ours = MaskedAutoencoder(config)
    their_config.save_pretrained(tmp_path)
    save_file(to_vitmae(ours.state_dict(), config), tmp_path / "model.safetensors", {"format": "pt"})
    theirs, report = ViTMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    images, noise = torch.rand(1, 3, 32, 32), torch.rand(1, 16)
    with torch.no_grad():
        assert relative(ours(images, 0.75, noise).patches, theirs(images, noise=noise).logits) <= 1e-5
    theirs.save_pretrained(tmp_path / "again")
    again = from_vitmae(load_file(tmp_path / "again" / "model.safetensors"), config)
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.state_dict().items())


def test_foreign_weights_are_refused_in_one_line() -> None:
    their_config, config = configs(32, 8)
    weights = vitmae(their_config).state_dict()
    lacking = {name: tensor for name, tensor in weights.items() if name != "decoder.decoder_pred.bias"}
    more = weights | {"vit.pooler.weight": torch.zeros(1)}
    moved = weights | {"vit.embeddings.position_embeddings": torch.rand(1, 17, 24)}
    other_patch = configs(32, 4)[1]
    deeper = MaeConfig(**{**vars(config), "depth": 3})
    wider = MaeConfig(**{**vars(config), "mlp_ratio": 4.0})
    for given, wanted, message in [
        (lacking, config, "lack 'decoder.decoder_pred.bias'"),
        (more, config, "vit.pooler.weight"),
        (moved, config, "sine-cosine"),
        (weights, other_patch, "shape"),
        (weights, deeper, "layer.2"),
        (weights, wider, "shape"),
    ]:
        with pytest.raises(ArtifactError, match=message) as caught:
            from_vitmae(given, wanted)
        assert "\n" not in str(caught.value)


def published(folder: Path, size: int = 32, patch: int = 8, **changes: Any) -> ViTMAEForPreTraining:
    """A folder in the layout of `facebook/vit-mae-base`: published layer names, and the normalisation of its images."""
    config = ViTMAEConfig(**{**configs(size, patch)[0].to_dict(), **changes})
    model = vitmae(config)
    folder.mkdir(parents=True)
    weights = {_published(name): tensor.contiguous() for name, tensor in model.state_dict().items()}
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    images = {"do_normalize": True, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return model


def check_import(folder: Path, theirs: ViTMAEForPreTraining, out: Path) -> Artifact:
    """Imports, and compares the artifact's pixels with those of transformers on the normalised images."""
    saved = import_vitmae(folder, out)
    ours = load_weights(build_model(saved.config["model"]), saved)
    assert isinstance(ours, MaskedAutoencoder)
    side = ours.config.image_size[0]
    images, noise = torch.rand(2, 3, side, side), torch.rand(2, ours.positions.shape[1])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        wanted = theirs.unpatchify(theirs((images - mean) / std, noise=noise).logits) * std + mean
        found = ours.unpatchify(ours(images, 0.75, noise).patches, ours.config.grid)
    assert relative(found, wanted) <= 1e-5
    return saved


def test_import_of_a_published_folder(tmp_path: Path) -> None:
    theirs = published(tmp_path / "theirs")
    saved = check_import(tmp_path / "theirs", theirs, tmp_path / "ours")
    assert saved.kind == "mae"
    assert saved.config["model"] == to_dict(configs(32, 8)[1])
    assert saved.config["train"]["mask_ratio"] == 0.75
    assert saved.config["source"]["image_mean"] == list(IMAGENET_MEAN)
    again = import_vitmae(tmp_path / "theirs", tmp_path / "again")
    assert again.sha256 == saved.sha256


def test_export_is_read_by_transformers(tmp_path: Path) -> None:
    published(tmp_path / "theirs")
    saved = import_vitmae(tmp_path / "theirs", tmp_path / "ours")
    ours = load_weights(build_model(saved.config["model"]), saved)
    folder = export_vitmae(saved, tmp_path / "exported")
    theirs, report = ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    images, noise = torch.rand(2, 3, 32, 32), torch.rand(2, 16)
    processed = ViTImageProcessor.from_pretrained(folder)(images, do_rescale=False, return_tensors="pt")
    assert torch.equal(processed["pixel_values"], images)  # plain pixels, not normalised
    with torch.no_grad():
        assert relative(ours(images, 0.75, noise).patches, theirs(images, noise=noise).logits) <= 1e-5
    back = import_vitmae(folder, tmp_path / "back")
    assert back.config["model"] == saved.config["model"]
    assert all(torch.equal(tensor, saved.weights()[name]) for name, tensor in back.weights().items())


@pytest.mark.slow
def test_the_base_size_as_published(tmp_path: Path) -> None:
    """Random weights in the layout of `facebook/vit-mae-base`, whose configuration is all defaults."""
    sizes = ("hidden", "intermediate", "decoder_hidden", "decoder_intermediate")
    changes = {f"{name}_size": getattr(ViTMAEConfig(), f"{name}_size") for name in sizes}
    for name in ("num_hidden_layers", "num_attention_heads", "initializer_range"):
        changes |= {name: getattr(ViTMAEConfig(), name)}
    for name in ("decoder_num_hidden_layers", "decoder_num_attention_heads"):
        changes |= {name: getattr(ViTMAEConfig(), name)}
    theirs = published(tmp_path / "theirs", 224, 16, **changes)
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "vit_mae"}')
    saved = check_import(tmp_path / "theirs", theirs, tmp_path / "ours")
    assert sum(tensor.numel() for tensor in saved.weights().values()) == 111_655_680


def test_missing_normalisation_defaults_to_imagenet_with_a_warning(tmp_path: Path) -> None:
    theirs = published(tmp_path / "theirs")
    (tmp_path / "theirs" / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match=r"preprocessor_config\.json"):
        check_import(tmp_path / "theirs", theirs, tmp_path / "ours")


def test_unsupported_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    published(tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    published(tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"\x10" * 40)
    published(tmp_path / "relu", hidden_act="relu")
    published(tmp_path / "uneven", decoder_intermediate_size=64)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    for name, message in {
        "pickled": r"pytorch_model\.bin",
        "torn": r"model\.safetensors",
        "relu": "hidden_act is 'relu'",
        "uneven": "decoder_intermediate_size is 64",
        "empty": r"config\.json .*vit_mae",
        "bert": r"config\.json .*vit_mae",
    }.items():
        with pytest.raises(ArtifactError, match=message) as caught:
            import_vitmae(tmp_path / name, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    published(tmp_path / "whole")
    with pytest.raises(ArtifactError, match="bert"):
        import_vitmae(tmp_path / "whole", tmp_path / "bert")
    saved = import_vitmae(tmp_path / "whole", tmp_path / "out")
    with pytest.raises(ArtifactError, match="bert"):
        export_vitmae(saved, tmp_path / "bert")
