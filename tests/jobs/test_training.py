"""What a training verb leaves behind: the state of its MLflow run, its configuration, checkpoints to resume from."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from train_toys import weights

from maep import artifact, config, storage
from maep.artifact import Artifact
from maep.tracking import client as mlflow_client
from maep.tracking.client import TrackingConfig, absolute
from maep.tracking.runs import revision
from maep.train.checkpoint.history import read
from maep.train.checkpoint.store import Checkpoints
from maep.train.config import PretrainConfig
from maep.train.loop.callback import TrainingProgress
from maep.train.validation import validate
from maep_jobs.pipeline.identity import of_training
from maep_jobs.training import _Shown, _Tracked

Words = Callable[..., list[str]]


def only_run() -> Any:
    """The one run in the working directory's store."""
    config = absolute(TrackingConfig())
    client = mlflow_client.connect(config)
    (run,) = client.search_runs([mlflow_client.experiment(client, config).experiment_id])
    return run


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`stop_at(160)`: Ctrl-C when the checkpoint after 160 images is recorded."""
    recorded = _Tracked.on_checkpoint

    def at(samples: int) -> None:
        def record(tracked: _Tracked, saved: Artifact, samples_seen: int) -> None:
            recorded(tracked, saved, samples_seen)
            if samples_seen == samples:
                raise KeyboardInterrupt

        monkeypatch.setattr(_Tracked, "on_checkpoint", record)

    return at


@pytest.mark.usefixtures("store")
def test_stopped_run_resumes_elsewhere_by_run_id(
    maep: Any, tiny: Words, stop_at: Callable[[int], None], tmp_path: Path
) -> None:
    every = ["--loop.checkpoint_every", 64]
    assert maep(*tiny("--output", "whole", *every)).status == 0
    stop_at(192)
    assert maep(*tiny("--output", "stopped", *every, tracked=True)).status == 130
    run = only_run()
    assert run.info.status == "KILLED"
    stopped = Checkpoints(tmp_path / "stopped" / "checkpoints", 2).newest()
    assert stopped is not None
    assert run.data.tags["maep.data.fingerprint"] == stopped.config["data"]["fingerprint"]
    assert run.data.tags.get("mlflow.source.git.commit") == revision()
    stop_at(-1)
    ran = maep(*tiny("--output", "elsewhere", *every, "--resume", f"runs:/{run.info.run_id}"))
    assert ran.status == 0, ran
    ours, whole = (artifact.read(tmp_path / name / "model") for name in ("elsewhere", "whole"))
    assert weights(ours) == weights(whole)
    assert not (tmp_path / "elsewhere" / "checkpoints").exists()


@pytest.mark.usefixtures("store")
def test_finished_run_cannot_be_resumed(maep: Any, tiny: Words) -> None:
    assert maep(*tiny("--output", "whole", tracked=True)).status == 0
    run = only_run()
    assert run.info.status == "FINISHED"
    ran = maep(*tiny("--output", "elsewhere", "--resume", f"runs:/{run.info.run_id}"))
    assert ran.is_mistake("training state", "mae")


@pytest.mark.usefixtures("store")
def test_failed_run_is_failed_in_mlflow(maep: Any, tiny: Words) -> None:
    assert maep(*tiny("--output", "out", "--loop.lr", "1e30", "--loop.clip", "null", tracked=True)).status == 1
    assert only_run().info.status == "FAILED"


@pytest.mark.usefixtures("store")
def test_emptied_folder_starts_a_new_run(maep: Any, tiny: Words, tmp_path: Path) -> None:
    """A rerun of the same folder is the same run; with the folder gone, nothing of the old curves is mixed in."""
    line = tiny("--output", "out", tracked=True)
    assert maep(*line).status == maep(*line).status == 0
    first = only_run()
    shutil.rmtree(tmp_path / "out")
    assert maep(*line).status == 0
    config = absolute(TrackingConfig())
    client = mlflow_client.connect(config)
    runs = client.search_runs([mlflow_client.experiment(client, config).experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == 2
    assert first.info.run_id in {run.info.run_id for run in runs}


@pytest.mark.usefixtures("store")
def test_missing_picture_does_not_stop_training(
    maep: Any, tiny: Words, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noise = ("--data.name", "cifar10", "--data.root", str(tmp_path), "--loader.kind", "synthetic")
    assert maep(*tiny("--output", "out", "--model.image_size", "32", *noise, tracked=True)).status == 0
    assert re.search(r"picture .*\d+ images: .*CIFAR-10", caplog.text)


def test_synthetic_training_is_a_different_run() -> None:
    real = config.build(PretrainConfig, {})
    noise = config.build(PretrainConfig, {"loader": {"kind": "synthetic"}})
    assert of_training(real, {}) == of_training(config.build(PretrainConfig, {"loader": {"prefetch": 9}}), {})
    assert of_training(real, {}) != of_training(noise, {})


def test_keep_best_without_validation_is_a_warning(
    maep: Any, tiny: Words, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unheard = ("--validation.every_checkpoint", "true", "--validation.deadline_s", "0")
    assert maep(*tiny("--output", "out", "--loop.keep_best=-dev_reconstruction", *unheard)).status == 0
    assert "loop.keep_best: " in caplog.text
    assert not (tmp_path / "out" / "best").exists()


def test_sigterm_saves_a_checkpoint_and_exits_143(
    maep: Any, tiny: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _Shown.on_step

    def end(bar: _Shown, progress: TrainingProgress) -> None:
        shown(bar, progress)
        if progress.samples_seen == 96:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(_Shown, "on_step", end)
        ran = maep(*tiny("--output", "out"))
    assert ran.status == 143
    assert ran.end.err.startswith("maep pretrain: stopped at 96 images")
    assert maep(*tiny("--output", "out")).status == 0
    assert [line["redone"] for line in read(tmp_path / "out") if "redone" in line] == [0, 0]


def test_folder_is_locked_by_one_process(maep: Any, tiny: Words, tmp_path: Path) -> None:
    with storage.lock_folder(tmp_path / "out"):
        assert maep(*tiny("--output", "out")).is_mistake("out", "--output")
    assert maep(*tiny("--output", "out")).status == 0


def test_address_without_workers_is_refused(maep: Any, tiny: Words) -> None:
    ran = maep(*tiny("--output", "out", "--address", "127.0.0.1:6379"))
    assert ran.is_mistake("--address 127.0.0.1:6379", "--workers.num_workers")


def test_classifier_of_another_data_set_is_refused(maep: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("depth: 8\n")  # of digits, by default
    ran = maep("classifier", "train", "cifar10", "--config", "mine.yaml")
    assert ran.is_mistake("data.name: .*digits.*cifar10")


def test_refused_run_leaves_the_output_unchanged(maep: Any, tiny: Words, tmp_path: Path) -> None:
    assert maep(*tiny("--output", "out")).status == 0
    before = (tmp_path / "out" / "config.yaml").read_text()
    assert "seed: 0" in before
    assert maep(*tiny("--output", "out", "--loop.seed", 1)).is_mistake("loop.seed=0", "--output")
    assert (tmp_path / "out" / "config.yaml").read_text() == before


@pytest.mark.usefixtures("store")
@pytest.mark.slow
def test_validation_metrics_are_on_the_run(maep: Any, tiny: Words, tmp_path: Path) -> None:
    line = tiny("--output", "out", "--validation.every_checkpoint", "true", tracked=True)
    ran = maep(*line, "--loop.keep_best=-dev_reconstruction")
    assert ran.status == 0, ran
    assert re.search(r"320.*  dev_reconstruction ", ran.err)
    measured = only_run().data.metrics["dev_reconstruction"]
    found = validate(tmp_path / "out" / "model", config.load(PretrainConfig, tmp_path / "out" / "config.yaml"))
    assert measured == found["dev_reconstruction"]
    assert artifact.read(tmp_path / "out" / "best").kind == "mae"
