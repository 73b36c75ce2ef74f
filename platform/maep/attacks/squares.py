"""Squares of an image, which the patch and the Square attack change."""

from __future__ import annotations

import torch
from torch import Tensor


def squares(size: torch.Size, top: Tensor, left: Tensor, side: Tensor) -> Tensor:
    """bool [B, 1, H, W], true in one square of each image: its upper row, left column and side in pixels, int64 [B]."""
    height, width = (torch.arange(length, device=top.device) for length in size)
    rows = (height >= top[:, None]) & (height < (top + side)[:, None])
    columns = (width >= left[:, None]) & (width < (left + side)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]
