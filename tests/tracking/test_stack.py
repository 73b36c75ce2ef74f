"""Tracking with a real MLflow server and a real S3, which these tests start on loopback."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stack import S3, MlflowServer
from train_toys import LOOP, MAE, Heard

from maep import artifact, config, storage
from maep.errors import ArtifactError, UnavailableError
from maep.tracking import client as mlflow_client
from maep.tracking import registry
from maep.tracking.checkpoints import checkpoints
from maep.tracking.resolve import cache_folder, resolve
from maep.tracking.runs import TrackingConfig, open_run
from maep.train.config import PretrainConfig
from maep.train.loop.callback import TrainingProgress
from maep.train.ray.workers import train
from maep_jobs.training import make_callbacks

Make = Callable[..., artifact.Artifact]
pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


def test_a_server_restarted_mid_run_has_every_metric(
    server: MlflowServer, make_artifact: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = TrackingConfig(uri=server.uri)
    picture = tmp_path / "strip.png"
    picture.write_bytes(b"picture")
    with open_run(tracking, "a", "dies", {"x": 1}) as run:
        for step in range(1500):
            run.log_metrics({"loss": float(step), "lr": 0.1}, step)
        run.log_checkpoint(make_artifact(1, "early"), 1500)  # by now the server has a part
        server.kill()
        for step in range(1500, 4000):
            run.log_metrics({"loss": float(step), "lr": 0.1}, step)
        run.log_checkpoint(make_artifact(2, "late"), 4000)
        run.log_picture(picture, "strip")
        server.start()
        for step in range(4000, 5000):
            run.log_metrics({"loss": float(step), "lr": 0.1}, step)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    (away,) = [line for line in told if "Connection refused" in line and "checkpoint" not in line]
    assert server.uri in away
    client = mlflow_client.connect(tracking)
    for key in ("loss", "lr"):
        assert [point.step for point in client.get_metric_history(run.run_id, key)] == list(range(5000))
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert [c.samples_seen for c in checkpoints(found.data.tags)] == [1500, 4000]
    assert [entry.path for entry in client.list_artifacts(run.run_id, "pictures")] == ["pictures/strip.png"]


def test_training_during_an_outage_of_mlflow_records_every_metric_in_one_run(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server is down from image 160 to 480 of 640; there are checkpoints before, during and after the outage."""
    loop = LOOP | {"samples": 640, "keep_checkpoints": 10}
    settings = config.build(PretrainConfig, {"model": MAE, "mask_ratio": 0.5, "loop": loop})
    tracking = TrackingConfig(uri=server.uri, experiment="outage")

    class Outage(Heard):
        def on_step(self, progress: TrainingProgress) -> None:
            super().on_step(progress)
            if progress.samples_seen == 160:
                server.kill()
            if progress.samples_seen == 480:
                server.start()

    heard = Outage()
    output = tmp_path / "out"
    result = train(settings, output, lambda: [*make_callbacks("pretrain", settings, tracking, output), heard])
    assert any(server.uri in record.getMessage() for record in caplog.records)
    client = mlflow_client.connect(tracking)
    (found,) = client.search_runs([mlflow_client.experiment(client, tracking).experiment_id])
    assert found.info.status == "FINISHED"
    steps = list(range(32, 641, 32))
    assert [progress.samples_seen for progress in heard.steps] == steps
    losses = [progress.metrics["loss"] for progress in heard.steps]
    for key in ("loss", "lr", "images_per_s"):
        history = client.get_metric_history(found.info.run_id, key)
        assert sorted(point.step for point in history) == steps
        if key == "loss":
            assert [point.value for point in sorted(history, key=lambda point: point.step)] == losses
    recorded = checkpoints(found.data.tags)
    assert [c.samples_seen for c in recorded] == [96, 192, 288, 384, 480, 576, 640]
    assert recorded[-1].manifest_sha256 == result.sha256


def test_artifacts_through_the_servers_proxy(server: MlflowServer, make_artifact: Make) -> None:
    tracking = TrackingConfig(uri=server.uri)
    early, late = make_artifact(1, "early", state=True), make_artifact(2, "late", state=True)
    with open_run(tracking, "a", "proxied", {}) as run:
        run.log_checkpoint(early, 10)
        run.log_checkpoint(late, 20)
    (_, recorded) = checkpoints(mlflow_client.connect(tracking).get_run(run.run_id).data.tags)
    assert recorded.uri.startswith("mlflow-artifacts:/")
    found = resolve(f"runs:/{run.run_id}", tracking)
    assert found.sha256 == late.sha256
    assert found.state() == {"samples_seen": 2}
    assert resolve(f"runs:/{run.run_id}/checkpoints/10", tracking).sha256 == early.sha256
    with pytest.raises((ArtifactError, UnavailableError)):
        resolve(f"runs:/{run.run_id}/checkpoints/11", tracking)

    of_run = registry.register(tracking, late, run.run_id, {"clean_accuracy": 0.9})
    of_none = registry.register(tracking, make_artifact(3, "elsewhere"))
    registry.set_alias(tracking, "champion", of_run)
    registry.set_alias(tracking, "candidate", of_none)
    shutil.rmtree(cache_folder())
    assert resolve("models:/purifier@champion", tracking).sha256 == late.sha256
    assert (
        resolve("models:/purifier@candidate", tracking).sha256 == artifact.read(late.folder.parent / "elsewhere").sha256
    )


def test_bytes_changed_behind_the_server_are_refused(server: MlflowServer, make_artifact: Make) -> None:
    tracking = TrackingConfig(uri=server.uri)
    with open_run(tracking, "a", "changed", {}) as run:
        run.log_checkpoint(make_artifact(1), 10)
    (stored,) = (server.folder / "artifacts").glob(f"*/{run.run_id}/artifacts/checkpoints/10")
    (stored / artifact.CARD).write_text("Another card.\n")
    with pytest.raises(ArtifactError):
        resolve(f"runs:/{run.run_id}", tracking)
    assert list(cache_folder().iterdir()) == []


def test_the_next_process_continues_the_run_of_a_killed_one(
    server: MlflowServer, make_artifact: Make, tmp_path: Path
) -> None:
    tracking = TrackingConfig(uri=server.uri)
    made = make_artifact(1)
    code = (
        "import os, sys; from maep import artifact; from maep.tracking.runs import *;"
        "run = open_run(TrackingConfig(uri=sys.argv[1]), 'a', 'killed', {'x': 1});"
        "[run.log_metrics({'loss': 1.0}, step) for step in range(100)];"
        "run.log_checkpoint(artifact.read(sys.argv[2]), 99); os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", code, server.uri, str(made.folder)], check=False, timeout=200)
    assert dead.returncode == -9
    with open_run(tracking, "a", "killed", {"x": 1}) as run:
        assert resolve(f"runs:/{run.run_id}", tracking).sha256 == made.sha256
        for step in range(50, 150):
            run.log_metrics({"loss": 1.0}, step)
    client = mlflow_client.connect(tracking)
    assert [point.step for point in client.get_metric_history(run.run_id, "loss")] == list(range(150))
    assert len(client.search_runs([client.get_run(run.run_id).info.experiment_id], "tags.`maep.key` = 'killed'")) == 1


def test_checkpoints_and_versions_on_s3(tracking: TrackingConfig, s3: S3, make_artifact: Make, tmp_path: Path) -> None:
    tracking = TrackingConfig(artifact_uri=f"s3://{s3.bucket}/tracked")
    made = make_artifact(1, state=True)
    picture = tmp_path / "strip.png"
    picture.write_bytes(b"picture")
    with open_run(tracking, "a", "k", {}) as run:
        run.log_checkpoint(made, 10)
        run.log_picture(picture, "strip")
    (recorded,) = checkpoints(mlflow_client.connect(tracking).get_run(run.run_id).data.tags)
    assert recorded.uri == f"s3://{s3.bucket}/tracked/maep/{run.run_id}/artifacts/checkpoints/10"
    assert storage.read_bytes(f"s3://{s3.bucket}/tracked/maep/{run.run_id}/artifacts/pictures/strip.png") == b"picture"
    version = registry.register(tracking, made, run.run_id)
    for uri in (
        recorded.uri,
        f"runs:/{run.run_id}",
        f"runs:/{run.run_id}/checkpoints/10",
        f"models:/purifier/{version}",
    ):
        shutil.rmtree(cache_folder(), ignore_errors=True)
        found = resolve(uri, tracking)
        assert found.sha256 == made.sha256
        assert found.folder == cache_folder() / made.sha256
        assert found.state() == {"samples_seen": 1}


def test_tampering_on_s3_is_refused(tracking: TrackingConfig, s3: S3, make_artifact: Make) -> None:
    tracking = TrackingConfig(artifact_uri=f"s3://{s3.bucket}/tampered")
    number = registry.register(tracking, make_artifact(1))
    uri = registry.by_version(tracking, number).uri
    artifact.upload(make_artifact(2), uri)  # a valid artifact, but not the registered one
    with pytest.raises(ArtifactError, match="sha256"):
        resolve(f"models:/purifier/{number}", tracking)
    storage.write_bytes(f"{uri}/{artifact.CARD}", b"Another card.\n")
    with pytest.raises(ArtifactError):
        resolve(uri, tracking)
    with pytest.raises(ArtifactError, match="MANIFEST"):
        resolve(f"s3://{s3.bucket}/nothing/here", tracking)
    assert list(cache_folder().iterdir()) == []


def test_a_missing_bucket_is_one_line(s3: S3) -> None:
    with pytest.raises(UnavailableError, match="s3://nowhere-at-all/"):
        storage.list_files("s3://nowhere-at-all/x")


def test_wrong_keys_are_one_line(
    tracking: TrackingConfig, s3: S3, make_artifact: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UnavailableError, match="AWS keys"):
        registry.register(TrackingConfig(artifact_uri=f"s3://{s3.bucket}/x"), make_artifact(1))
