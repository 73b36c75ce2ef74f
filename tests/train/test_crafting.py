from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maep.train import crafting

EPS = torch.tensor([0.0, 0.05, 0.1]).view(-1, 1, 1, 1)
KEYS = torch.arange(3)
DIRECTION = torch.where(torch.arange(12).view(1, 3, 2, 2) % 2 == 0, 1.0, -1.0)


def images() -> Tensor:
    return torch.full((3, 3, 2, 2), 0.5)


def rising(points: Tensor) -> Tensor:
    """A loss whose gradient has the signs of DIRECTION everywhere."""
    return (points * DIRECTION).sum()


@pytest.mark.parametrize("steps", [1, 3])
def test_pgd_reaches_the_corner_of_each_images_own_budget(steps: int) -> None:
    attacked = crafting.pgd(rising, images(), EPS, KEYS, steps)
    moved = (attacked - images()) * DIRECTION
    assert (moved <= EPS + 1e-6).all()
    assert (moved >= (0.25 if steps == 1 else 1.0) * EPS - 1e-6).all()  # one step of 1.25 eps from -eps at worst


def test_n_fgsm_takes_one_step_of_the_budget_from_noise_of_twice_it() -> None:
    attacked = crafting.n_fgsm(rising, images(), EPS, KEYS)
    noise = attacked - images() - EPS * DIRECTION
    assert (noise.abs() <= 2 * EPS + 1e-6).all()
    assert noise[1:].abs().amax(dim=(1, 2, 3)).gt(EPS[1:].flatten()).all()
    assert torch.equal(attacked[0], images()[0])


def test_keys_decide_the_noise() -> None:
    first, again, other = (crafting.n_fgsm(rising, images(), EPS, keys) for keys in (KEYS, KEYS, KEYS + 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_range_is_kept() -> None:
    white = torch.ones(3, 3, 2, 2)
    for attacked in (crafting.n_fgsm(rising, white, EPS, KEYS), crafting.pgd(rising, white, EPS, KEYS, 2)):
        assert 0 <= attacked.min() <= attacked.max() <= 1


def test_nan_gradient_is_refused() -> None:
    with pytest.raises(FloatingPointError):
        crafting.pgd(lambda points: (points * float("nan")).sum(), images(), EPS, KEYS, 1)
