"""Random numbers as a pure function of their place: (seed, epoch, image, ...) in, the same number out.

So what is drawn for an image depends neither on the batch it stands in nor on the number of workers, and
nothing has to be saved to resume. The mixing function is splitmix64's finaliser (Steele, Lea and Flood 2014),
on int64 tensors of any device, whose arithmetic wraps around as uint64's does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def mix(*parts: int | Tensor) -> Tensor:
    """int64 keys from integers and int64 tensors, which broadcast against each other; the order matters."""
    state = torch.zeros((), dtype=torch.int64)
    for part in parts:
        value = part if isinstance(part, Tensor) else torch.tensor(part, dtype=torch.int64)
        state = _finalise(state.to(value.device) + value + _GOLDEN)
    return state


def uniform(keys: Tensor, count: int) -> Tensor:
    """float32 [B, count] in [0, 1): `count` draws for each of the int64 `keys` [B]."""
    counters = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64)
    bits = _finalise(keys[:, None] + counters * _GOLDEN)
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24  # the 24 highest bits fill a float32's mantissa


def normal(keys: Tensor, count: int) -> Tensor:
    """float32 [B, count], standard normal, by Box and Muller (1958)."""
    half = -(-count // 2)
    draws = uniform(keys, 2 * half)
    radius = (-2 * torch.log1p(-draws[:, :half])).sqrt()
    angle = 2 * math.pi * draws[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def _finalise(state: Tensor) -> Tensor:
    state = (state ^ _shift_right(state, 30)) * _FIRST
    state = (state ^ _shift_right(state, 27)) * _SECOND
    return state ^ _shift_right(state, 31)


def _shift_right(state: Tensor, bits: int) -> Tensor:
    """A logical shift: int64's own would carry the sign down."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
