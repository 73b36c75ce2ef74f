"""Sizes the purifier was not trained on."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import maep
from maep.data import datasets, lists
from maep.data.config import DataConfig
from maep.errors import ConfigError
from maep.models import tiles
from maep.models.classifiers.load import load_classifier
from maep.models.config import MaeConfig
from maep.models.conv import ConvPurifier
from maep.models.families.conv import ConvConfig
from maep.models.families.purifier import PurifierConfig
from maep.models.purifier import Purifier, defend
from maep.models.tiles import Tiled, for_size


@pytest.mark.parametrize(("height", "width"), [(16, 16), (1, 1), (2, 5), (17, 3), (33, 64)])
def test_padding_reflects_and_crops_back(height, width):
    image = torch.rand(1, 3, height, width)
    padded = tiles.pad(image, 4)
    assert padded.shape[2] % 4 == padded.shape[3] % 4 == 0
    assert padded.shape[2] - height < 4
    assert padded.shape[3] - width < 4
    assert torch.equal(padded[..., :height, :width], image)


def test_padding_mirrors_the_edge():
    row = torch.arange(1.0, 7.0).expand(1, 1, 4, 6)
    assert tiles.pad(row, 4)[0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 5, 4]
    pair = torch.tensor([1.0, 2.0]).expand(1, 1, 1, 2)  # mirrored again and again
    assert tiles.pad(pair, 8)[0, 0, 0].tolist() == [1, 2, 1, 2, 1, 2, 1, 2]


def test_single_tile_is_unchanged():
    image = torch.rand(1, 3, 32, 20)
    places = tiles.corners(32, 20, 32)
    assert places == [(0, 0)]
    (piece,) = tiles.cut(image, places, 32)
    assert torch.equal(tiles.blend([piece], places, image.shape), image)


@pytest.mark.parametrize(("height", "width"), [(33, 32), (100, 70), (32, 129)])
def test_tiles_cover_overlap_and_blend_back(height, width):
    image = torch.rand(1, 3, height, width)
    places = tiles.corners(height, width, 32)
    pieces = tiles.cut(image, places, 32)
    assert {tuple(piece.shape[2:]) for piece in pieces} == {(min(height, 32), min(width, 32))}
    torch.testing.assert_close(tiles.blend(pieces, places, image.shape), image)
    starts = sorted({left for _, left in places})
    assert all(after - before <= 24 for before, after in itertools.pairwise(starts))


def test_tile_side_is_a_multiple_of_the_stride():
    assert tiles.tile_side((32, 32), 4, None) == 256
    assert tiles.tile_side((32, 32), 4, 30) == 32
    assert tiles.tile_side((32, 32), 16, 1) == 16


# A purifier as a module for any size.


class Seen(nn.Module):
    """Leaves images as they are and keeps the shapes it was given."""

    image_size = (16, 16)
    stride = 4
    randomised = False

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        return images * 1.0


def changed(purifier: nn.Module) -> nn.Module:
    """`purifier` with random weights where it starts as the identity; frozen, in eval mode."""
    torch.manual_seed(0)
    for name, parameter in purifier.named_parameters():
        if "output" in name or "conv2" in name:
            nn.init.normal_(parameter, std=0.1)
    return purifier.eval().requires_grad_(False)


MAE = MaeConfig(image_size=(16, 16), width=16, depth=1, num_heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2)


def vit(**settings: object) -> nn.Module:
    return changed(Purifier(PurifierConfig(mae=MAE, stem_channels=(4, 8), stem_blocks=1, **settings)))  # type: ignore[arg-type]


def conv(image_size: tuple[int, int] = (16, 16)) -> nn.Module:
    return changed(ConvPurifier(ConvConfig(image_size=image_size, channels=(4, 8), blocks=1)))


def one_by_one(purifier: nn.Module, images: Tensor, side: int) -> Tensor:
    """As the endpoint does it: image by image, tile by tile."""
    whole = []
    for image in images.split(1):
        places = tiles.corners(image.shape[2], image.shape[3], side)
        pieces = [purifier(piece) for piece in tiles.cut(image, places, side)]
        whole.append(tiles.blend(pieces, places, image.shape))
    return torch.cat(whole)


@pytest.mark.parametrize("make", [vit, conv])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 40), (61, 37), (17, 64)])
def test_batch_of_tiles_matches_tile_by_tile(make, height, width):
    purifier = make()
    images = torch.rand(3, 3, height, width)
    tiled = Tiled(purifier, 16, max_tiles=5)
    torch.testing.assert_close(tiled(images), one_by_one(purifier, images, 16), rtol=0, atol=2e-6)
    assert not torch.equal(tiled(images), images)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (5, 16), (15, 90), (224, 224), (1, 1)])
def test_purifier_gets_tiles_of_its_size_in_bounded_chunks(height, width):
    seen = Seen()
    images = torch.rand(2, 3, height, width)
    images[0] = 1.0  # whose blend may not come out above 1
    purified = Tiled(seen, 16, max_tiles=7)(images)
    torch.testing.assert_close(purified, images, rtol=0, atol=1e-6)
    assert float(purified.max()) <= 1
    assert {shape[1:] for shape in seen.shapes} == {(3, 16, 16)}
    assert max(shape[0] for shape in seen.shapes) <= 7
    assert sum(shape[0] for shape in seen.shapes) == 2 * len(tiles.corners(max(height, 16), max(width, 16), 16))


def test_tiles_need_not_be_square():
    purifier = conv((16, 8))
    tiled = for_size(purifier, (40, 40), "tiles")
    assert isinstance(tiled, Tiled)
    assert tiled.image_size == (16, 8)
    assert tiled(torch.rand(1, 3, 40, 40)).shape == (1, 3, 40, 40)


@pytest.mark.parametrize("max_tiles", [1, 4, 1000])
def test_gradient_matches_tile_by_tile(max_tiles):
    """Whether chunks are computed anew on the way back (1, 4) or kept (1000)."""
    purifier = vit()
    images = torch.rand(2, 3, 40, 28, requires_grad=True)
    weights = torch.randn(2, 3, 40, 28)
    (found,) = torch.autograd.grad((Tiled(purifier, 16, max_tiles)(images) * weights).sum(), images)
    (wanted,) = torch.autograd.grad((one_by_one(purifier, images, 16) * weights).sum(), images)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert bool((found != 0).all())


def test_autograd_memory_does_not_grow_with_the_number_of_tiles():
    def kept(max_tiles: int) -> int:
        """Numbers that autograd saves for the way back."""
        sizes: list[int] = []
        images = torch.rand(1, 3, 64, 64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            Tiled(conv(), 16, max_tiles)(images)
        return sum(sizes)

    assert 5 * kept(4) < kept(1000)


class Draws(nn.Module):
    """Multiplies each pixel by 1 or 2, drawn at every call, and keeps what it drew."""

    image_size = (16, 16)
    stride = 4
    randomised = True

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        factors = torch.randint(1, 3, images.shape).to(images)
        self.drawn.append(factors)
        return images * factors


@pytest.mark.parametrize("max_tiles", [1, 2])
def test_recomputed_chunks_reuse_their_draws(max_tiles):
    assert for_size(vit(mask_ratio=0.5), (40, 40), "tiles").randomised
    purifier = Draws()
    tiled = Tiled(purifier, 16, max_tiles)
    assert tiled.randomised
    images = torch.full((1, 3, 40, 40), 0.25, dtype=torch.float64, requires_grad=True)
    output = tiled(images)
    forwards, purifier.drawn = purifier.drawn, []
    assert {float(factors.min()) for factors in forwards} == {1.0}
    assert {float(factors.max()) for factors in forwards} == {2.0}
    torch.rand(7)  # the generator moves on before the backward pass, which computes each chunk again
    (gradient,) = torch.autograd.grad(output.sum(), images)
    assert all(any(torch.equal(factors, again) for again in purifier.drawn) for factors in forwards)
    torch.testing.assert_close((gradient * images).sum(), output.sum())  # the output is linear under the drawn factors


def test_training_size_returns_the_purifier():
    purifier = vit()
    for how in ("tiles", "interpolate"):
        assert for_size(purifier, (16, 16), how) is purifier  # type: ignore[arg-type]
    anything = nn.Identity()  # a baseline has no size of its own
    assert for_size(anything, (224, 224), "tiles") is anything


def test_interpolation_takes_multiples_of_the_stride():
    purifier = vit()
    interpolated = for_size(purifier, (24, 40), "interpolate")
    images = torch.rand(2, 3, 24, 40, requires_grad=True)
    purified = interpolated(images)
    assert purified.shape == images.shape
    assert not torch.allclose(purified, for_size(purifier, (24, 40), "tiles")(images), atol=1e-4)
    (gradient,) = torch.autograd.grad(purified.square().sum(), images)
    assert bool((gradient != 0).all())
    with pytest.raises(ConfigError, match="multiples of 4, not 25x40: use tiles"):
        for_size(purifier, (25, 40), "interpolate")


def test_tile_unlike_the_stride_is_refused():
    with pytest.raises(ConfigError, match="tiles: 18 must be a multiple of the purifier's stride, 4"):
        Tiled(vit(), 18)


def test_tiled_keeps_mode_and_frozen_weights():
    tiled = for_size(vit(), (40, 40), "tiles")
    assert not any(module.training for module in tiled.modules())
    assert not any(parameter.requires_grad for parameter in tiled.parameters())
    assert tiled.stride == 4


@pytest.mark.slow
@pytest.mark.shared_data
def test_squeezenet_behind_the_bundled_cifar_purifier(shared_data: Path):
    """A 32 pixel purifier before an ImageNet classifier: tiles as one by one, in range, a gradient for every pixel."""
    named = lists.named("imagenet-slice-dev-128")
    image_set = lists.pick(datasets.load(DataConfig("imagenet", str(shared_data)), named.split), named)
    images, labels = image_set.batch(range(2))
    purifier = maep.load_purifier("bundled:cifar10")
    for how in ("tiles", "interpolate"):
        adapted = for_size(purifier, image_set.image_shape, how)  # type: ignore[arg-type]
        with torch.no_grad():
            purified = adapted(images)
        assert purified.shape == images.shape
        assert 0 <= float(purified.min()) <= float(purified.max()) <= 1
        assert 0 < float((purified - images).abs().mean()) < 0.05
    tiled = for_size(purifier, image_set.image_shape, "tiles")
    with torch.no_grad():
        torch.testing.assert_close(tiled(images), one_by_one(purifier, images, 32), rtol=0, atol=1e-5)
    classifier = load_classifier("imagenet_squeezenet1_0", shared_data)
    images.requires_grad_(True)
    loss = nn.functional.cross_entropy(defend(classifier, tiled)(images), labels)
    (gradient,) = torch.autograd.grad(loss, images)
    assert bool(torch.isfinite(gradient).all())
    assert float((gradient != 0).float().mean()) > 0.99  # pixels of 0 and 1 may be cut off
