"""Random numbers as a pure function of their place: (seed, epoch, image, ...) in, the same number out.

So what is drawn for an image depends neither on the batch it stands in nor on the number of workers, and
nothing has to be saved to resume. The mixing function is splitmix64's finaliser (Steele, Lea and Flood, Fast
Splittable Pseudorandom Number Generators, 2014, with Stafford's variant 13 of the constants), on int64 tensors of
any device, whose arithmetic wraps around as uint64's does.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

GLOBAL_GENERATOR = threading.Lock()
"""Held by what seeds torch's global generator for some draws, and by what draws from it in another thread meanwhile."""

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB
_MASK = 2**64 - 1


def mix(*parts: int | Tensor) -> Tensor:
    """int64 keys from integers and int64 tensors, which broadcast against each other; the order matters."""
    state = torch.zeros((), dtype=torch.int64)
    for part in parts:
        if isinstance(part, Tensor):
            state = state.to(part.device)  # what has met a tensor stays where that lies
        state = _finalise(state + part + _GOLDEN)
    return state


def draws(keys: Tensor, counters: Tensor) -> Tensor:
    """int64, 64 random bits each: output number `counters` of the generator that starts at `keys`; they broadcast.

    For NumPy, `.numpy().view(numpy.uint64)` reads them without sign.
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
    """What `draws` gives for one key and counter, without sign, in plain Python: tensors of one number take longer."""
    state = (key + counter * _GOLDEN) & _MASK
    state = ((state ^ (state >> 30)) * _FIRST) & _MASK
    state = ((state ^ (state >> 27)) * _SECOND) & _MASK
    return state ^ (state >> 31)


def stream(key: int) -> Iterator[float]:
    """In [0, 1), without end: one after the other what `uniform` draws for one key."""
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
    """A logical shift: int64's own would carry the sign down."""
    return bits(state, count, 64 - count)
