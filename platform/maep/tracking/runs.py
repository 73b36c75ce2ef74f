"""One MLflow run for one training, search trial or evaluation, reopened by its key when the same command runs again.

A run never slows or stops what it records: metrics are buffered (`outbox`), and a checkpoint or picture that cannot
be uploaded is tried again with the next one and at the end. Only opening a run fails, when nothing answers.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from maep import storage
from maep.errors import ArtifactError, UnavailableError
from maep.tracking import client as mlflow_client
from maep.tracking import places
from maep.tracking.client import TrackingConfig, absolute, hide_secrets
from maep.tracking.outbox import Outbox, Point, Refused

if TYPE_CHECKING:
    from maep.artifact import Artifact

__all__ = ["Checkpoint", "Run", "TrackingConfig", "checkpoints", "close_run", "open_run", "ui_command"]

Status = Literal["FINISHED", "FAILED", "KILLED"]
KEY = "maep.key"
_CHECKPOINT = "maep.checkpoint"  # .uri, .sha256, .samples_seen: the newest
_CHECKPOINTS = "maep.checkpoints."  # one tag for each that was kept
_FINISH_SECONDS = 60.0
_BATCH = 100  # MLflow's limit of parameters or tags in a call
_VALUE = 6000  # MLflow's limit of a parameter's characters
_log = logging.getLogger("maep.tracking")


@dataclass(frozen=True)
class Checkpoint:
    """An uploaded artifact of a run: where it lies, its identity, and the training images seen when it was written."""

    uri: str
    manifest_sha256: str
    samples_seen: int


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
        """Uploads an artifact, manifest last, and records URI, manifest sha256 and samples seen on the run."""

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
    a tag `maep.changed.<key>`. Metrics up to what the run already has are not logged twice.
    Raises UnavailableError, within about ten seconds, if no tracking server answers.
    """
    if not config.enabled:
        return _NoRun()
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
        _log_params(client, run, flatten(params), tags or {})
    return _MlflowRun(client, config, run)


def close_run(config: TrackingConfig, run_id: str, status: Status) -> None:
    """Ends the run of a process that cannot do so any more (a killed trial's run would stay RUNNING for ever)."""
    client = mlflow_client.connect(config)
    with mlflow_client.translated(absolute(config).uri or ""):
        client.set_terminated(run_id, status)


def checkpoints(tags: Mapping[str, str]) -> list[Checkpoint]:
    """The checkpoints that a run's `tags` record, oldest first, the last recorded one at the end."""
    found = [Checkpoint(**json.loads(value)) for name, value in tags.items() if name.startswith(_CHECKPOINTS)]
    newest = tags.get(f"{_CHECKPOINT}.sha256")
    return sorted(found, key=lambda c: (c.samples_seen, c.manifest_sha256 == newest, c.uri))


def newest_checkpoint(tags: Mapping[str, str]) -> Checkpoint | None:
    """The checkpoint that a run recorded last."""
    uri = tags.get(f"{_CHECKPOINT}.uri")
    if uri is None:
        return None
    return Checkpoint(uri, tags[f"{_CHECKPOINT}.sha256"], int(tags[f"{_CHECKPOINT}.samples_seen"]))


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
        key = f"{prefix}{re.sub(r'[^A-Za-z0-9_. :/-]', '_', str(name))}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{key}.")
        else:
            flat[key[:250]] = str(value)[:_VALUE]
    return flat


class _MlflowRun:
    def __init__(self, client: Any, config: TrackingConfig, run: Any) -> None:
        assert config.uri is not None
        self._client, self._uri = client, config.uri
        self._run_id: str = run.info.run_id
        self._files: str = run.info.artifact_uri
        root = config.artifact_uri
        # An experiment made earlier keeps its own location, so the one that was asked for is taken from the config.
        self._root = storage.join(root, config.experiment, self._run_id, "artifacts") if root else self._files
        self._recorded = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
        self._checkpoints = {c.manifest_sha256: c for c in checkpoints(run.data.tags)}
        self._later: list[tuple[str, Callable[[], None]]] = []
        self._complained: set[str] = set()
        self._finished = False
        self._outbox = Outbox(self._send, hide_secrets(self._uri))

    @property
    def run_id(self) -> str | None:
        return self._run_id

    def log_metrics(self, values: Mapping[str, float], samples_seen: int) -> None:
        # A restart repeats the steps after its checkpoint: what the run has of them stays.
        new = {key: value for key, value in values.items() if samples_seen > self._recorded.get(key, -1)}
        if new:
            self._outbox.add(new, samples_seen)

    def log_picture(self, path: str | Path, name: str) -> None:
        path = Path(path)
        target = name if name.endswith(path.suffix) else f"{name}{path.suffix}"
        self._upload(path, f"pictures/{target}")

    def log_file(self, path: str | Path, folder: str = "files") -> None:
        self._upload(Path(path), f"{folder.strip('/')}/{Path(path).name}")

    def log_checkpoint(self, artifact: Artifact, samples_seen: int) -> None:
        # A killed process resumes after this checkpoint and logs nothing before it again.
        if not self._outbox.away:
            self._outbox.flush(timeout=5.0)
        self._try(f"checkpoint {artifact.folder}", lambda: self._put_checkpoint(artifact, samples_seen))

    def finish(self, status: Status = "FINISHED") -> None:
        if self._finished:
            return
        self._finished = True
        if self._outbox.away:
            _log.warning("waiting up to %.0f s for MLflow to take the last metrics", _FINISH_SECONDS)
        deadline = time.monotonic() + _FINISH_SECONDS
        left = self._outbox.close(_FINISH_SECONDS)
        if left:
            _log.warning("MLflow at %s is away: %d metric values are lost", hide_secrets(self._uri), left)
        self._until(deadline, self._drain)
        for what, _ in self._later:
            _log.warning("%s was not recorded", what)
        self._later.clear()
        end = f"the end of run {self._run_id}"
        self._until(deadline, lambda: self._attempt(end, lambda: self._client.set_terminated(self._run_id, status)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def _send(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        metrics = [Metric(point.key, point.value, point.timestamp, point.step) for point in points]
        try:
            self._client.log_batch(self._run_id, metrics=metrics)
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise Refused(hide_secrets(str(error))) from None
            raise UnavailableError(hide_secrets(" ".join(str(error).split())[:300])) from None

    def _upload(self, path: Path, name: str) -> None:
        assert path.is_file(), path
        uri = storage.join(self._files, name)
        self._try(f"{name} ({path})", lambda: places.put_file(path, uri, self._uri))

    def _put_checkpoint(self, artifact: Artifact, samples_seen: int) -> None:
        known = self._checkpoints.get(artifact.sha256)
        if known is None or known.samples_seen != samples_seen:
            uri = storage.join(self._root, "checkpoints", str(samples_seen))
            if any(other.uri == uri for other in self._checkpoints.values()):
                uri = f"{uri}-{artifact.sha256[:8]}"  # what is recorded is never overwritten
            places.put(artifact, uri, self._uri)
            known = Checkpoint(uri, artifact.sha256, samples_seen)
        self._client.log_batch(
            self._run_id,
            tags=mlflow_client.tags(
                {
                    f"{_CHECKPOINTS}{samples_seen:015d}.{artifact.sha256[:8]}": json.dumps(asdict(known)),
                    f"{_CHECKPOINT}.uri": known.uri,
                    f"{_CHECKPOINT}.sha256": known.manifest_sha256,
                    f"{_CHECKPOINT}.samples_seen": str(samples_seen),
                }
            ),
        )
        self._checkpoints[artifact.sha256] = known

    def _try(self, what: str, action: Callable[[], None]) -> None:
        """Runs what failed earlier, then `action`; from the first that fails on, all wait for the next call."""
        self._later.append((what, action))
        self._drain()

    def _drain(self) -> bool:
        while self._later:
            if not self._attempt(*self._later[0]):
                return False
            self._later.pop(0)
        return True

    def _attempt(self, what: str, action: Callable[[], None]) -> bool:
        """Whether `action` is done with, be it that no later try could help."""
        try:
            with mlflow_client.translated(self._uri):
                action()
        except (ArtifactError, FileNotFoundError) as error:  # it was deleted meanwhile
            _log.warning("%s cannot be recorded: %s", what, error)
        except (UnavailableError, OSError) as error:
            if what not in self._complained:
                self._complained.add(what)
                _log.warning("%s is to be recorded later: %s", what, error)
            return False
        return True

    @staticmethod
    def _until(deadline: float, done: Callable[[], bool]) -> None:
        while not done() and time.monotonic() < deadline:
            time.sleep(1.0)


class _NoRun:
    run_id: str | None = None

    def log_metrics(self, values: Mapping[str, float], samples_seen: int) -> None:
        pass

    def log_picture(self, path: str | Path, name: str) -> None:
        pass

    def log_file(self, path: str | Path, folder: str = "files") -> None:
        pass

    def log_checkpoint(self, artifact: Artifact, samples_seen: int) -> None:
        pass

    def finish(self, status: Status = "FINISHED") -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _log_params(client: Any, run: Any, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    recorded = run.data.params
    new = [Param(key, value) for key, value in params.items() if key not in recorded]
    changed = {f"maep.changed.{k}"[:250]: v for k, v in params.items() if recorded.get(k, v) != v}
    labels = mlflow_client.tags({**tags, **changed})
    for start in range(0, max(len(new), len(labels)), _BATCH):
        client.log_batch(run.info.run_id, params=new[start : start + _BATCH], tags=labels[start : start + _BATCH])
