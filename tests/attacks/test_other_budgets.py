"""Attacks whose budget is no norm (spatial, patch), and noise, which every attack must beat."""

from __future__ import annotations

import pytest
import torch
from query_toys import Counter, gap, inner_images, keys, linear
from torch import Tensor, nn
from torchvision.transforms import functional as reference

from maep.attacks.config import AttackConfig
from maep.attacks.losses import margin
from maep.attacks.methods import spatial
from maep.attacks.norms import lengths
from maep.attacks.query_engine import squares
from maep.attacks.run import attack


def _each(value: float, num: int = 2) -> Tensor:
    return torch.full((num,), value)


@pytest.mark.parametrize("degrees", [-150.0, -30.0, 12.5, 90.0])
def test_rotation_matches_torchvision(degrees: float) -> None:
    images = torch.rand(2, 3, 12, 18)
    found = spatial.moved(images, _each(degrees), _each(0), _each(0))
    wanted = reference.rotate(images, degrees, interpolation=reference.InterpolationMode.BILINEAR)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)


def test_shift_by_whole_pixels_is_exact_and_fills_with_black() -> None:
    images = torch.rand(2, 3, 8, 10)
    found = spatial.moved(images, _each(0), _each(2 / 8), _each(-3 / 10))
    wanted = torch.zeros_like(images)
    wanted[:, :, 2:, :-3] = images[:, :, :-2, 3:]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert torch.equal(spatial.moved(images, _each(0), _each(0), _each(0)), images)


class Sides(nn.Module):
    """Decides by which half of the image, left or right, is brighter."""

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[-1] // 2
        return torch.stack([images[..., :half].sum(dim=(1, 2, 3)), images[..., half:].sum(dim=(1, 2, 3))], dim=1)


def test_spatial_moves_an_object_as_far_as_it_may() -> None:
    images = torch.zeros(1, 3, 20, 20)
    images[..., 9:11, 7:9] = 1  # two pixels from the middle line
    labels = torch.tensor([0])
    for eps, falls in ((0.04, False), (0.15, True)):
        for stop in (False, True):
            counter = Counter(Sides())
            attacked = attack(counter, images, labels, AttackConfig("spatial", eps, norm="spatial"), keys(1), stop)
            assert bool(Sides()(attacked).argmax(dim=1) != labels) == falls
            assert sum(counter.batches) == 775 or (stop and falls)
            assert torch.equal(counter.seen[0], images)


def test_patch_is_one_square_at_the_largest_gradient() -> None:
    model, images = linear(side=8), inner_images(8, side=8)
    with torch.no_grad():
        model[1].weight.view(2, 3, 8, 8)[..., 4:7, 1:4] *= 5
    labels, _, along = gap(model, images)
    recipe = AttackConfig("patch", 3 / 8, 10, norm="patch")
    attacked = attack(model, images, labels, recipe, keys(8))
    changed = (attacked != images).any(dim=1)
    assert changed[:, 4:7, 1:4].all()
    changed[:, 4:7, 1:4] = False
    assert not changed.any()
    wanted = (along.view_as(images) < 0).to(images.dtype)  # black or white, whichever is worse
    assert torch.equal(attacked[..., 4:7, 1:4], wanted[..., 4:7, 1:4])


def test_the_patch_covers_at_least_a_pixel_and_at_most_the_image() -> None:
    model, images = linear(side=8), inner_images(4, side=8)
    labels = gap(model, images)[0]
    for eps, side in ((1e-6, 1), (0.25, 2), (1.0, 8)):
        attacked = attack(model, images, labels, AttackConfig("patch", eps, 10, norm="patch"), keys(4))
        assert ((attacked != images).any(dim=1).sum(dim=(1, 2)) == side**2).all()


def test_squares_are_placed_exactly() -> None:
    inside = squares(torch.Size((5, 6)), torch.tensor([1, 0]), torch.tensor([2, 5]), torch.tensor([3, 1]))
    assert inside.shape == (2, 1, 5, 6)
    assert inside[0, 0, 1:4, 2:5].all()
    assert inside.sum(dim=(1, 2, 3)).tolist() == [9, 1]
    assert inside[1, 0, 0, 5]


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.5)])
def test_noise_is_on_the_surface_and_the_worst_draw_is_kept(norm: str, eps: float) -> None:
    model, images = linear(side=8), inner_images(16, side=8)
    labels = gap(model, images)[0]
    margins = []
    for steps in (1, 4, 16):
        attacked = attack(model, images, labels, AttackConfig("noise", eps, draws=steps, norm=norm), keys(16))
        torch.testing.assert_close(lengths(attacked - images, norm), torch.full((16,), eps))
        if norm == "Linf":
            torch.testing.assert_close((attacked - images).abs(), torch.full_like(images, eps))
        margins.append(margin(model(attacked), labels))
    assert (margins[0] <= margins[1]).all()
    assert (margins[1] <= margins[2]).all()
    assert (margins[0] < margins[2]).any()
    strong = attack(model, images, labels, AttackConfig("pgd", eps, 10), keys(16)) if norm == "Linf" else None
    if strong is not None:
        assert (margin(model(strong), labels) > margins[2] + 0.1).all()
