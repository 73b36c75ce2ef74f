"""The command `maep tune`: usage errors, its output, tracking, and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import children
from train_toys import LOOP, MAE
from tune_toys import play, toy

from maep import config
from maep.errors import UnavailableError
from maep.tracking.client import TrackingConfig, absolute, connect, experiment
from maep.tracking.runs import open_run
from maep.tune import record
from maep.tune.config import TuneConfig
from maep.tune.search import execute, suggest
from maep.tune.search.rounds import Search
from maep_jobs.config_files import find
from maep_jobs.search.run import claim
from maep_jobs.search.tracking import SearchTracker

Maep = Callable[..., Any]


@pytest.fixture
def words(classifier: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Words of a search of a few tiny trials, without tracking; keywords change its configuration."""

    def make(*more: str | Path | int, **keys: Any) -> list[str]:
        values = {
            "pretrain": {"model": MAE, "mask_ratio": 0.5, "loop": LOOP},
            "finetune": {
                "model": {"name": "purifier", "mae": MAE, "stem_channels": [4], "stem_blocks": 0},
                "classifiers": [str(classifier)],
                "attacks": {"eps": "32/255", "mixture": [{"name": "fgsm"}]},
                "loop": LOOP,
            },
            "space": {"mask_ratio": {"choice": [0.25, 0.5, 0.75]}, "patch_size": {"choice": [4, 8]}},
            "objectives": ["oblivious_accuracy", "latency_ms"],
            "measure": {"num_images": 16, "oblivious": ["fgsm"]},
            "budget": {"amount": 512, "pretrain_share": 0.25},
            "num_trials": 4,
            "generation": 2,
            "halving": {"num_rungs": 2, "factor": 2},
        }
        file = tmp_path / "tune.yaml"
        file.write_text(yaml.safe_dump(values | keys))
        return ["tune", "--config", str(file), "--output", "out", "--tracking.enabled", "false", *map(str, more)]

    return make


def nothing_begun() -> bool:
    """Whether there is no trial, no pretraining and no plan of a search in `out`."""
    return not any(Path("out").glob("*/*")) and not Path("out/search.yaml").exists()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"serach": 1}, "serach"),
        ({"space": {"mask_ration": {"uniform": [0, 1]}}}, "did you mean 'mask_ratio'"),
        ({"space": {"patch_size": {"choice": [3]}}}, "does not divide"),
        ({"constraints": ["patch_size > 16"]}, "patch_size > 16"),
        ({"space": {}}, "space: is empty"),
        ({"space": {"patch_size": {"choice": []}}}, "choice"),
        ({"objectives": ["robustness"]}, "objectives: 'robustness'"),
        ({"objectives": ["mae_loss"]}, "objectives: mae_loss"),
        ({"cpus_per_trial": 0}, "cpus_per_trial: 0 must be above 0"),
        ({"budget": {"kind": "minutes"}}, "did you mean|choose one of"),
        ({"budget": {"amount": 96}}, "budget.amount: .* 24 .* 32"),
        ({"halving": {"num_rungs": 6, "factor": 3}}, "halving.num_rungs"),
        ({"objectives": None}, "objectives.*None"),
        ({"limits": {"clean_accuracy": 50}}, "limits.clean_accuracy: 50 must be a share"),
        ({"budget": {"amount": 512, "pretrain_share": 0}}, "pretrain_share: 0 leaves nothing for pretrain"),
    ],
)
def test_mistakes_are_usage_errors_before_anything_is_written(
    maep: Maep, words: Any, keys: dict[str, Any], reason: str
) -> None:
    assert maep(*words(**keys)).is_mistake(reason)
    assert nothing_begun()


def test_missing_storage_and_servers_are_usage_errors(maep: Maep, words: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert maep(*words(), "--output", "file/out").is_mistake("file")
    assert maep(*words(), "--output", "s3://bucket/out").is_mistake("s3://bucket/out")
    away = ["--tracking.enabled", "true", "--tracking.uri", "http://127.0.0.1:9"]
    assert maep(*words(), *away).is_mistake(away[-1])
    assert maep(*words(), "--finetune.classifiers", "[nothing]").is_mistake("nothing")
    assert maep(*words(), "--address", "127.0.0.1:9").is_mistake("Ray")
    assert not any(Path("out").glob("trials/*"))


def test_resume_needs_the_same_search(maep: Maep, words: Any) -> None:
    assert maep("tune", "--resume").is_mistake("--output DIR")
    assert maep("tune", "--resume", "--output", "nowhere").is_mistake("--resume")
    line = words()
    assert maep(*line, "--resume").is_mistake("--resume")
    asked = config.load(TuneConfig, line[2])
    claim(asked, TrackingConfig(enabled=False), Path("out"))
    assert maep(*line).is_mistake("--resume")
    assert maep(*line, "--resume", "--num_trials", 9).is_mistake("num_trials")
    assert maep(*line, "--force").is_mistake("--force.*--promote")


def test_failed_ray_start_leaves_the_output_untouched(maep: Maep, words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # as in a submitted job: nothing answers there
    for _ in range(2):
        assert maep(*words()).end.is_mistake("Ray")
        assert nothing_begun()


def test_a_dry_run_lists_trials_and_images(maep: Maep, words: Any) -> None:
    ran = maep(*words(), "--dry-run")
    assert ran.status == 0, ran.err
    for said in (
        "# trials: at most 4",
        "# trial 0000-",
        "mask_ratio 0.",
        "# images: 2,048 in all",
    ):
        assert said in ran.out
    assert yaml.safe_load(ran.out)["num_trials"] == 4
    assert nothing_begun()


def test_gpu_needs_gpus_per_trial(maep: Maep, words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    line = words(pretrain=None, space={"noise": {"uniform": [0, 0.1]}})
    ran = maep(*line, "--finetune.loop.device", "auto")
    assert ran.is_mistake("gpus_per_trial")
    assert nothing_begun()


def test_shipped_configurations_are_valid(maep: Maep) -> None:
    for name in ("digits/tune", "cifar10/tune"):
        values = config.read_yaml(find(name))
        values.pop("tracking", None)
        suggest.check(config.build(TuneConfig, values))


def test_runs_of_a_search_in_mlflow(store: Path, tmp_path: Path) -> None:
    """A parent, a child a trial; after a kill and a resume as many, none of them open, no value twice."""
    asked, output = toy(num_trials=4, halving={"num_rungs": 2, "factor": 3}), tmp_path / "out"
    tracking = absolute(TrackingConfig(uri=f"sqlite:///{store}"))
    with SearchTracker(asked, tracking, output) as tracked:
        play(asked, output, kill_after=3, listeners=(tracked,))
    with SearchTracker(asked, tracking, output) as tracked:
        play(asked, output, listeners=(tracked,))
    client = connect(absolute(tracking))

    def ends() -> dict[str, int]:
        found = client.search_runs([experiment(client, tracking).experiment_id])
        return {run.info.run_id: run.info.end_time for run in found if run.data.tags["maep.phase"] == "trial"}

    before = ends()
    with SearchTracker(asked, tracking, output) as tracked:
        play(asked, output, listeners=(tracked,))
    assert ends() == before, "what was recorded is left as it is"
    runs = client.search_runs([experiment(client, tracking).experiment_id])
    (parent,) = (run for run in runs if run.data.tags["maep.phase"] == "tune")
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    ended = record.read_all(output)
    assert len(runs) == 1 + len(ended) == 5
    assert {run.data.tags["maep.trial_id"] for run in trials} == {each.trial_id for each in ended}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in trials:
        history = client.get_metric_history(run.info.run_id, "clean_accuracy")
        points = record.curve(output, run.data.tags["maep.trial_id"])
        assert [metric.step for metric in history] == [point.samples_seen for point in points]
    assert parent.data.params["space.noise.uniform"] == "[0.0, 1.0]"


def test_tracking_outage_loses_no_trial_and_no_value(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not answer when the first trials begin and are measured; then it is back."""
    asked, output, opened = toy(num_trials=4, generation=4), tmp_path / "out", 0

    def open_later(*words: Any) -> Any:
        nonlocal opened
        opened += 1
        if 1 < opened < 6:
            raise UnavailableError("http://mlflow:5000 does not answer")
        return open_run(*words)

    tracking = absolute(TrackingConfig(uri=f"sqlite:///{store}"))
    monkeypatch.setattr("maep_jobs.search.tracking.open_run", open_later)
    with SearchTracker(asked, tracking, output) as tracked:
        play(asked, output, listeners=(tracked,))
    assert "--resume" in caplog.text
    with SearchTracker(asked, tracking, output) as tracked:
        play(asked, output, listeners=(tracked,))
    client = connect(tracking)
    runs = client.search_runs([experiment(client, tracking).experiment_id])
    assert sorted(run.data.tags["maep.phase"] for run in runs) == ["trial"] * 4 + ["tune"]
    for run in (run for run in runs if run.data.tags["maep.phase"] == "trial"):
        points = record.curve(output, run.data.tags["maep.trial_id"])
        history = client.get_metric_history(run.info.run_id, "clean_accuracy")
        assert [(metric.step, metric.value) for metric in history] == [
            (point.samples_seen, point.objectives["clean_accuracy"]) for point in points
        ]
        assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_cluster_without_room_is_refused(maep: Maep, words: Any, store: Path) -> None:
    tracked = ["--tracking.enabled", "true", "--tracking.uri", f"sqlite:///{store}"]
    ran = maep(*words(gpus_per_trial=99), *tracked)
    assert ran.is_mistake("99 GPUs")
    assert not Path("out").exists() or not any(Path("out").glob("[a-z]*"))
    assert connect(TrackingConfig(uri=f"sqlite:///{store}")).search_experiments()[0].name == "Default"


@pytest.mark.slow
def test_search_writes_best_trial_and_page(maep: Maep, words: Any) -> None:
    ran = maep(*words(), "--json")
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)
    assert sum(found["trials"].values()) == 4
    assert Path(found["purifier"], "MANIFEST.json").is_file()
    for name in ("best.yaml", "trials.parquet", "report.html"):
        assert Path("out", name).is_file()
    assert not list(Path("out").glob(".ray-*"))
    for verb in ("pretrain", "finetune"):
        shown = maep(verb, "--config", "out/best.yaml", "--dry-run")
        assert shown.status == 0, shown.err
        assert yaml.safe_load(shown.out)["loop"]["samples"] > 0
    again = maep("tune", "--output", "out", "--resume", "--json", "--tracking.enabled", "false")
    assert json.loads(again.out) == found


def started(words: list[str], tmp_path: Path) -> subprocess.Popen[bytes]:
    """The command in a process group of its own."""
    line = [sys.executable, "-m", "maep_jobs.cli", *words]
    return subprocess.Popen(line, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 240) -> None:
    """Waits for what the process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)  # between two looks


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_search_resumes_to_the_same_trials(words: Any, tmp_path: Path) -> None:
    line = words(objectives=["oblivious_accuracy"])
    whole = started([word if word != "out" else "whole" for word in line], tmp_path)
    assert whole.wait(280) == 0
    process = started(line, tmp_path)
    until(lambda: len(list(tmp_path.glob("out/trials/*/curve.jsonl"))) >= 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(record.read_all(tmp_path / "out")) < 4
    again = started(["tune", "--output", "out", "--resume", "--tracking.enabled", "false"], tmp_path)
    assert again.wait(280) == 0
    one, other = record.read_all(tmp_path / "whole"), record.read_all(tmp_path / "out")
    assert [(each.trial_id, each.seed, each.status, each.budget.samples_seen, each.objectives) for each in one] == [
        (each.trial_id, each.seed, each.status, each.budget.samples_seen, each.objectives) for each in other
    ]


@pytest.mark.slow
def test_trial_resumes_after_its_process_is_killed(words: Any, tmp_path: Path) -> None:
    process = started(words(num_trials=2), tmp_path)

    def trials() -> list[int]:
        return [
            pid for pid in children(process.pid) if b"ray::ImplicitFunc" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    until(lambda: bool(trials()) and any(tmp_path.glob("out/trials/*/plan.json")), process)
    os.kill(trials()[0], signal.SIGKILL)
    assert process.wait(280) == 0
    assert len(record.read_all(tmp_path / "out")) == 2
    assert {each.status for each in record.read_all(tmp_path / "out")} <= {"done", "stopped"}


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_ctrl_c_keeps_finished_trials(words: Any, tmp_path: Path) -> None:
    process = started(words(), tmp_path)
    until(lambda: bool(record.read_all(tmp_path / "out")), process)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(120) == 130
    kept = record.read_all(tmp_path / "out")
    assert kept
    again = started(["tune", "--output", "out", "--resume", "--tracking.enabled", "false"], tmp_path)
    assert again.wait(280) == 0
    ended = {each.number: each for each in record.read_all(tmp_path / "out")}
    assert [ended[each.number] for each in kept] == kept  # which need not be the first


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_trials_of_two_workers_finish_on_two_cpus(words: Any, tmp_path: Path) -> None:
    workers = {"num_workers": 2, "cpus_per_worker": 1.0}
    space = {"patch_size": {"choice": [4, 8]}, "noise": {"uniform": [0, 0.1]}}
    keys = {"num_trials": 3, "halving": None, "pretrain": None, "searcher": "random", "space": space}
    asked = config.load(TuneConfig, words(**keys)[2], ["--finetune.workers", json.dumps(workers)])
    with execute.room(asked, tmp_path / "out"):
        import ray

        execute.on_ray(Search(asked, tmp_path / "out"))
        assert [each.status for each in record.read_all(tmp_path / "out")] == ["done"] * 3
        deadline = time.monotonic() + 60
        while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
            assert time.monotonic() < deadline, f"{ray.available_resources()} of {ray.cluster_resources()} are free"
            time.sleep(0.2)  # between two looks
