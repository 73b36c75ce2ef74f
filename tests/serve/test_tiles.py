"""Sizes the purifier was not trained on."""

from __future__ import annotations

import itertools

import pytest
import torch

from maep_serve import tiles


@pytest.mark.parametrize(("height", "width"), [(16, 16), (1, 1), (2, 5), (17, 3), (33, 64)])
def test_padding_reflects_and_crops_back(height, width):
    image = torch.rand(1, 3, height, width)
    padded = tiles.pad(image, 4)
    assert padded.shape[2] % 4 == padded.shape[3] % 4 == 0
    assert padded.shape[2] - height < 4
    assert padded.shape[3] - width < 4
    assert torch.equal(padded[..., :height, :width], image)


def test_padding_is_a_mirror():
    row = torch.arange(1.0, 7.0).expand(1, 1, 4, 6)
    assert tiles.pad(row, 4)[0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 5, 4]


def test_what_fits_is_one_tile_untouched():
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


def test_the_side_is_a_multiple_of_the_stride():
    assert tiles.tile_side((32, 32), 4, None) == 256
    assert tiles.tile_side((32, 32), 4, 30) == 32
    assert tiles.tile_side((32, 32), 16, 1) == 16
