"""Which trials are tried and promoted depends only on results, not on order, number of CPUs or kills."""

from __future__ import annotations

from pathlib import Path

import pytest
from train_toys import LOOP, MAE
from tune_toys import IMAGES, arrive, outcome, play, toy

from maep.errors import ArtifactError
from maep.tune import record
from maep.tune.search import suggest
from maep.tune.search.rounds import Listener, Search

NOISE = {"noise": {"uniform": [0, 1]}}
HALVING = {"num_rungs": 3, "factor": 3}


@pytest.mark.parametrize("searcher", ["tpe", "random"])
def test_order_and_number_of_processors_change_nothing(searcher: str, tmp_path: Path) -> None:
    settings = toy(searcher=searcher, halving=HALVING)
    play(settings, tmp_path / "one", order=0, at_once=1)
    for order, at_once in ((1, 2), (2, 5)):
        output = tmp_path / f"{order}"
        play(settings, output, order, at_once)
        assert outcome(output) == outcome(tmp_path / "one")


@pytest.mark.parametrize("objectives", [["clean_accuracy"], ["clean_accuracy", "latency_ms"]])
def test_kill_at_any_point_changes_and_repeats_nothing(objectives: list[str], tmp_path: Path) -> None:
    settings = toy(halving=HALVING, objectives=objectives)
    pieces = play(settings, tmp_path / "whole")
    for kill_after in range(0, pieces, 4):
        output = tmp_path / f"{kill_after}"
        before = play(settings, output, order=kill_after, kill_after=kill_after)
        after = play(settings, output, order=99)
        assert before + after == pieces - 1, "the item whose result was on disk is not repeated"
        assert outcome(output) == outcome(tmp_path / "whole")


def test_a_finished_search_that_is_resumed_does_nothing(tmp_path: Path) -> None:
    play(toy(halving=HALVING), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    assert play(toy(halving=HALVING), tmp_path) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == before


def test_halving_spends_less_and_keeps_the_best(tmp_path: Path) -> None:
    play(toy(), tmp_path / "all")
    play(toy(halving=HALVING, searcher="random"), tmp_path / "some")
    images = [sum(each.budget.samples_seen for each in record.read_all(tmp_path / name)) for name in ("all", "some")]
    assert images[0] == 12 * IMAGES
    assert images[1] < 0.6 * images[0]
    stopped = [each for each in record.read_all(tmp_path / "some") if each.status == "stopped"]
    done = [each for each in record.read_all(tmp_path / "some") if each.status == "done"]
    assert stopped
    assert max(each.objectives["clean_accuracy"] for each in done) > max(
        each.objectives["clean_accuracy"] for each in stopped
    )
    assert all(each.reason and "rung" in each.reason for each in stopped)


def test_a_failed_trial_is_recorded_and_the_search_continues(tmp_path: Path) -> None:
    settings = toy(num_trials=5, generation=2)
    search = Search(settings, tmp_path)
    while not search.is_finished:
        item = search.next_item()
        assert item is not None
        if item.trial.number == 1:
            search.end_item(item, "the loss is nan at step 3")
            continue
        arrive(search, item)
        search.end_item(item, None)
    ended = record.read_all(tmp_path)
    assert [each.status for each in ended] == ["done", "failed", "done", "done", "done"]
    assert ended[1].reason == "the loss is nan at step 3"
    assert ended[1].objectives == {}
    assert Search(settings, tmp_path).is_finished, "what failed is not tried again"


def test_process_that_dies_after_writing_has_not_failed(tmp_path: Path) -> None:
    """Otherwise this search would record a failure, and a resumed one a success."""
    settings = toy(num_trials=4, halving=HALVING)
    search = Search(settings, tmp_path / "died")
    while not search.is_finished:
        item = search.next_item()
        assert item is not None
        arrive(search, item)
        search.end_item(item, "its process died" if item.trial.number == 2 else None)
    play(settings, tmp_path / "whole")
    assert outcome(tmp_path / "died") == outcome(tmp_path / "whole")


def test_failed_pretraining_is_retried_by_later_trials_only(tmp_path: Path) -> None:
    pretrain = {"model": MAE, "mask_ratio": 0.5, "loop": LOOP}
    search = Search(toy(num_trials=2, generation=1, pretrain=pretrain, space=NOISE), tmp_path)
    asked = []
    while not search.is_finished:
        item = search.next_item()
        assert item is not None
        assert item.rung is None, "nothing is fine-tuned from what is not there"
        asked.append(item.trial.number)
        search.end_item(item, "the loss is nan at step 3")
    assert asked == [0, 1]
    ended = record.read_all(tmp_path)
    assert {each.reason for each in ended} == {"its pretraining failed: the loss is nan at step 3"}
    assert [each.status for each in ended] == ["failed", "failed"]


def test_fixed_settings_come_first_and_are_never_stopped(tmp_path: Path) -> None:
    settings = toy(fixed=[{"noise": 0.0, "patch_size": 8, "seed": 7}], halving=HALVING, num_trials=4)
    play(settings, tmp_path)
    first = record.read_all(tmp_path)[0]
    assert (first.settings, first.seed, first.status) == ({"noise": 0.0, "patch_size": 8, "seed": 7}, 7, "done")
    assert len(record.read_all(tmp_path)) == 5


def test_every_grid_point_is_tried_once(tmp_path: Path) -> None:
    space = {"patch_size": {"choice": [2, 4]}, "depth": {"integer": [1, 2]}}
    settings = toy(space=space, searcher="grid", num_trials=100)
    assert suggest.most_trials(settings) == 4
    play(settings, tmp_path)
    tried = [tuple(each.settings.values()) for each in record.read_all(tmp_path)]
    assert tried == [(2, 1), (2, 2), (4, 1), (4, 2)]


def test_fixed_settings_are_not_chosen_again(tmp_path: Path) -> None:
    space = {"patch_size": {"choice": [2, 4]}, "depth": {"integer": [1, 2]}}
    settings = toy(space=space, searcher="grid", num_trials=100, fixed=[{"patch_size": 4, "depth": 1}])
    play(settings, tmp_path)
    tried = [tuple(each.settings.values()) for each in record.read_all(tmp_path)]
    assert tried == [(4, 1), (2, 1), (2, 2), (4, 2)]


def test_resumed_search_reports_earlier_trials_to_listeners(tmp_path: Path) -> None:
    class Recorder(Listener):
        def __init__(self) -> None:
            self.ended: list[int] = []

        def on_end(self, trial: object, ended: record.TrialRecord) -> None:
            self.ended.append(ended.number)

    play(toy(num_trials=3), tmp_path)
    recorder = Recorder()
    Search(toy(num_trials=3), tmp_path, (recorder,))
    assert recorder.ended == [0, 1, 2]


def test_trials_of_another_search_are_refused(tmp_path: Path) -> None:
    play(toy(num_trials=3), tmp_path)
    with pytest.raises(ArtifactError, match=r"0000-\w+.* 0000-"):
        play(toy(num_trials=3, seed=1, space={"noise": {"uniform": [0, 0.5]}}), tmp_path)
