"""Spaces, constraints, and the settings chosen from them."""

from __future__ import annotations

import pytest
from tune_toys import toy, value

from maep import config
from maep.errors import ConfigError
from maep.tune.search import constraints, space, suggest
from maep.tune.search.space import Axis
from maep.tune.search.suggest import Tried
from maep.tune.trial.trial import phases, trial_id


def test_huge_integer_axes_are_not_enumerated() -> None:
    settings = toy(space={"seed": {"integer": [0, 2**31 - 1]}}, num_trials=3)
    assert suggest.check(settings) is None
    assert all(0 <= each["seed"] < 2**31 for each in suggest.choose(settings, 3, []))


def test_axes_draw_evenly_in_their_own_measure() -> None:
    shares = [0.0, 0.25, 0.5, 0.75, 0.999]
    assert [Axis(choice=("a", "b")).at(share) for share in shares] == ["a", "a", "b", "b", "b"]
    assert [Axis(integer=(3, 5)).at(share) for share in shares] == [3, 3, 4, 5, 5]
    assert Axis(uniform=(2, 4)).at(0.5) == 3
    assert Axis(log_uniform=(1, 100)).at(0.5) == pytest.approx(10)


@pytest.mark.parametrize(
    ("axis", "reason"),
    [
        ({}, "choice, uniform"),
        ({"choice": []}, "choice"),
        ({"choice": [1, 1]}, "choice"),
        ({"uniform": [2, 1]}, "uniform"),
        ({"log_uniform": [0, 1]}, "log_uniform"),
        ({"uniform": [0, 1], "integer": [0, 1]}, "uniform and integer"),
        ({"unifrom": [0, 1]}, "did you mean 'uniform'"),
    ],
)
def test_axes_without_values_are_refused(axis: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        config.build(Axis, axis, "space.noise")


def test_constraints_compare_and_run_no_code() -> None:
    names = {"width": 48, "num_heads": 4, "finetune.noise": 0.1, "kind": "a"}
    assert constraints.holds("width % num_heads == 0 and finetune.noise <= 0.2", names)
    assert constraints.holds("not kind in ['b'] and -1 < width // 5 <= 9", names)
    assert not constraints.holds("width > 48 or kind == 'b'", names)
    for text, reason in (
        ("width.__class__", "width.__class__"),
        ("open('x')", "open"),
        ("widht > 3", "did you mean 'width'"),
        ("width >", "width >"),
        ("width % 0 == 1", "width % 0"),
        ("width ** 9999 > 1", "9999"),
    ):
        with pytest.raises(ConfigError, match=reason):
            constraints.holds(text, names)


def test_short_names_set_both_phases() -> None:
    settings = toy(pretrain={"model": config.to_dict(toy().finetune)["model"]["mae"]})
    pretrain, finetune = phases(settings, {"patch_size": 8, "mask_ratio": 0.5, "width": 32, "seed": 3})
    assert pretrain is not None
    assert finetune.model.name == "purifier"
    assert pretrain.model == finetune.model.mae
    assert (pretrain.model.patch_size, pretrain.model.width, pretrain.mask_ratio) == (8, 32, 0.5)
    assert pretrain.loop.seed == finetune.loop.seed == 3


def test_conv_purifier_needs_no_pretraining() -> None:
    settings = toy(pretrain={"model": config.to_dict(toy().finetune)["model"]["mae"]})
    pretrain, finetune = phases(
        settings, {"finetune.model": {"name": "conv", "image_size": 16, "channels": [4], "blocks": 1}}
    )
    assert pretrain is None
    assert finetune.model.name == "conv"


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"space": {"mask_ration": {"uniform": [0, 1]}}}, "did you mean 'mask_ratio'"),
        ({"space": {"finetune.losss.pixel.weight": {"uniform": [0, 1]}}}, "finetune.losss"),
        ({"space": {"finetune.loop.speed": {"uniform": [0, 1]}}}, "finetune.loop.speed"),
        ({"space": {"mask_ratio": {"uniform": [0.2, 0.8]}}}, "space.mask_ratio"),
        ({"space": {"finetune.loop.samples": {"integer": [1, 2]}}}, "budget.amount"),
        ({"space": {"patch_size": {"choice": [4, 3]}}}, "space.patch_size: 3"),
        ({"constraints": ["noise > 2"]}, "noise > 2"),
        ({"constraints": ["nois > 0"]}, "did you mean 'noise'"),
        ({"space": {}, "fixed": [{"noise": 2}]}, "noise"),
    ],
)
def test_spaces_without_an_allowed_trial_are_refused(keys: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        suggest.check(toy(**keys))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"space": {}}, "space: is empty"),
        ({"objectives": ["robustness"]}, "objectives: 'robustness'"),
        ({"objectives": ["dev_reconstruction"]}, "objectives: dev_reconstruction"),
        ({"objectives": []}, "name at least one"),
        ({"objectives": ["oblivious_accuracy"], "measure": {"oblivious": []}}, "needs measure.oblivious"),
        ({"cpus_per_trial": 0}, "must be above 0"),
        ({"num_trials": 0}, "at least 1"),
        ({"searcher": "grid"}, "space.noise: "),
        ({"halving": {"num_rungs": 1}}, "at least 2"),
        ({"budget": {"amount": 0}}, "must be above 0"),
        ({"limits": {"latency": 3}}, "limits: 'latency'.*latency_ms"),
        ({"speed": 1}, "unknown key 'speed'"),
    ],
)
def test_invalid_searches_are_refused(keys: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        toy(**keys)


def test_random_settings_depend_on_their_number_alone() -> None:
    settings = toy(searcher="random")
    all_at_once = suggest.choose(settings, 6, [])
    one_by_one: list[Tried] = []
    for number in range(6):
        (chosen,) = suggest.choose(settings, 1, one_by_one)
        one_by_one.append(Tried(chosen, (float(number),), 0, True))
    assert [trial.settings for trial in one_by_one] == all_at_once
    assert len({trial_id(0, each) for each in all_at_once}) == 6


def test_a_small_space_is_not_tried_twice() -> None:
    axes = {"patch_size": {"choice": [2, 4]}, "depth": {"integer": [1, 2]}}
    settings = toy(space=axes, searcher="random", constraints=["patch_size * depth <= 4"])
    assert sorted(tuple(each.values()) for each in suggest.choose(settings, 10, [])) == [(2, 1), (2, 2), (4, 1)]
    assert suggest.check(settings) == 3


def test_tpe_beats_random_search() -> None:
    settings, tried = toy(constraints=["noise < 0.95"]), list[Tried]()
    for _ in range(5):
        chosen = suggest.choose(settings, 4, tried)
        assert chosen == suggest.choose(settings, 4, tried), "the same again"
        tried += [Tried(each, (value(each, 0),), 0, True) for each in chosen]
    first, last = ([value(trial.settings, 0) for trial in part] for part in (tried[:4], tried[-4:]))
    assert sum(last) / 4 > sum(first) / 4
    assert all(trial.settings["noise"] < 0.95 for trial in tried)


def test_tpe_learns_from_stopped_and_failed_trials_too() -> None:
    settings = toy(space={"noise": {"uniform": [0, 1]}})
    good = [Tried({"noise": 0.8 + 0.01 * i}, (0.9 + 0.001 * i,), 2, True) for i in range(4)]
    bad = [Tried({"noise": 0.02 * i}, None if i % 2 else (0.1,), 0, False) for i in range(16)]
    chosen = suggest.choose(settings, 6, [*good, *bad])
    assert sum(each["noise"] > 0.5 for each in chosen) >= 4


def test_size_and_grid() -> None:
    axes = {"a": Axis(choice=(1, 2)), "b": Axis(integer=(0, 2))}
    assert space.size(axes) == len(list(space.grid(axes))) == 6
    assert space.size({**axes, "c": Axis(uniform=(0, 1))}) is None
