from __future__ import annotations

import pytest

from maep.errors import ConfigError
from maep.tune.search.halving import levels, promoted, ranked


def test_best_of_the_first_generation_are_promoted() -> None:
    arrived = {number: (float(number % 5),) for number in range(9)}
    assert promoted(arrived, {}, 3) == {4, 3, 8}
    assert promoted({0: (1.0,)}, {}, 3) == {0}


def test_a_poor_generation_ends_and_a_good_one_is_promoted() -> None:
    earlier = dict.fromkeys(range(6), (0.5,))
    assert promoted({6: (0.4,), 7: (0.3,), 8: (0.2,)}, earlier, 3) == set()
    assert promoted({6: (0.6,), 7: (0.7,), 8: (0.8,)}, earlier, 3) == {6, 7, 8}


def test_ties_go_to_the_earlier_trial() -> None:
    assert promoted({2: (1.0,), 1: (1.0,), 0: (0.0,)}, {}, 3) == {1}


def test_with_two_objectives_the_front_comes_first() -> None:
    values = {0: (1.0, 0.0), 1: (0.0, 1.0), 2: (0.9, 0.9), 3: (0.8, 0.8), 4: (0.7, 0.0)}
    assert ranked(values) == [0, 2, 1, 3, 4]


def test_rungs_are_whole_batches_and_rise() -> None:
    assert levels(960, 32, 3, 3) == [96, 320, 960]
    with pytest.raises(ConfigError, match="too few for 4 rungs"):
        levels(96, 32, 4, 3)
