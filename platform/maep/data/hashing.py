"""A counter-based random number: the finaliser of SplitMix64 over numbers, the same in NumPy and on any device.

Source: G. Steele, D. Lea, C. Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014, with the constants
of Stafford's variant 13. It stands for a generator wherever a draw must depend on (seed, image) alone, not on what
was drawn before.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

GAMMA = 0x9E3779B97F4A7C15
MULTIPLY_1 = 0xBF58476D1CE4E5B9
MULTIPLY_2 = 0x94D049BB133111EB


def mix(values: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """uint64 [N]: one well-mixed number for each of `values` (int64 [N]) and `seed`."""
    z = values.astype(np.uint64) * np.uint64(GAMMA) + np.uint64(mix_int(seed))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MULTIPLY_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MULTIPLY_2)
    return z ^ (z >> np.uint64(31))


def mix_int(*values: int) -> int:
    """A number in 0..2**64-1 from some integers; their order counts."""
    z = 0
    for value in values:
        z = (z + value + GAMMA) % 2**64
        z = (z ^ (z >> 30)) * MULTIPLY_1 % 2**64
        z = (z ^ (z >> 27)) * MULTIPLY_2 % 2**64
        z ^= z >> 31
    return z


def mix_tensor(values: torch.Tensor, seed: int) -> torch.Tensor:
    """`mix` on any device: int64 [N] -> int64 [N], the 64 bits of the same numbers read as signed."""
    z = values * _signed(GAMMA) + _signed(mix_int(seed))
    z = (z ^ _shift(z, 30)) * _signed(MULTIPLY_1)
    z = (z ^ _shift(z, 27)) * _signed(MULTIPLY_2)
    return z ^ _shift(z, 31)


def bits(values: torch.Tensor, start: int, num: int) -> torch.Tensor:
    """`num` (< 64) bits of int64 `values` from bit `start` up, as numbers in 0..2**num-1."""
    return (values >> start) & ((1 << num) - 1)


def _shift(z: torch.Tensor, num: int) -> torch.Tensor:
    # Tensors know no unsigned shift: the sign that comes in from the left is cut off.
    return bits(z, num, 64 - num)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
