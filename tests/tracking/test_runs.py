from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from stack import free_ports

from maep import __version__, artifact, config, storage
from maep.errors import ConfigError, UnavailableError
from maep.tracking import client as mlflow_client
from maep.tracking.checkpoints import checkpoints, newest_checkpoint
from maep.tracking.runs import PARENT, Run, TrackingConfig, close_left, flatten, open_run, revision, ui_command


def entity(tracking: TrackingConfig, run_id: str | None) -> Any:
    return mlflow_client.connect(tracking).get_run(run_id)


def history(tracking: TrackingConfig, run_id: str | None, key: str) -> dict[int, float]:
    points = mlflow_client.connect(tracking).get_metric_history(run_id, key)
    steps = {point.step: point.value for point in points}
    assert len(steps) == len(points), "a step was recorded twice"
    return steps


def test_importing_runs_imports_neither_mlflow_nor_torch() -> None:
    code = (
        "import sys, maep.tracking.runs; print([n for n in ('mlflow', 'torch', 'httpx', 'boto3') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_run_records_params_tags_and_metrics_by_samples_seen(tracking: TrackingConfig, tmp_path: Path) -> None:
    with open_run(tracking, "first", "k", {"model": {"width": 64}, "eps": 0.1}, {"verb": "pretrain"}) as run:
        for step in range(2500):
            run.log_metrics({"loss": 1 / (1 + step), "lr": 0.5}, samples_seen=64 * step)
    found = entity(tracking, run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "first"
    assert found.data.params == {"model.width": "64", "eps": "0.1"}
    assert found.data.tags["verb"] == "pretrain"
    assert found.data.tags["maep.version"] == __version__
    assert found.data.tags.get("mlflow.source.git.commit") == revision()
    assert history(tracking, run.run_id, "loss") == {64 * step: 1 / (1 + step) for step in range(2500)}
    assert (tmp_path / "outputs/mlflow/mlflow.db").is_file()
    assert Path(found.info.artifact_uri).is_relative_to(tmp_path / "outputs/mlflow/artifacts")


def test_the_same_key_continues_the_same_run(tracking: TrackingConfig) -> None:
    with open_run(tracking, "a", "key of 'this' run", {"x": 1}) as first:
        first.log_metrics({"loss": 3.0}, 10)
        first.log_metrics({"loss": 2.0}, 20)
    with open_run(tracking, "a", "key of 'this' run", {"x": 1, "y": 5}) as second:
        assert entity(tracking, second.run_id).info.status == "RUNNING"
        second.log_metrics({"loss": 2.0}, 20)  # the step after the checkpoint, trained again
        second.log_metrics({"loss": 1.0}, 30)
    with open_run(tracking, "b", "another", {}) as other:
        pass
    assert first.run_id == second.run_id != other.run_id
    assert history(tracking, first.run_id, "loss") == {10: 3.0, 20: 2.0, 30: 1.0}
    assert entity(tracking, first.run_id).data.params == {"x": "1", "y": "5"}


def test_system_metrics_are_recorded_on_request(tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the names that MLflow's pages know, and numbered on when the run is reopened."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    asked, key, before = replace(tracking, system_metrics=True), "system/disk_usage_percentage", 0
    for _ in range(2):
        with open_run(asked, "a", "k", {}) as run:
            limit = time.monotonic() + 60
            while len(history(tracking, run.run_id, key)) <= before:
                assert time.monotonic() < limit
        before = len(history(tracking, run.run_id, key))
    values = history(tracking, run.run_id, key)
    assert list(values) == list(range(before))
    assert all(0 <= value <= 100 for value in values.values())
    with open_run(tracking, "a", "other", {}) as run:
        pass
    assert not entity(tracking, run.run_id).data.metrics


def test_a_changed_parameter_becomes_a_tag(tracking: TrackingConfig) -> None:
    open_run(tracking, "a", "k", {"train": {"lr": 0.1}}).finish()
    run = open_run(tracking, "a", "k", {"train": {"lr": 0.2}})
    run.finish()
    data = entity(tracking, run.run_id).data
    assert data.params == {"train.lr": "0.1"}
    assert data.tags["maep.changed.train.lr"] == "0.2"


def test_more_params_than_one_call_takes_and_values_over_the_limit(tracking: TrackingConfig) -> None:
    params = {f"p{number}": number for number in range(250)} | {"long": "x" * 10_000}
    run = open_run(tracking, "a", "k", params)
    run.finish()
    found = entity(tracking, run.run_id).data.params
    assert len(found) == 251
    assert found["long"] == "x" * 6000


def test_a_nonfinite_loss_and_an_invalid_metric_name_are_recorded(tracking: TrackingConfig) -> None:
    with open_run(tracking, "a", "k", {}) as run:
        run.log_metrics({"loss": math.nan, "grad|norm (max)": math.inf, "fine": 1.0}, 1)
    assert math.isnan(history(tracking, run.run_id, "loss")[1])
    assert history(tracking, run.run_id, "grad_norm _max_")[1] > 1e300
    assert history(tracking, run.run_id, "fine") == {1: 1.0}


def test_an_exception_marks_the_run_failed_and_an_interrupt_killed(tracking: TrackingConfig) -> None:
    def dies(key: str, error: type[BaseException]) -> None:
        with open_run(tracking, "a", key, {}) as run:
            run.log_metrics({"loss": 1.0}, 1)
            ended.append(run)
            raise error

    ended: list[Run] = []
    for key, error in {"1": RuntimeError, "2": KeyboardInterrupt}.items():
        with pytest.raises(error):
            dies(key, error)
    failed, killed = ended
    left = open_run(tracking, "a", "3", {}, {PARENT: str(failed.run_id)})
    over = open_run(tracking, "a", "4", {}, {PARENT: str(failed.run_id)})
    over.finish()
    assert close_left(tracking, str(failed.run_id)) == {"4"}
    assert history(tracking, failed.run_id, "loss") == {1: 1.0}
    runs = (failed, killed, left)
    assert [entity(tracking, run.run_id).info.status for run in runs] == ["FAILED", "KILLED", "KILLED"]
    left.finish("KILLED")


def test_checkpoints_are_uploaded_and_recorded(
    tracking: TrackingConfig, make_artifact: Callable[..., artifact.Artifact], tmp_path: Path
) -> None:
    early, late = make_artifact(1, "early", state=True), make_artifact(2, "late", state=True)
    final = make_artifact(3, "final")
    with open_run(tracking, "a", "k", {}) as run:
        run.log_checkpoint(early, 1000)
        run.log_checkpoint(late, 20000)
        run.log_checkpoint(final, 20000)  # the finished purifier, after as many images as the last checkpoint
        run.log_checkpoint(final, 20000)  # a restart logs it again
    tags = entity(tracking, run.run_id).data.tags
    recorded = checkpoints(tags)
    assert [(c.samples_seen, c.manifest_sha256) for c in recorded] == [
        (1000, early.sha256),
        (20000, late.sha256),
        (20000, final.sha256),
    ]
    assert newest_checkpoint(tags) == recorded[-1]
    assert recorded[0].uri.endswith(f"{run.run_id}/artifacts/checkpoints/1000")
    for checkpoint in recorded:
        assert artifact.read(checkpoint.uri).sha256 == checkpoint.manifest_sha256


def test_an_interrupted_upload_is_never_recorded(
    tracking: TrackingConfig,
    make_artifact: Callable[..., artifact.Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a kill at the second file nothing is recorded, and a repeated upload is complete."""

    class Killed(BaseException):
        pass

    copied: list[str] = []
    copy = storage._copy

    def until_killed(source: str, target: str) -> None:
        if len(copied) == 2:
            raise Killed
        copied.append(target)
        copy(source, target)

    made = make_artifact(1, state=True)
    run = open_run(tracking, "a", "torn", {})
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_copy", until_killed)
        with pytest.raises(Killed):
            run.log_checkpoint(made, 10)
    assert len(copied) == 2
    assert newest_checkpoint(entity(tracking, run.run_id).data.tags) is None
    with open_run(tracking, "a", "torn", {}) as again:
        again.log_checkpoint(made, 10)
    recorded = newest_checkpoint(entity(tracking, again.run_id).data.tags)
    assert again.run_id == run.run_id
    assert recorded is not None
    assert artifact.read(recorded.uri).sha256 == made.sha256


def test_artifact_uri_applies_to_an_experiment_created_without_it(
    tracking: TrackingConfig, make_artifact: Callable[..., artifact.Artifact], tmp_path: Path
) -> None:
    open_run(tracking, "a", "k", {}).finish()
    elsewhere = TrackingConfig(artifact_uri=str(tmp_path / "elsewhere"))
    with open_run(elsewhere, "a", "k", {}) as run:
        run.log_checkpoint(make_artifact(1), 5)
    (recorded,) = checkpoints(entity(tracking, run.run_id).data.tags)
    assert Path(recorded.uri).is_relative_to(tmp_path / "elsewhere")


def test_pictures_and_files(tracking: TrackingConfig, tmp_path: Path) -> None:
    (tmp_path / "strip.png").write_bytes(b"picture")
    (tmp_path / "result.json").write_text("{}")
    with open_run(tracking, "a", "k", {}) as run:
        run.log_picture(tmp_path / "strip.png", "reconstruction-0001000")
        run.log_file(tmp_path / "result.json", "evaluation")
    root = Path(entity(tracking, run.run_id).info.artifact_uri)
    assert (root / "pictures/reconstruction-0001000.png").read_bytes() == b"picture"
    assert (root / "evaluation/result.json").read_text() == "{}"
    listed = mlflow_client.connect(tracking).list_artifacts(run.run_id)
    assert sorted(entry.path for entry in listed) == ["evaluation", "pictures"]


def test_tracking_switched_off_needs_no_store(
    tmp_path: Path, make_artifact: Callable[..., artifact.Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_run(TrackingConfig(enabled=False), "a", "k", {}) as run:
        run.log_metrics({"loss": 1.0}, 1)
        run.log_checkpoint(make_artifact(1), 1)
    assert run.run_id is None
    assert not (tmp_path / "outputs").exists()


def test_an_unreachable_server_at_the_start_is_one_line() -> None:
    (port,) = free_ports(1)
    with pytest.raises(UnavailableError) as caught:
        open_run(TrackingConfig(uri=f"http://me:secret@127.0.0.1:{port}"), "a", "k", {})
    message = str(caught.value)
    assert f"http://127.0.0.1:{port}" in message
    assert "--tracking.enabled false" in message
    assert "secret" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("status", "cure"), [(401, "MLFLOW_TRACKING_USERNAME"), (403, "MLFLOW_TRACKING_USERNAME"), (404, "start it")]
)
def test_a_server_that_refuses_is_one_line(status: int, cure: str) -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuses) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        with pytest.raises(UnavailableError) as caught:
            open_run(TrackingConfig(uri=f"http://127.0.0.1:{refusing.server_port}"), "a", "k", {})
        refusing.shutdown()
    assert cure in str(caught.value)
    assert str(status) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnavailableError, match=r"--tracking\.enabled false"):
        open_run(TrackingConfig(uri=f"sqlite:///{tmp_path}/file/mlflow.db"), "a", "k", {})


def test_a_file_that_is_not_a_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be taken for one" * 40)
    with pytest.raises(UnavailableError, match=r"sqlite:.*not a database"):
        open_run(TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db"), "a", "k", {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"uri": "mlruns"}, "http://HOST:PORT"),
        ({"uri": "file:///tmp/mlruns"}, "sqlite:///FILE"),
        ({"uri": "postgresql://me:secret@db/maep"}, "artifact_uri"),
        ({"experiment": " "}, "experiment"),
        ({"url": "http://localhost"}, "did you mean 'uri'?"),
    ],
)
def test_an_invalid_configuration_names_the_key_and_the_fix(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(TrackingConfig, values, "tracking")
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_deleted_experiment_is_a_configuration_error(tracking: TrackingConfig) -> None:
    client = mlflow_client.connect(tracking)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(ConfigError, match="gone"):
        open_run(TrackingConfig(experiment="gone"), "a", "k", {})


def test_the_command_that_opens_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ui_command(TrackingConfig())
    assert command.endswith(f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/outputs/mlflow/mlflow.db")
    assert ui_command(TrackingConfig(uri="http://me:secret@host:5000")).endswith("-m webbrowser http://host:5000")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://me:p@ss@host:1/x failed", "at http://host:1/x failed"),
        ("mssql://h/db?odbc_connect=x;PWD=abc;y=1", "mssql://h/db?odbc_connect=x;PWD=...;y=1"),
        ("mail me@host or s3://bucket/a@b", "mail me@host or s3://bucket/a@b"),
    ],
)
def test_secrets_are_removed_from_messages(text: str, shown: str) -> None:
    assert mlflow_client.hide_secrets(text) == shown


def test_flatten_uses_mlflows_alphabet() -> None:
    assert flatten({"a": {"b c": [1, 2], "d(e)": None}, "f": {}}) == {"a.b c": "[1, 2]", "a.d_e_": "None", "f": "{}"}


@pytest.mark.slow
def test_two_processes_that_start_at_once_create_one_store(tmp_path: Path) -> None:
    code = (
        "import json, sys; from maep.tracking.runs import *;"
        "run = open_run(TrackingConfig(), sys.argv[1], sys.argv[1], {}); run.log_metrics({'x': 1.0}, 1); run.finish();"
        "print(json.dumps(run.run_id))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, name], cwd=tmp_path, stdout=subprocess.PIPE) for name in "ab"
    ]
    ids = [json.loads(process.communicate(timeout=200)[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0]
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/outputs/mlflow/mlflow.db")
    assert [entity(tracking, run_id).data.metrics for run_id in ids] == [{"x": 1.0}] * 2
