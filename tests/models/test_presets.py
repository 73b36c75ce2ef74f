"""Sizes by name: what a preset stands for, what it leaves open, and what its passes cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maep import config
from maep.errors import ConfigError
from maep.models import flops
from maep.models.config import MaeConfig
from maep.models.families.purifier import PurifierConfig
from maep.models.mae import MaskedAutoencoder
from maep.models.presets import ENCODERS
from maep.train.config import PretrainConfig


def mae(preset: str, image_size: int, **values: Any) -> MaeConfig:
    return config.build(MaeConfig, {"preset": preset, "image_size": image_size, **values}, "model")


def encoder(made: MaeConfig) -> tuple[int, int, int, int]:
    return made.width, made.depth, made.num_heads, made.patch_size


def decoder(made: MaeConfig) -> tuple[int, int, int]:
    return made.decoder_width, made.decoder_depth, made.decoder_heads


@pytest.mark.parametrize("size", ENCODERS)
@pytest.mark.parametrize(
    ("image_size", "patch", "wanted"), [(32, 4, (128, 2, 4)), (64, 8, (256, 4, 8)), (224, 16, (512, 8, 16))]
)
def test_preset_sets_the_encoder_and_a_decoder_by_image_size(
    size: str, image_size: int, patch: int, wanted: tuple[int, int, int]
) -> None:
    made = mae(f"{size}/{patch}", image_size)
    assert encoder(made) == (*ENCODERS[size], patch)
    assert decoder(made) == wanted


def test_stored_configuration_is_explicit_and_builds_the_same() -> None:
    values = {"model": {"preset": "S/16", "image_size": 224, "decoder_width": 256}, "loop": {"samples": 128}}
    made = config.build(PretrainConfig, values)
    stored = config.to_dict(made)
    assert "preset" not in stored["model"]
    assert stored["model"]["width"] == 384
    assert decoder(made.model) == (256, 8, 16)
    assert config.build(PretrainConfig, stored) == made
    inside = config.build(PurifierConfig, {"mae": {"preset": "Ti/8", "image_size": 32}})
    assert encoder(inside.mae) == (192, 12, 3, 8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "S16"}, "model.preset: 'S16' is not known: did you mean 'S/16'?"),
        ({"preset": "H/14"}, "model.preset: 'H/14' is not known"),
        ({"preset": "S/0"}, "model.preset: 'S/0' is not known"),
        ({"preset": 4}, "model.preset: 4 is not known"),
        ({"preset": "S/16", "image_size": 224, "width": 128}, "model.preset: S/16 has width 384, not 128 as given"),
        ({"preset": "S/16", "image_size": 40}, "patch_size: 16 does not divide image_size 40x40"),
    ],
)
def test_mistakes_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(MaeConfig, values, "model")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


SIZES = [
    (mae("Ti/4", 32), 0.75),
    (mae("Ti/8", 64, mlp_ratio=3.0), 0.5),
    (MaeConfig(image_size=(24, 40), patch_size=8, decoder_depth=0), 0.3),
    (mae("S/16", 224, decoder_width=256, decoder_depth=1, decoder_heads=8), 0.75),
]


@pytest.mark.parametrize(("made", "mask_ratio"), SIZES)
def test_operations_match_the_counter_of_torch(made: MaeConfig, mask_ratio: float) -> None:
    """With attention as plain products, which the counter knows; recomputing in a fused backward pass is left out."""
    model, images = MaskedAutoencoder(made), torch.rand(2, 3, *made.image_size)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        loss = model.masked_loss(images, mask_ratio)
        forward = counted.get_total_flops()
        loss.backward()
    assert forward == pytest.approx(2 * flops.forward(made, mask_ratio), rel=0.01)
    assert counted.get_total_flops() == pytest.approx(2 * flops.training(made, mask_ratio), rel=0.01)


@pytest.mark.parametrize("made", [made for made, _ in SIZES])
def test_parameter_count(made: MaeConfig) -> None:
    assert flops.parameters(made) == sum(parameter.numel() for parameter in MaskedAutoencoder(made).parameters())


def test_published_sizes() -> None:
    """ViT-B/16's encoder has 86 M weights less the classifier's head; MAE's decoder adds about 26 M."""
    assert flops.parameters(mae("B/16", 224)) == pytest.approx(111.6e6, rel=0.01)
