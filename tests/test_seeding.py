"""Random numbers are a pure function of their counters, identical in NumPy, Python integers and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from maep import seeding

GAMMA = 0x9E3779B97F4A7C15


def splitmix64(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser as its authors wrote it, on unsigned integers."""
    z = states.copy()
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def unsigned(values: torch.Tensor) -> NDArray[np.uint64]:
    return values.numpy().view(np.uint64)


def test_keys_stay_on_the_device_of_the_tensors() -> None:
    """Integers after a tensor must not move the keys back to the CPU."""
    keys = torch.zeros(3, dtype=torch.int64, device="meta")
    assert seeding.mix(1, keys, 2, 3).device.type == "meta"
    assert seeding.uniform(seeding.mix(keys, 5), 4).device.type == "meta"


def test_known_values_of_splitmix64() -> None:
    """The first outputs of the generator seeded with 1234567, as published with its reference code."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [(1234567 + i * GAMMA) % 2**64 for i in range(4)]
    keys = torch.tensor([state - 2**64 if state >= 2**63 else state for state in states])
    found = torch.stack([seeding.mix(key) for key in keys])
    assert [int(value) % 2**64 for value in found] == published


def test_wraps_around_as_unsigned_integers_do() -> None:
    parts = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF, -987654321])
    with np.errstate(over="ignore"):
        first = splitmix64(unsigned(parts) + np.uint64(GAMMA))
        second = splitmix64(first + np.uint64(5) + np.uint64(GAMMA))
    assert np.array_equal(unsigned(seeding.mix(parts)), first)
    assert np.array_equal(unsigned(seeding.mix(parts, 5)), second)


def test_uniform_takes_the_highest_bits() -> None:
    keys = torch.tensor([3, -(2**40)])
    counters = np.arange(1, 6, dtype=np.uint64)
    with np.errstate(over="ignore"):
        bits = splitmix64(unsigned(keys)[:, None] + counters * np.uint64(GAMMA)) >> np.uint64(40)
    wanted = (bits.astype(np.float64) / 2**24).astype(np.float32)
    assert np.array_equal(seeding.uniform(keys, 5).numpy(), wanted)


def test_draws_are_the_outputs_of_the_generator_and_well_mixed() -> None:
    counters = np.arange(-1000, 9000, dtype=np.int64)
    key = seeding.mix(7)
    with np.errstate(over="ignore"):
        wanted = splitmix64(unsigned(key[None]) + counters.view(np.uint64) * np.uint64(GAMMA))
    found = seeding.draws(key, torch.from_numpy(counters))
    assert np.array_equal(unsigned(found), wanted)
    assert np.array_equal(seeding.bits(found, 17, 24).numpy(), (wanted >> np.uint64(17)) % np.uint64(2**24))
    assert seeding.draws(key, torch.tensor(5)) == found[1005]
    ones = torch.stack([seeding.bits(found, k, 1) for k in range(64)]).double().mean(dim=1)
    assert (ones - 0.5).abs().max() < 0.03


def test_order_matters_and_parts_broadcast() -> None:
    assert seeding.mix(1, 2) != seeding.mix(2, 1)
    assert seeding.mix(1) != seeding.mix(1, 0)
    grid = seeding.mix(7, torch.arange(3)[:, None], torch.arange(4))
    assert grid.shape == (3, 4)
    assert grid.dtype == torch.int64
    assert grid[2, 1] == seeding.mix(7, 2, 1)
    assert grid.unique().numel() == 12


def test_an_image_draws_the_same_in_any_batch() -> None:
    keys = seeding.mix(0, 3, torch.arange(10))
    for draw in (seeding.uniform, seeding.normal):
        together = draw(keys, 7)
        assert torch.equal(together[4:6], draw(keys[4:6], 7))
        assert torch.equal(together.flip(0), draw(keys.flip(0), 7))
    assert torch.equal(seeding.uniform(keys, 7)[:, :3], seeding.uniform(keys, 3))


def test_neither_torchs_generator_nor_earlier_calls_matter() -> None:
    keys = seeding.mix(1, torch.arange(4))
    torch.manual_seed(0)
    first = seeding.uniform(keys, 5)
    state = torch.get_rng_state()
    second = seeding.uniform(keys, 5)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_uniform_is_uniform_and_independent() -> None:
    draws = seeding.uniform(seeding.mix(0, torch.arange(2000)), 100)
    assert draws.dtype == torch.float32
    assert 0 <= draws.min() < draws.max() < 1
    counts = torch.histc(draws, 50, 0, 1)
    expected = draws.numel() / 50
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert 49 - 40 < chi_squared < 49 + 50  # 49 degrees of freedom, standard deviation 9.9
    centred = draws - 0.5
    error = 12 / draws.shape[0] ** 0.5  # correlation is 12 x covariance; its error falls with the root of the number
    neighbours = 12 * (centred[:, 1:] * centred[:, :-1]).mean()
    images = 12 * (centred[1:] * centred[:-1]).mean()
    assert abs(neighbours) < 0.1 * error
    assert abs(images) < 0.1 * error
    assert abs(draws.mean(dim=0) - 0.5).max() < 5 * (1 / 12 / 2000) ** 0.5


def test_normal_has_the_moments_of_a_normal() -> None:
    draws = seeding.normal(seeding.mix(2, torch.arange(2000)), 101).double()
    assert draws.shape == (2000, 101)
    assert torch.isfinite(draws).all()
    count = draws.numel()
    for power, wanted, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(draws.pow(power).mean() - wanted) < 5 * (variance / count) ** 0.5
    inside = (draws.abs() < 1).double().mean()
    assert abs(inside - 0.682689) < 5 * (0.2166 / count) ** 0.5
    halves = draws[:, :50] * draws[:, 51:101]  # one radius makes two numbers, which are independent all the same
    assert abs(halves.mean()) < 5 / (2000 * 50) ** 0.5


@pytest.mark.parametrize("count", [1, 2, 7])
def test_odd_and_even_counts(count: int) -> None:
    keys = seeding.mix(0, torch.arange(3))
    assert seeding.uniform(keys, count).shape == seeding.normal(keys, count).shape == (3, count)
    assert seeding.uniform(keys[:0], count).shape == (0, count)
