"""Rotations and translations (Engstrom et al. 2019, arXiv 1712.02779): the worst point of a grid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maep import registry
from maep.attacks.query_engine import QueryAttack
from maep.attacks.task import AttackTask

DEGREES_PER_EPS = 300.0
"""The paper's budget for CIFAR-10 is 30 degrees and 10 % of the side (section 4)."""
NUM_ROTATIONS, NUM_SHIFTS = 31, 5
"""Grid points of the angle, and of the translation along each axis (section 3.2): 775 in all."""


@registry.attack("spatial", norms=("spatial",), label="Spatial", effort=None, differentiates=False)
def spatial(task: AttackTask) -> Tensor:
    """The transformation of highest margin among 775 rotations and translations.

    Each rotates by up to 300 x eps degrees (at most 180) about the centre, then shifts by up to eps x the side along
    each axis, in one bilinear interpolation with black outside the image, as in the paper. The first is the image
    itself. The attack draws nothing, so `keys` do not matter.
    """
    return _Grid(task).run(NUM_ROTATIONS * NUM_SHIFTS**2)


def moved(images: Tensor, degrees: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """float [B, C, H, W] rotated counterclockwise, then shifted by shares of height and width; arguments [B]."""
    height, width = images.shape[-2:]
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    # the original position of each output pixel, in units of half a side
    x_offset, y_offset = -2 * right, -2 * down
    aspect = height / width
    along_x = torch.stack([cos, -sin * aspect, cos * x_offset - sin * aspect * y_offset], dim=1)
    along_y = torch.stack([sin / aspect, cos, sin / aspect * x_offset + cos * y_offset], dim=1)
    places = F.affine_grid(torch.stack([along_x, along_y], dim=1), list(images.shape), align_corners=False)
    shown = F.grid_sample(images, places, mode="bilinear", padding_mode="zeros", align_corners=False).clamp(0, 1)
    still = (degrees == 0) & (down == 0) & (right == 0)
    return torch.where(still.view(-1, 1, 1, 1), images, shown)  # interpolation would round even the unchanged image


class _Grid(QueryAttack):
    def __init__(self, task: AttackTask) -> None:
        super().__init__(task)
        degrees, shift = min(DEGREES_PER_EPS * self.config.eps, 180.0), self.config.eps
        angles = torch.linspace(-degrees, degrees, NUM_ROTATIONS, dtype=torch.float64)
        shifts = torch.linspace(-shift, shift, NUM_SHIFTS, dtype=torch.float64)
        angles[NUM_ROTATIONS // 2] = shifts[NUM_SHIFTS // 2] = 0  # exactly
        grid = torch.cartesian_prod(angles, shifts, shifts)
        distance = (grid.abs() / torch.tensor([degrees, shift, shift], dtype=torch.float64)).sum(dim=1)
        # the image first, then the largest transformations, which succeed most often
        distance[distance == 0] = math.inf
        self.grid = grid[distance.argsort(descending=True, stable=True)].to(self.images)

    def propose(self, which: Tensor, turn: Tensor) -> Tensor:
        degrees, down, right = self.grid[turn].unbind(dim=1)
        return moved(self.images[which], degrees, down, right)
