"""The map: its cells and their content, and that overlapping intervals are not called a difference."""

from __future__ import annotations

import dataclasses

import pytest
from searches import NUM_IMAGES, SPACE, grid, settings, trial

from maep.evaluate.results.summary import interval
from maep.tune.report import maps
from maep.tune.report.charts import axis_label
from maep.tune.report.maps import level_with_best, make_map, map_keys, verdict
from maep.tune.search.space import Axis

AXES = settings().space
ON = ["mask_ratio", "patch_size"]
KINDS = {"conv": 0.2, "unet": 0.6}


def test_map_prefers_mask_ratio_and_patch_size() -> None:
    space = {
        "kl_weight": Axis(choice=(0.1, 0.3)),
        "patch_size": Axis(choice=(2, 4)),
        "pretrain.mask_ratio": Axis(uniform=(0.2, 0.8)),
    }
    trials = [
        trial(0, {"kl_weight": 0.1, "patch_size": 2, "pretrain.mask_ratio": 0.3}),
        trial(1, {"kl_weight": 0.3, "patch_size": 4, "pretrain.mask_ratio": 0.7}),
    ]
    assert map_keys(trials, space) == ["pretrain.mask_ratio", "patch_size"]
    assert map_keys(trials, {key: space[key] for key in ("kl_weight", "patch_size")}) == []  # then all are references
    fixed = [dataclasses.replace(each, settings={**each.settings, "patch_size": 2}) for each in trials]
    assert map_keys(fixed, space) == ["pretrain.mask_ratio", "kl_weight"]
    assert map_keys(trials[:1], space) == []


def test_the_mask_ratio_at_test_time_is_not_that_of_training() -> None:
    space = {key: Axis(choice=(0.1, 0.3)) for key in ("finetune.model.mask_ratio", "noise", "pretrain.mask_ratio")}
    trials = [trial(i, dict.fromkeys(space, value)) for i, value in enumerate((0.1, 0.3))]
    assert map_keys(trials, space) == ["pretrain.mask_ratio", "finetune.model.mask_ratio"]
    assert axis_label("pretrain.mask_ratio") == axis_label("mask_ratio") != "mask_ratio"
    assert axis_label("finetune.model.mask_ratio") == "finetune.model.mask_ratio"


def test_cell_has_value_interval_images_and_repeats() -> None:
    found = make_map(grid(), AXES, "adaptive_accuracy", ON)
    assert [each.label for each in found.x.bins] == ["2", "4", "8"]
    assert found.y is not None
    assert [each.label for each in found.y.bins] == ["0.25", "0.5", "0.75"]
    corner, single = found.cells[0][0], found.cells[1][1]
    assert [each.number for each in corner.trials] == [0, 9]
    assert not found.chosen
    assert corner.found is not None
    assert corner.found.value == pytest.approx(0.39)
    low, high = interval(195, NUM_IMAGES)
    assert (corner.found.low, corner.found.high) == (pytest.approx(low), pytest.approx(high))
    assert single.found is not None
    assert (single.found.low, single.found.high) == interval(225, NUM_IMAGES)
    assert single.found.count == NUM_IMAGES


def test_repeats_that_differ_by_more_than_the_images_explain_widen_the_interval() -> None:
    repeats = [trial(i, {"mask_ratio": 0.5, "patch_size": 4, "seed": i}, share) for i, share in enumerate((0.2, 0.6))]
    found = make_map(repeats, AXES, "adaptive_accuracy", ON).filled[0].found
    assert found is not None
    assert (found.low, found.high) == (0.2, 0.6)


def test_only_finished_trials_fill_a_cell() -> None:
    found = make_map(grid(), AXES, "adaptive_accuracy", ON)
    assert found.cells[2][2].found is None
    assert found.cells[2][2].why_empty == "stopped early"
    alone = make_map(grid()[-1:], AXES, "adaptive_accuracy", ON)
    assert {cell.why_empty for row in alone.cells for cell in row} == {"failed", "not tried"}
    assert alone.best is None
    assert "[" not in verdict(alone)


def test_no_difference_is_claimed_where_intervals_overlap() -> None:
    found = make_map(grid(), AXES, "adaptive_accuracy", ON)
    assert found.best is found.cells[1][1]
    level = level_with_best(found)
    assert found.cells[0][1] in level
    assert found.cells[0][2] not in level  # 30 % against 45 % of 500 images
    said = verdict(found)
    assert "45.0 % [40.7, 49.4] at mask_ratio 0.5, patch_size 4." in said
    assert "4 of 7" in said
    assert "mask_ratio 0.25, patch_size 4" in said


def test_where_no_interval_overlaps_all_cells_differ() -> None:
    cells = [{"mask_ratio": 0.5, "patch_size": size} for size in (2, 4, 8)]
    alike = [trial(i, cell, 0.40 + 0.01 * i) for i, cell in enumerate(cells)]
    assert len(level_with_best(make_map(alike, AXES, "adaptive_accuracy", ["patch_size"]))) == 2
    apart = [trial(i, cell, 0.2 + 0.2 * i) for i, cell in enumerate(cells)]
    assert level_with_best(make_map(apart, AXES, "adaptive_accuracy", ["patch_size"])) == []
    maps_of = [make_map(trials, AXES, "adaptive_accuracy", ["patch_size"]) for trials in (alike, apart, apart[:1])]
    assert len({verdict(found).partition(".")[2][3:] for found in maps_of}) == 3


def test_lowest_latency_is_best_without_interval() -> None:
    said = verdict(make_map(grid(), AXES, "latency_ms", ON))
    assert "1.20 ms at mask_ratio 0.25, patch_size 8." in said
    assert "[" not in said


def test_cell_shows_its_best_trial_if_other_settings_vary() -> None:
    space = settings(space={**SPACE, "kl_weight": {"log_uniform": [0.01, 1.0]}}).space
    cell = {"mask_ratio": 0.5, "patch_size": 4}
    trials = [trial(i, {**cell, "kl_weight": 0.1 * (i + 1)}, share) for i, share in enumerate((0.3, 0.5, 0.4))]
    found = make_map(trials, space, "adaptive_accuracy", ON)
    assert found.chosen
    (only,) = found.filled
    assert [each.number for each in only.trials] == [1]
    assert len(only.tried) == 3


def test_another_kind_of_purifier_is_a_reference_beside_the_map() -> None:
    conv = trial(20, {"finetune.model.name": "conv"}, 0.9)
    found = make_map([*grid(), conv], AXES, "adaptive_accuracy", ON)
    assert found.reference is not None
    assert found.reference.trials == (conv,)
    assert found.best is found.cells[1][1]  # a reference is no cell of the map
    assert "90" not in verdict(found)


def test_references_of_several_kinds_are_not_averaged() -> None:
    others = [trial(20 + i, {"finetune.model.name": name}, share) for i, (name, share) in enumerate(KINDS.items())]
    reference = make_map([*grid(), *others], AXES, "adaptive_accuracy", ON).reference
    assert reference is not None
    assert reference.trials == (others[1],)
    assert reference.found is not None
    assert reference.found.value == pytest.approx(0.6)


def test_continuous_range_is_binned() -> None:
    for kind in (Axis(uniform=(0.1, 0.9)), Axis(log_uniform=(0.001, 1.0)), Axis(integer=(1, 40))):
        ends = kind.uniform or kind.log_uniform or kind.integer
        assert ends is not None
        values = [ends[0], *(kind.at(share) for share in (0.1, 0.35, 0.5, 0.77)), ends[1]]
        axis = maps.map_axis("key", kind, [trial(i, {"key": value}) for i, value in enumerate(values)])
        assert len(axis.bins) == 6
        for value in values:
            assert sum(each.holds(value) for each in axis.bins) == 1
        assert axis.place({"key": ends[0]}) == 0
        assert axis.place({"key": ends[1]}) == 5
        assert axis.place({}) is None
