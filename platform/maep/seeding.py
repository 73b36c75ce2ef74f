"""Counter-based random numbers: a pure function of (seed, epoch, image, ...).

The numbers for an image depend neither on its batch nor on the number of workers, and resuming needs no saved state.
The mixing function is splitmix64's finaliser (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators,
2014, with Stafford's variant 13 of the constants) on int64 tensors of any device, whose arithmetic wraps like uint64's.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

GLOBAL_GENERATOR = threading.Lock()
"""Lock for code that seeds torch's global generator, and for code that draws from it in another thread."""

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB
_MASK = 2**64 - 1


def mix(*parts: int | Tensor) -> Tensor:
    """int64 keys from integers and int64 tensors, which broadcast against each other; the order matters."""
    state = torch.zeros((), dtype=torch.int64)
    for part in parts:
        if isinstance(part, Tensor):
            state = state.to(part.device)  # stay on the device of the first tensor
        state = _finalise(state + part + _GOLDEN)
    return state


def draws(keys: Tensor, counters: Tensor) -> Tensor:
    """int64, 64 random bits each: output number `counters` of the generator seeded with `keys`; they broadcast.

    For unsigned NumPy values: `.numpy().view(numpy.uint64)`.
    """
    return _finalise(keys + counters * _GOLDEN)


def bits(words: Tensor, start: int, count: int) -> Tensor:
    """`count` (< 64) bits of int64 `words` from bit `start` up, as numbers in 0..2**count - 1."""
    return (words >> start) & ((1 << count) - 1)


def uniform(keys: Tensor, count: int) -> Tensor:
    """float32 [B, count] in [0, 1): `count` draws for each of the int64 `keys` [B]."""
    words = draws(keys[:, None], torch.arange(1, count + 1, device=keys.device))
    return bits(words, 40, 24).to(torch.float32) * 2.0**-24  # the 24 highest bits fill a float32's mantissa


def draw(key: int, counter: int) -> int:
    """`draws` for one key and counter, unsigned, in plain Python, which is faster than tensors of one element."""
    state = (key + counter * _GOLDEN) & _MASK
    state = ((state ^ (state >> 30)) * _FIRST) & _MASK
    state = ((state ^ (state >> 27)) * _SECOND) & _MASK
    return state ^ (state >> 31)


def stream(key: int) -> Iterator[float]:
    """The values of `uniform` for one key, in [0, 1), one after the other without end."""
    counter = 0
    while True:
        counter += 1
        yield (draw(key, counter) >> 40) * 2.0**-24


def normal(keys: Tensor, count: int) -> Tensor:
    """float32 [B, count], standard normal, by Box and Muller (1958)."""
    half = -(-count // 2)
    places = uniform(keys, 2 * half)
    radius = (-2 * torch.log1p(-places[:, :half])).sqrt()
    angle = 2 * math.pi * places[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def _finalise(state: Tensor) -> Tensor:
    state = (state ^ _shift_right(state, 30)) * _FIRST
    state = (state ^ _shift_right(state, 27)) * _SECOND
    return state ^ _shift_right(state, 31)


def _shift_right(state: Tensor, count: int) -> Tensor:
    """A logical shift; int64's own shift is arithmetic."""
    return bits(state, count, 64 - count)
