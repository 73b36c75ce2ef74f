"""Connect to MLflow: create the default SQLite store once, and fail within seconds where a server does not answer.

MLflow is imported inside functions, because it takes seconds and training without tracking does not need it.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maep import config, storage
from maep.errors import ConfigError, UnavailableError

DEFAULT_FOLDER = Path("outputs/mlflow")
_SQLITE = "sqlite:///"
_HTTP = ("http://", "https://")
_DATABASES = ("postgresql", "mysql", "mssql")
_PROBE_SECONDS = 4.0
# The metric queue buffers and retries itself; MLflow's 7 retries of minutes each would only hide an outage.
_DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
_ALWAYS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_MODEL_CODE_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output belongs to --json
}


@dataclass(frozen=True)
class TrackingConfig:
    """Where runs, checkpoints and registered purifiers are kept."""

    uri: str | None = config.key(
        None,
        """MLflow server, http(s)://HOST:PORT, or database, sqlite:///FILE or another that MLflow knows; null:
        outputs/mlflow/mlflow.db below the working directory, with artifacts in a folder beside it.""",
        decides=False,
    )
    experiment: str = config.key("maep", "MLflow experiment, created if absent.", decides=False)
    enabled: bool = config.key(True, "false: log nothing; no store is needed.", decides=False)
    artifact_uri: str | None = config.key(
        None,
        """Root of checkpoints and registered purifiers, s3://BUCKET/PREFIX or a folder; null: the experiment's own
        artifact location.""",
        decides=False,
    )
    model: str = config.key(
        "purifier", "Registered model whose versions `promote` and `run` add to; one for each data set.", decides=False
    )
    system_metrics: bool = config.key(
        False, "Also log processor, memory, disk, network and GPU use of the machine that records a run.", decides=False
    )

    @property
    def store(self) -> str:
        """The tracking URI: the default filled in, independent of the working directory."""
        if self.uri is None:
            return f"{_SQLITE}{(DEFAULT_FOLDER / 'mlflow.db').absolute()}"
        if self.uri.startswith(_SQLITE):
            return f"{_SQLITE}{Path(self.uri.removeprefix(_SQLITE)).absolute()}"
        return self.uri

    def __post_init__(self) -> None:
        """Raises ValueError for what MLflow cannot use."""
        uri = self.uri
        if uri is not None and not uri.startswith((_SQLITE, *_HTTP, *_DATABASES)):
            raise ValueError(
                f"uri: {hide_secrets(uri)!r} is not a tracking server: write http://HOST:PORT or sqlite:///FILE"
            )
        if uri is not None and uri.startswith(_DATABASES) and self.artifact_uri is None:
            raise ValueError("artifact_uri: it is required with a database uri: write s3://BUCKET/PREFIX or a folder")
        if not re.fullmatch(r"[\w. -]+", self.model):
            raise ValueError(f"model: {self.model!r} is not a valid name: write for example purifier")
        if not self.experiment.strip() or "'" in self.experiment:
            raise ValueError(f"experiment: {self.experiment!r} is not a valid name: write for example maep")


def absolute(config: TrackingConfig) -> TrackingConfig:
    """`config` with URIs that do not depend on the working directory, for workers."""
    artifacts = config.artifact_uri
    if artifacts is not None and "://" not in artifacts:
        artifacts = str(Path(artifacts).absolute())
    return replace(config, uri=config.store, artifact_uri=artifacts)


def connect(config: TrackingConfig) -> Any:
    """An `MlflowClient` for a store that answers. Creates a SQLite file that does not exist.

    Raises UnavailableError within about ten seconds where the store does not answer.
    """
    uri = config.store
    if uri.startswith(_SQLITE):
        make_store(Path(uri.removeprefix(_SQLITE)))
    elif uri.startswith(_HTTP):
        _probe(uri)
    with translated(uri):
        return _client(uri)


def experiment(client: Any, config: TrackingConfig) -> Any:
    """The MLflow experiment of `config`, created if absent."""
    config = absolute(config)
    name = config.experiment
    with translated(config.store):
        found = client.get_experiment_by_name(name)
        if found is None:
            with ignore_existing():
                client.create_experiment(name, artifact_location=_location(config))
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        raise ConfigError(f"tracking.experiment: {name!r} was deleted in MLflow: restore it or choose another name")
    return found


def make_store(database: Path) -> None:
    """Creates the SQLite store `database` if it does not exist: atomically, and by one process only.

    Takes 7 to 14 s. Raises UnavailableError where the folder cannot be written.
    """
    if database.exists():
        return
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with open(database.with_name(f".{database.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if database.exists():  # created by another process meanwhile
                return
            beside = database.with_name(f".{database.name}.new")
            beside.unlink(missing_ok=True)
            _migrate(f"{_SQLITE}{beside.absolute()}")
            os.replace(beside, database)
    except OSError as error:
        raise UnavailableError(
            f"cannot create the tracking store {database}: {error.strerror or error}: "
            "choose another --tracking.uri, or --tracking.enabled false"
        ) from None


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turns exceptions of MLflow and its database into an UnavailableError that names `uri`, without its secrets."""
    prepare_environment()
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        raise UnavailableError(_complaint(uri, error)) from None


@contextmanager
def ignore_existing() -> Iterator[None]:
    """Ignores MLflow's error for creating what exists: another process may have created it at the same time."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def reason(error: BaseException) -> str:
    """The reason for `error`, short and without secrets: the operating system's message if any, else its own."""
    cause: BaseException | None = error
    message = None
    while cause is not None:
        message = (isinstance(cause, OSError) and cause.strerror) or message
        cause = cause.__cause__ or cause.__context__
    return hide_secrets(message or " ".join(str(error).split())[:300])


def hide_secrets(text: str) -> str:
    """`text` without the `user:password@` of its URIs and the values of `password=`, `token=` and the like."""
    without = re.sub(r"(?<=://)[^/\s]+@", "", text)
    return re.sub(r"(?i)\b(password|pwd|token|secret)=[^&;\s]+", r"\1=...", without)


def clean_name(name: str) -> str:
    """`name` in the alphabet and length that MLflow allows for metrics and parameters."""
    return re.sub(r"[^A-Za-z0-9_. :/-]", "_", name)[:250]


def prepare_environment() -> None:
    """Sets MLflow's environment variables; call before its first import in this process."""
    os.environ.update(_ALWAYS)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def tags(values: Mapping[str, str]) -> list[Any]:
    """`values` as MLflow run tags, each cut to MLflow's limit."""
    from mlflow.entities import RunTag

    return [RunTag(key, value[:8000]) for key, value in values.items()]


@functools.lru_cache(maxsize=8)
def _client(uri: str) -> Any:
    prepare_environment()
    from mlflow import MlflowClient

    logging.getLogger("urllib3.connectionpool").addFilter(_not_a_retry)  # the metric queue reports an outage, once
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _not_a_retry(record: logging.LogRecord) -> bool:
    return not (record.msg.startswith("Retrying") and "/mlflow" in record.getMessage())


def _complaint(uri: str, error: Exception) -> str:
    text = reason(error)
    cure = "start it, or --tracking.enabled false"
    if "schema" in text and uri.startswith(_SQLITE):
        cure = f"run `mlflow db upgrade {hide_secrets(uri)}`"
    elif getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"):
        cure = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    return hide_secrets(f"MLflow at {uri} failed: {text}: {cure}")


def _probe(uri: str) -> None:
    """Raises UnavailableError unless the server answers; MLflow's own retries would hang for minutes."""
    import httpx

    address = hide_secrets(uri)
    try:
        # No secret is sent, and MLflow itself verifies certificates, so this need not.
        httpx.get(f"{address.rstrip('/')}/health", timeout=_PROBE_SECONDS, verify=False, follow_redirects=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise UnavailableError(
            f"MLflow at {address} does not answer ({reason}): start the server, or --tracking.enabled false"
        ) from None


def _location(config: TrackingConfig) -> str | None:
    """The artifact location of a new experiment; None lets the server decide."""
    if config.artifact_uri is not None:
        return storage.join(config.artifact_uri, config.experiment)
    if config.store.startswith(_SQLITE):
        return str(Path(config.store.removeprefix(_SQLITE)).parent / "artifacts" / config.experiment)
    return None


def _migrate(uri: str) -> None:
    """Creates MLflow's tables in a new SQLite file, without log output."""
    prepare_environment()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    chatter = logging.getLogger("mlflow")
    level = chatter.level
    chatter.setLevel(logging.WARNING)
    try:
        with translated(uri):
            SqlAlchemyStore(uri, "/nonexistent").engine.dispose()
    finally:
        chatter.setLevel(level)
