"""`Run`, which records nothing, and `MlflowRun`, which records to MLflow without ever blocking the training."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from maep import storage
from maep.errors import ArtifactError, ConfigError, UnavailableError
from maep.tracking import artifact_store
from maep.tracking import client as mlflow_client
from maep.tracking.checkpoints import Checkpoint, checkpoints, to_tags
from maep.tracking.client import TrackingConfig, hide_secrets
from maep.tracking.metric_queue import MetricPoint, MetricQueue, Refused

if TYPE_CHECKING:
    from maep.artifact import Artifact

Status = Literal["FINISHED", "FAILED", "KILLED"]
_FINISH_SECONDS = 60.0
_log = logging.getLogger("maep.tracking")


class Run:
    """The run of a training, search or evaluation. This class records nothing, for `tracking.enabled: false`."""

    run_id: str | None = None
    """MLflow's id; None where tracking is off."""

    def log_metrics(self, values: Mapping[str, float], samples_seen: int) -> None:
        """Queues metrics at `samples_seen` (MLflow's step) and returns at once."""

    def log_picture(self, path: str | Path, name: str) -> None:
        """Uploads a picture file as `pictures/<name>`, with the file's suffix."""

    def log_file(self, path: str | Path, folder: str = "files") -> None:
        """Uploads a file into `folder` of the run."""

    def log_checkpoint(self, artifact: Artifact, samples_seen: int) -> None:
        """Uploads an artifact, manifest last, and records its URI, sha256, samples seen and training data as tags."""

    def finish(self, status: Status = "FINISHED") -> None:
        """Sends queued metrics and uploads for up to a minute, and ends the run. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")


class MlflowRun(Run):
    """A run in MLflow. Metrics are queued; uploads that fail are retried with the next one and at the end.

    `run` is MLflow's entity; `config` does not depend on the working directory.
    """

    def __init__(self, client: Any, config: TrackingConfig, run: Any) -> None:
        self._client, self._uri = client, config.store
        self.run_id: str = run.info.run_id
        self._files: str = run.info.artifact_uri
        root = config.artifact_uri
        # An existing experiment keeps its own artifact location, so the configured one is taken from `config`.
        self._root = storage.join(root, config.experiment, self.run_id, "artifacts") if root else self._files
        self._recorded = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
        self._checkpoints = {c.manifest_sha256: c for c in checkpoints(run.data.tags)}
        self._later: list[tuple[str, Callable[[], None]]] = []
        self._warned: set[str] = set()
        self._turn = threading.RLock()  # checkpoints, pictures and the end come from different threads
        self._finished = False
        self._queue = MetricQueue(self._send, hide_secrets(self._uri))
        self._system = _system_monitor(self.run_id, self._uri) if config.system_metrics else None

    def log_metrics(self, values: Mapping[str, float], samples_seen: int) -> None:
        """Queues the metrics that the run does not have yet; a resumed training repeats steps."""
        named = {mlflow_client.clean_name(key): value for key, value in values.items()}
        new = {key: value for key, value in named.items() if samples_seen > self._recorded.get(key, -1)}
        if new:
            self._queue.add(new, samples_seen)

    def log_picture(self, path: str | Path, name: str) -> None:
        """Uploads to `pictures/`, now or at a retry."""
        path = Path(path)
        target = name if name.endswith(path.suffix) else f"{name}{path.suffix}"
        self._upload(path, f"pictures/{target}")

    def log_file(self, path: str | Path, folder: str = "files") -> None:
        """Uploads to `folder`, now or at a retry."""
        self._upload(Path(path), f"{folder.strip('/')}/{Path(path).name}")

    def log_checkpoint(self, artifact: Artifact, samples_seen: int) -> None:
        """Sends the queued metrics, then uploads and records the checkpoint, now or at a retry."""
        # A killed process resumes after this checkpoint and does not log the metrics before it again.
        if not self._queue.away:
            self._queue.flush(timeout=5.0)
        self._try(f"checkpoint {artifact.folder}", lambda: self._put_checkpoint(artifact, samples_seen))

    def finish(self, status: Status = "FINISHED") -> None:
        """Sends what is queued for up to a minute, and ends the run."""
        if self._finished:
            return
        self._finished = True
        if self._system is not None:
            self._system.finish()
        if self._queue.away:
            _log.warning("MLflow does not answer; retrying for up to %.0f s to send the last metrics", _FINISH_SECONDS)
        deadline = time.monotonic() + _FINISH_SECONDS
        lost = self._queue.close(_FINISH_SECONDS)
        if lost:
            _log.warning("MLflow at %s does not answer: %d metric values are lost", hide_secrets(self._uri), lost)
        self._until(deadline, self._drain)
        for what, _ in self._later:
            _log.warning("%s was not recorded", what)
        self._later.clear()
        end = f"the end of run {self.run_id}"
        self._until(deadline, lambda: self._attempt(end, lambda: self._client.set_terminated(self.run_id, status)))

    def _send(self, points: Sequence[MetricPoint]) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        metrics = [Metric(point.key, point.value, point.timestamp, point.step) for point in points]
        try:
            self._client.log_batch(self.run_id, metrics=metrics)
        except MlflowException as error:
            kind = Refused if error.error_code == "INVALID_PARAMETER_VALUE" else UnavailableError
            raise kind(mlflow_client.reason(error)) from None

    def _upload(self, path: Path, name: str) -> None:
        assert path.is_file(), path
        uri = storage.join(self._files, name)
        self._try(f"{name} ({path})", lambda: artifact_store.put_file(path, uri, self._uri))

    def _put_checkpoint(self, artifact: Artifact, samples_seen: int) -> None:
        known = self._checkpoints.get(artifact.sha256)
        if known is None or known.samples_seen != samples_seen:
            uri = storage.join(self._root, "checkpoints", str(samples_seen))
            if any(other.uri == uri for other in self._checkpoints.values()):
                uri = f"{uri}-{artifact.sha256[:8]}"  # a recorded checkpoint is never overwritten
            artifact_store.put(artifact, uri, self._uri)
            known = Checkpoint(uri, artifact.sha256, samples_seen)
        self._client.log_batch(self.run_id, tags=mlflow_client.tags(to_tags(known) | _data_tags(artifact.config)))
        self._checkpoints[artifact.sha256] = known

    def _try(self, what: str, action: Callable[[], None]) -> None:
        """Retries earlier failed actions in order, then runs `action`. A failure defers the rest to the next call."""
        with self._turn:
            self._later.append((what, action))
            self._drain()

    def _drain(self) -> bool:
        with self._turn:
            while self._later:
                if not self._attempt(*self._later[0]):
                    return False
                self._later.pop(0)
            return True

    def _attempt(self, what: str, action: Callable[[], None]) -> bool:
        """Runs `action`; False if it should be retried."""
        try:
            with mlflow_client.translated(self._uri):
                action()
        except (ArtifactError, FileNotFoundError) as error:  # deleted meanwhile
            _log.warning("cannot record %s: %s", what, error)
        except (UnavailableError, OSError) as error:
            if what not in self._warned:
                self._warned.add(what)
                _log.warning("cannot record %s yet, will retry: %s", what, error)
            return False
        return True

    @staticmethod
    def _until(deadline: float, done: Callable[[], bool]) -> None:
        while not done() and time.monotonic() < deadline:
            time.sleep(1.0)


def _system_monitor(run_id: str, uri: str) -> Any:
    """Starts MLflow's monitor of this machine; it ends at the first outage. Raises ConfigError without psutil."""
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
    except ImportError as error:
        raise ConfigError(
            f"tracking.system_metrics: {error.name or 'psutil'} is not installed: install it, or set it to false"
        ) from None
    monitor.start()
    return monitor


def _data_tags(values: Mapping[str, Any]) -> dict[str, str]:
    """Name and fingerprint of the training data, as an artifact's configuration states them."""
    data = values.get("data")
    return {f"maep.data.{key}": str(value) for key, value in data.items()} if isinstance(data, Mapping) else {}
