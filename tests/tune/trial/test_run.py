"""Trials that are really trained: budgets, shared pretraining, failures and resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from train_toys import MAE, Make, weights
from tune_toys import run_here

from maep import artifact, cluster, config
from maep.errors import ConfigError, UnavailableError, WriteError
from maep.models import flops
from maep.models.config import MaeConfig
from maep.train.config import FinetuneConfig, PretrainConfig
from maep.train.ray.workers import train
from maep.tune import record
from maep.tune.config import BudgetConfig, TuneConfig
from maep.tune.search import execute
from maep.tune.search.rounds import Search
from maep.tune.trial import budget, plan, run
from maep.tune.trial.trial import PRETRAINED


@pytest.fixture(scope="module")
def done(searched: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[TuneConfig, Path]:
    """A search of two masks x two noises, with halving, played to its end in this process."""
    output = tmp_path_factory.mktemp("search")
    settings = searched(
        space={"mask_ratio": {"choice": [0.5, 0.75]}, "noise": {"choice": [0.0, 0.1]}},
        searcher="grid",
        num_trials=4,
        generation=4,
        halving={"num_rungs": 2, "factor": 2},
        objectives=["clean_accuracy", "oblivious_accuracy", "adaptive_accuracy", "latency_ms"],
    )
    run_here(Search(settings, output))
    return settings, output


def test_every_trial_has_the_same_budget(done: tuple[TuneConfig, Path]) -> None:
    ended = record.read_all(done[1])
    assert sorted(each.status for each in ended) == ["done", "done", "stopped", "stopped"]
    assert {each.budget.samples_seen for each in ended if each.status == "done"} == {512}
    assert {each.budget.samples_seen for each in ended if each.status == "stopped"} == {128 + 192}
    assert all(each.budget.flops > 0 and each.budget.core_seconds > 0 for each in ended)


def test_accuracies_come_with_their_counts(done: tuple[TuneConfig, Path]) -> None:
    for each in record.read_all(done[1]):
        for name in ("clean_accuracy", "oblivious_accuracy", "adaptive_accuracy"):
            right, asked = each.counts[name]
            assert asked == 16
            assert each.objectives[name] == right / asked
        assert each.objectives["latency_ms"] > 0
        assert each.objectives["num_parameters"] > 1000
        assert each.objectives["oblivious_accuracy"] <= each.objectives["clean_accuracy"] + 0.5


def test_pretraining_that_trials_share_runs_once(done: tuple[TuneConfig, Path]) -> None:
    folders = list((done[1] / PRETRAINED).iterdir())
    assert len(folders) == 2, "one for each mask ratio"
    for folder in folders:
        assert [line for line in (folder / "history.jsonl").read_text().splitlines() if '"started"' in line] != []
        assert (folder / "history.jsonl").read_text().count("finished") == 1


def test_recorded_configuration_trains_identical_weights(done: tuple[TuneConfig, Path], tmp_path: Path) -> None:
    """The recorded sections, passed to the verbs, train identical weights: pausing and measuring change nothing."""
    best = next(each for each in record.read_all(done[1]) if each.status == "done")
    assert best.artifact is not None
    again = train(config.build(FinetuneConfig, best.configuration["finetune"]), tmp_path, list)
    assert weights(again) == weights(artifact.read(done[1] / best.artifact))
    first = config.build(PretrainConfig, best.configuration["pretrain"])
    assert first.loop.samples == 128


def test_finished_search_repeats_nothing(done: tuple[TuneConfig, Path]) -> None:
    settings, output = done
    files = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    run_here(Search(settings, output))
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == files


def test_diverging_trial_fails_alone(searched: Make, tmp_path: Path) -> None:
    settings = searched(
        space={"finetune.loop.lr": {"choice": [1e-3, 1e30]}, "patch_size": {"choice": [4]}},
        searcher="grid",
        pretrain=None,
        num_trials=2,
    )
    run_here(Search(settings, tmp_path))
    good, bad = record.read_all(tmp_path)
    assert (good.status, bad.status) == ("done", "failed")
    assert bad.reason is not None
    assert "nan" in bad.reason or "inf" in bad.reason
    assert bad.artifact is None
    assert 0 < bad.budget.samples_seen < good.budget.samples_seen, "what it saw before it failed"


def test_all_trials_are_measured_under_the_same_attack(searched: Make, tmp_path: Path) -> None:
    """With a learning rate near 0 both purifiers are equal, so the same attack gives equal accuracies."""
    settings = searched(
        space={"finetune.attacks.eps": {"choice": ["1/255", "96/255"]}, "finetune.loop.lr": {"choice": [1e-12]}},
        objectives=["oblivious_accuracy"],
        searcher="grid",
        pretrain=None,
        num_trials=2,
    )
    run_here(Search(settings, tmp_path))
    weak, strong = record.read_all(tmp_path)
    assert weak.configuration["finetune"]["attacks"]["eps"] != strong.configuration["finetune"]["attacks"]["eps"]
    assert weak.counts["oblivious_accuracy"] == strong.counts["oblivious_accuracy"]


def test_machine_fault_ends_the_search_and_is_not_recorded(
    searched: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full where the trial runs, and one that is full where its record is written."""

    def full(*words: object) -> None:
        raise WriteError("no space left")

    search = Search(searched(pretrain=None, space={"noise": {"uniform": [0, 0.1]}}), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(run, "finetune_to", full)
        values = {"number": 0, "settings": '{"noise": 0.05}', "rung": 0}
        result = execute._run_item(values, tmp_path, search.config)
    assert result == {"failure": None, "fault": "no space left"}
    monkeypatch.setattr(execute, "concurrency", lambda search: 1)
    searcher = execute._searcher(search)
    searcher.suggest("a")
    searcher.on_trial_complete("a", result)
    with pytest.raises(UnavailableError, match="no space left"):
        searcher.suggest("b")
    searcher = execute._searcher(Search(search.config, tmp_path))
    searcher.suggest("a")
    monkeypatch.setattr(record, "write", full)
    searcher.on_trial_complete("a", error=True)
    with pytest.raises(WriteError, match="no space left"):
        searcher.suggest("b")
    assert record.read_all(tmp_path) == []


def test_search_waits_for_room_on_the_cluster(searched: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = [{"CPU": 1.0}]
    monkeypatch.setattr(cluster, "machines", lambda: machines)
    search = Search(searched(pretrain=None, space={"noise": {"uniform": [0, 0.1]}}), tmp_path)
    searcher = execute._searcher(search)
    machines[0] = {}
    assert searcher.suggest("a") is None
    with pytest.raises(UnavailableError, match="cpus_per_trial"):
        execute.concurrency(search.config, least=1)
    machines[0] = {"CPU": 1.0}
    assert searcher.suggest("a")["number"] == 0


def test_a_trial_resumes_from_its_checkpoint(searched: Make, tmp_path: Path) -> None:
    settings = searched(searcher="random", num_trials=1, pretrain=None, space={"noise": {"uniform": [0, 0.1]}})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_here(Search(settings, whole))
    search = Search(settings, cut)
    item = search.next_item()
    assert item is not None
    trial, folder = item.trial, record.folder(cut, item.trial.trial_id)
    plan.plan_phase(cut, settings, trial.finetune, folder, run.spent(cut, trial))
    phase = run.finetune_config(cut, trial)
    run._train(replace(phase, loop=replace(phase.loop, pause_at=256)), folder)  # the kill
    run_here(Search(settings, cut))
    (one,), (other,) = record.read_all(whole), record.read_all(cut)
    assert (one.trial_id, one.seed, one.budget.samples_seen) == (other.trial_id, other.seed, other.budget.samples_seen)
    assert one.artifact is not None
    assert weights(artifact.read(whole / one.artifact)) == weights(artifact.read(cut / one.artifact))
    assert '"redone": 0' in (folder / "history.jsonl").read_text()


def test_single_process_trial_must_fit_on_one_machine() -> None:
    wanted = {"CPU": 2.0, "GPU": 0.5}
    assert execute.fits(wanted, {"CPU": 8.0, "GPU": 1.0}) == 2
    assert execute.fits(wanted, {"CPU": 3.0, "GPU": 4.0}) == 1
    assert execute.fits(wanted, {"CPU": 64.0}) == execute.fits(wanted, {"CPU": 1.5, "GPU": 8.0}) == 0


def test_counted_operations_match_the_formula() -> None:
    settings = config.build(
        PretrainConfig, {"model": MAE, "mask_ratio": 0.5, "loop": {"samples": 640, "batch_size": 32, "device": "cpu"}}
    )
    expected = flops.training(config.build(MaeConfig, MAE), 0.5)
    assert budget.image_cost(settings, "flops").flops == pytest.approx(expected, rel=0.02)


def test_budgets_are_equal_up_to_a_batch() -> None:
    for cost in (budget.ImageCost(2.0e6, 1e-3), budget.ImageCost(7.3e6, 4e-3)):
        asked = BudgetConfig("flops", 1e10, 0.25)
        first = budget.for_pretraining(asked, cost, 32)
        rest = budget.for_finetuning(asked, first * cost.flops, cost, 32)
        assert 0 <= 1e10 - (first + rest) * cost.flops < 32 * cost.flops
    exact = BudgetConfig("samples_seen", 6400, 0.25)
    assert budget.for_pretraining(exact, cost, 32) == 1600
    assert budget.for_finetuning(exact, 1600, cost, 32) == 4800
    with pytest.raises(ConfigError, match=r"budget.amount: .* 10 .* 32"):
        budget.for_finetuning(exact, 6390, cost, 32)


def test_core_seconds_budget_sets_the_number_of_images(
    searched: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"kind": "core_seconds", "amount": 6.0}
    space = {"noise": {"uniform": [0, 0.1]}}
    settings = searched(budget=asked, space=space, searcher="random", num_trials=1, pretrain=None)
    assert (budget.image_cost(settings.finetune, "core_seconds").core_seconds or 0) > 0
    monkeypatch.setattr(budget, "image_cost", lambda phase, kind: budget.ImageCost(1e6, 0.01))
    run_here(Search(settings, tmp_path))
    (one,) = record.read_all(tmp_path)
    assert one.status == "done", one.reason
    assert one.budget.samples_seen == 18 * 32  # the whole batches in 600 images


def test_repeats_by_seed_see_equally_many_images(
    searched: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost of an image is measured once for all repeats; here each measurement doubles it."""
    repeats = ({"patch_size": 4, "seed": 1}, {"patch_size": 4, "seed": 2}, {"patch_size": 8, "seed": 1})
    asked = {"kind": "core_seconds", "amount": 6.4}
    costs = iter((0.01, 0.02))
    monkeypatch.setattr(budget, "image_cost", lambda phase, kind: budget.ImageCost(1e6, next(costs)))
    settings = searched(budget=asked, fixed=repeats, space={}, searcher="random", pretrain=None)
    run_here(Search(settings, tmp_path))
    assert [each.budget.samples_seen for each in record.read_all(tmp_path)] == [640, 640, 320]
