"""One MLflow run per training, search trial or evaluation, reopened by its key when the command is re-run."""

from __future__ import annotations

import functools
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maep import __version__
from maep.config import flatten as config_flatten
from maep.tracking import client as mlflow_client
from maep.tracking.client import TrackingConfig, absolute, hide_secrets
from maep.tracking.recording import MlflowRun, Run, Status

__all__ = ["Run", "Status", "TrackingConfig", "close_left", "flatten", "open_run", "ui_command"]

KEY = "maep.key"
PARENT = "mlflow.parentRunId"  # MLflow's tag, by which its pages nest runs
_COMMIT = "mlflow.source.git.commit"  # MLflow's tag, shown as the source
_BATCH = 100  # MLflow's limit of parameters or tags in a call
_VALUE = 6000  # MLflow's limit of a parameter's characters
_MOST_RUNS = 50_000  # MLflow's limit of runs in an answer


def open_run(
    config: TrackingConfig, name: str, key: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
) -> Run:
    """Opens the run with `key`: that of an earlier, interrupted command, else a new one called `name`.

    `params` may nest; they are logged by dotted key. A value that differs from the recorded one becomes a tag
    `maep.changed.<key>`. Metrics that the run already has are not logged again. Tags record the version of the code
    (maep.version and, if known, the git commit) that opened it last. Raises UnavailableError within about ten seconds
    if the tracking server does not answer.
    """
    if not config.enabled:
        return Run()
    config = absolute(config)
    client = mlflow_client.connect(config)
    experiment = mlflow_client.experiment(client, config)
    key = key.replace("'", "_")
    with mlflow_client.translated(config.store):
        found = client.search_runs([experiment.experiment_id], filter_string=f"tags.`{KEY}` = '{key}'", max_results=1)
        if found:
            run = client.get_run(found[0].info.run_id)
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = client.create_run(experiment.experiment_id, tags={KEY: key}, run_name=name)
        _log_params(client, run, flatten(params), {**_code(), **(tags or {})})
    return MlflowRun(client, config, run)


def close_left(config: TrackingConfig, parent_id: str) -> set[str]:
    """Marks as KILLED the child runs of `parent_id` that a killed process left RUNNING.

    Returns the keys of the child runs that are FINISHED or FAILED, and so fully recorded.
    """
    client = mlflow_client.connect(config)
    experiment = mlflow_client.experiment(client, config)
    below, ended = f"tags.`{PARENT}` = '{parent_id}'", set[str]()
    with mlflow_client.translated(config.store):
        for run in client.search_runs([experiment.experiment_id], filter_string=below, max_results=_MOST_RUNS):
            if run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "KILLED")
            elif run.info.status in ("FINISHED", "FAILED") and KEY in run.data.tags:
                ended.add(run.data.tags[KEY])
    return ended


def ui_command(config: TrackingConfig) -> str:
    """The command that opens MLflow's pages for the store of `config`."""
    uri = hide_secrets(config.store)
    if uri.startswith(("http://", "https://")):
        return f"{shlex.quote(sys.executable)} -m webbrowser {shlex.quote(uri)}"
    beside = Path(sys.executable).parent / "mlflow"  # the environment need not be activated
    command = str(beside) if beside.exists() else "mlflow"
    return f"{shlex.quote(command)} ui --backend-store-uri {shlex.quote(uri)}"


def flatten(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested `values` by dotted key as text, within MLflow's limits."""
    return {mlflow_client.clean_name(key): str(value)[:_VALUE] for key, value in config_flatten(values).items()}


def _code() -> dict[str, str]:
    """Tags that identify the running code."""
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


@functools.cache
def revision() -> str | None:
    """`commit_of` maep itself, cached."""
    return commit_of(Path(__file__).parents[1])


def commit_of(folder: Path) -> str | None:
    """The git commit of the checkout that contains the package in `folder`, with `-dirty` after local changes.

    None for an installed wheel, even inside another checkout, and without git.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *words: str) -> str | None:
    """Output of git; None where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
