from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maep.data.stream.plan import BatchPlan, Sampling

SIZES = np.array([7, 1, 16, 3, 12, 9, 5])  # 53 images, groups smaller and larger than a batch


def plan(**values: Any) -> BatchPlan:
    return BatchPlan(SIZES, Sampling(**{"batch_size": 8, **values}))


def test_an_epoch_takes_each_image_at_most_once_and_drops_less_than_a_batch() -> None:
    whole = plan()
    assert whole.steps_per_epoch == 6
    epochs = [[image for step in range(6 * epoch, 6 * epoch + 6) for image in whole.images(step)] for epoch in range(2)]
    for taken in epochs:
        assert len(taken) == len(set(taken)) == 48
        assert all(row < SIZES[group] for group, row in taken)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_workers_partition_each_batch(size: int) -> None:
    """As equally as it divides: of 8 images, three workers take 3, 3 and 2."""
    for step in (0, 3, 5, 6, 100):
        parts = [plan(rank=rank, size=size) for rank in range(size)]
        taken = [image for part in parts for image in part.images(step)]
        assert taken == plan().images(step)
        shares = [len(part.images(step)) for part in parts]
        assert shares == [part.sampling.share for part in parts]
        assert max(shares) - min(shares) <= 1
        assert sorted(np.concatenate([part.places() for part in parts])) == list(range(8))
        assert np.concatenate([part.places() for part in parts]).tolist() == plan().places().tolist()


def test_places_of_a_worker_are_spread_over_the_batch() -> None:
    """An objective that attacks the first 40 % one way finds about as many of them at each worker."""
    for rank in range(4):
        places = plan(batch_size=64, rank=rank, size=4).places()
        assert 5 <= (places < 26).sum() <= 8


def test_any_step_can_be_the_first() -> None:
    once = plan(rank=1, size=2)
    walked = [once.images(step) for step in range(20)]
    assert [plan(rank=1, size=2).images(step) for step in reversed(range(20))] == walked[::-1]
    assert [plan(rank=1, size=2, seed=1).images(step) for step in range(20)] != walked
