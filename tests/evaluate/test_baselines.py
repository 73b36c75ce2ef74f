"""Baselines are what they say, and are attacked through what gradient they have."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maep import registry
from maep.attacks.bpda import BackwardIdentity
from maep.data.image_set import to_uint8
from maep.errors import ConfigError
from maep.evaluate import baselines


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", registry.baselines.names())
def test_shape_range_and_gradient(name: str, images: Tensor) -> None:
    module = baselines.build(name)
    point = images.clone().requires_grad_(True)
    defended = module(point)
    assert defended.shape == images.shape
    assert defended.min() >= 0
    assert defended.max() <= 1
    if module.differentiable:
        assert name == "none" or defended.grad_fn is not None
    elif defended.grad_fn is not None:  # rounding has a gradient, of zero
        assert not torch.autograd.grad(defended.sum(), point)[0].any()
    assert torch.equal(module(images), module(images))
    assert not module.randomised


def test_jpeg_matches_pillow(images: Tensor) -> None:
    pixels = to_uint8(images).numpy()[1]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
    expected = np.array(Image.open(buffer))
    assert (to_uint8(baselines.build("jpeg-q75")(images)).numpy()[1] == expected).all()


def test_median_of_a_neighbourhood(images: Tensor) -> None:
    filtered = baselines.build("median")(images)
    assert filtered[0, 1, 5, 7] == images[0, 1, 4:7, 6:9].median()


def test_blur_keeps_constants_and_lowers_contrast(images: Tensor) -> None:
    blur = baselines.build("blur")
    flat = torch.full((1, 3, 16, 16), 0.3)
    assert torch.allclose(blur(flat), flat, atol=1e-6)
    assert blur(images).std() < 0.7 * images.std()


def test_bpda_passes_the_gradient_through_unchanged(images: Tensor) -> None:
    module = baselines.build("jpeg-q50")
    point = images.clone().requires_grad_(True)
    through = BackwardIdentity(module)(point)
    assert torch.equal(through, module(images))
    weights = torch.rand_like(images)
    (slope,) = torch.autograd.grad((weights * through).sum(), point)
    assert torch.equal(slope, weights)


def test_unknown_baseline_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'median'"):
        baselines.build("medien")
