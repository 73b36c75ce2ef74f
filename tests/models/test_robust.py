from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maep import artifact, config
from maep.errors import ConfigError
from maep.models.build import load_purifier_artifact
from maep.models.families.robust import RobustConfig
from maep.models.robust import RobustPurifier

MAE = {"patch_size": 8, "width": 16, "depth": 1, "num_heads": 2, "decoder_width": 8, "decoder_depth": 0}
SMALL: dict[str, Any] = {"encoder_channels": [4, 8], "decoder_width": 8, "decoder_blocks": 1}
ENCODERS: dict[str, dict[str, Any]] = {"conv": {}, "mae": {"mae": MAE | {"decoder_heads": 2}}}


def purifier(**values: Any) -> RobustPurifier:
    """One whose every weight matters."""
    torch.manual_seed(0)
    model = RobustPurifier(config.build(RobustConfig, SMALL | values))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def batch(*size: int) -> Tensor:
    return torch.rand(2, 3, *(size or (32, 32)), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_shape_and_range(encoder: str) -> None:
    model = purifier(**ENCODERS[encoder])
    for size in [(32, 32), (64, 32), (8, 24)]:
        purified = model(batch(*size))
        assert purified.shape == (2, 3, *size)
        assert 0 <= purified.min() <= purified.max() <= 1
    assert model.encoder(batch()).shape == (2, 10)


@pytest.mark.parametrize("stride", [2, 4])
def test_decoder_sees_averages_only(stride: int) -> None:
    """Two images with the same averages over squares, and the same verdict, give the same output."""
    model, images = purifier(visible_stride=stride), batch()
    flat = F.interpolate(F.avg_pool2d(images, stride), scale_factor=stride)
    assert not torch.allclose(flat, images, atol=0.1)
    verdict = torch.eye(10)[[3, 7]]
    torch.testing.assert_close(model.write(flat, verdict), model.write(images, verdict), rtol=0, atol=1e-5)


def test_what_is_written_changes_no_pixel_by_more_than_the_bound() -> None:
    model, images = purifier(bound=0.1, decoder_blocks=0), batch()
    written = torch.stack([model.write(images, torch.eye(10)[[k, k]]) for k in range(10)])
    spread = written.amax(dim=0) - written.amin(dim=0)
    assert 0 < spread.max() <= 0.2 + 1e-6


def test_output_is_what_is_written_for_the_heads_verdict() -> None:
    model, images = purifier(temperature=2.0), batch()
    verdict = (2 * model.encoder(images)).softmax(dim=1)
    assert torch.equal(model(images), model.write(images, verdict).clamp(0, 1))


def test_surrogates_give_logits_and_relaxations_purify() -> None:
    model, images = purifier(), batch()
    assert [tuple(each(images).shape) for each in model.surrogates()] == [(2, 10)]
    (softer,) = model.relaxations()
    assert softer(images).shape == images.shape
    assert not torch.equal(softer(images), model(images))


def test_gradient_of_the_softer_copy_is_the_larger_one_where_the_verdict_is_sure() -> None:
    model, images = purifier(temperature=60.0), batch().requires_grad_(True)
    with torch.no_grad():
        model.encoder.head.weight.mul_(10)  # type: ignore[union-attr, operator]
    sizes = [
        torch.autograd.grad(module(images).sum(), images)[0].abs().sum() for module in (model, *model.relaxations())
    ]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_saved_and_loaded_it_gives_the_same_output(encoder: str, tmp_path: Path) -> None:
    model = purifier(**ENCODERS[encoder])
    values = config.to_dict(model.config)
    saved = artifact.write(tmp_path / "model", "purifier", {"model": values}, model.state_dict(), "# card\n")
    torch.testing.assert_close(load_purifier_artifact(saved)(batch()), model(batch()), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"visible_stride": 5}, "visible_stride"),
        ({"image_size": 36, "encoder_channels": [4, 4, 4]}, "encoder_channels"),
        ({"num_classes": 1}, "num_classes"),
        ({"bound": 0}, "bound"),
        ({"temperature": -1}, "temperature"),
        ({"mae": MAE | {"decoder_heads": 2, "image_size": 16}}, "mae.image_size"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: dict[str, Any], key: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=key):
        config.build(RobustConfig, SMALL | values)
