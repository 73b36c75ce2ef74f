"""One MLflow run for one training, search trial or evaluation, reopened by its key when the same command runs again.

A run never slows or stops what it records: metrics are buffered (`outbox`), and a checkpoint or picture that cannot
be uploaded is tried again with the next one and at the end. Only opening a run fails, when nothing answers.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from maep import __version__
from maep.tracking import client as mlflow_client
from maep.tracking.client import TrackingConfig, absolute, hide_secrets
from maep.tracking.recording import MlflowRun, NoRun, Status
from maep.tracking.revision import revision

if TYPE_CHECKING:
    from maep.artifact import Artifact

__all__ = ["Run", "Status", "TrackingConfig", "close_left", "flatten", "open_run", "ui_command"]

KEY = "maep.key"
PARENT = "mlflow.parentRunId"  # MLflow's own tag, by which its pages nest runs
_COMMIT = "mlflow.source.git.commit"  # MLflow's own too, which its pages show as the source
_BATCH = 100  # MLflow's limit of parameters or tags in a call
_VALUE = 6000  # MLflow's limit of a parameter's characters
_MOST_RUNS = 50_000  # MLflow's limit of runs in an answer


class Run(Protocol):
    """What a training loop, a search or an evaluation writes to. `run_id` is None where tracking is off."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run."""

    def log_metrics(self, values: Mapping[str, float], samples_seen: int) -> None:
        """Queues metrics at `samples_seen` (MLflow's step) and returns at once."""

    def log_picture(self, path: str | Path, name: str) -> None:
        """Uploads a picture file as `pictures/<name>` (its suffix is kept)."""

    def log_file(self, path: str | Path, folder: str = "files") -> None:
        """Uploads a file into `folder` of the run."""

    def log_checkpoint(self, artifact: Artifact, samples_seen: int) -> None:
        """Uploads an artifact, manifest last, and records URI, manifest sha256 and samples seen on the run.

        With them go name and fingerprint of the data that it was trained on.
        """

    def finish(self, status: Status = "FINISHED") -> None:
        """Sends what is queued, at most a minute, and ends the run. A second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_run(
    config: TrackingConfig, name: str, key: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
) -> Run:
    """Opens the run of `key`: the one an earlier, interrupted command left, else a new one called `name`.

    `params` may nest; they are logged by dotted key. A value that differs from what the run recorded at first becomes
    a tag `maep.changed.<key>`. Metrics up to what the run already has are not logged twice. Tags say by which code it
    was made (maep.version and, where it is known, the git commit), of the last command that opened it.
    Raises UnavailableError, within about ten seconds, if no tracking server answers.
    """
    if not config.enabled:
        return NoRun()
    config = absolute(config)
    client = mlflow_client.connect(config)
    experiment = mlflow_client.experiment(client, config)
    key = key.replace("'", "_")
    assert config.uri is not None
    with mlflow_client.translated(config.uri):
        found = client.search_runs([experiment.experiment_id], filter_string=f"tags.`{KEY}` = '{key}'", max_results=1)
        if found:
            run = client.get_run(found[0].info.run_id)
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = client.create_run(experiment.experiment_id, tags={KEY: key}, run_name=name)
        _log_params(client, run, flatten(params), {**_code(), **(tags or {})})
    return MlflowRun(client, config, run)


def close_left(config: TrackingConfig, parent_id: str) -> set[str]:
    """Ends, as KILLED, the runs below run `parent_id` that a killed process left RUNNING: nobody else would.

    Returns the keys of those that are FINISHED or FAILED, and so have all there is to record.
    """
    client = mlflow_client.connect(config)
    experiment = mlflow_client.experiment(client, config)
    below, ended = f"tags.`{PARENT}` = '{parent_id}'", set[str]()
    with mlflow_client.translated(absolute(config).uri or ""):
        for run in client.search_runs([experiment.experiment_id], filter_string=below, max_results=_MOST_RUNS):
            if run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "KILLED")
            elif run.info.status in ("FINISHED", "FAILED") and KEY in run.data.tags:
                ended.add(run.data.tags[KEY])
    return ended


def ui_command(config: TrackingConfig) -> str:
    """The command that opens MLflow's pages on the store of `config`."""
    uri = hide_secrets(absolute(config).uri or "")
    if uri.startswith(("http://", "https://")):
        return f"{shlex.quote(sys.executable)} -m webbrowser {shlex.quote(uri)}"
    beside = Path(sys.executable).parent / "mlflow"  # the environment need not be activated
    command = str(beside) if beside.exists() else "mlflow"
    return f"{shlex.quote(command)} ui --backend-store-uri {shlex.quote(uri)}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested `values` as dotted keys and text, each cut to MLflow's limits."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = mlflow_client.clean_name(f"{prefix}{name}")
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = str(value)[:_VALUE]
    return flat


def _code() -> dict[str, str]:
    """Tags that say which code writes."""
    commit = revision()
    return {"maep.version": __version__, **({_COMMIT: commit} if commit is not None else {})}


def _log_params(client: Any, run: Any, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    recorded = run.data.params
    new = [Param(key, value) for key, value in params.items() if key not in recorded]
    changed = {f"maep.changed.{k}"[:250]: v for k, v in params.items() if recorded.get(k, v) != v}
    labels = mlflow_client.tags({**tags, **changed})
    for start in range(0, max(len(new), len(labels)), _BATCH):
        client.log_batch(run.info.run_id, params=new[start : start + _BATCH], tags=labels[start : start + _BATCH])
