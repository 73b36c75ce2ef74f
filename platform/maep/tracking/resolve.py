"""Any URI of a purifier to a verified local folder: what was evaluated is, byte for byte, what is loaded."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

from maep import storage
from maep.errors import ArtifactError, ConfigError, UnavailableError, nearest
from maep.tracking import artifact_store, registry
from maep.tracking import client as mlflow_client
from maep.tracking.checkpoints import checkpoints, newest_checkpoint
from maep.tracking.client import TrackingConfig, absolute, hide_secrets

if TYPE_CHECKING:
    from torch import nn

    from maep.artifact import Artifact

_FORMS = "a folder, bundled:NAME, runs:/ID, models:/purifier@champion or s3://BUCKET/KEY"
_MANIFEST = "MANIFEST.json"


def resolve(uri: str, tracking: TrackingConfig | None = None) -> Artifact:
    """The artifact that `uri` names, as a verified local folder.

    Forms: a local folder; `bundled:NAME`, shipped with the package; `s3://...`; `runs:/ID`, the checkpoint its run
    recorded last; `runs:/ID/NAME`, a folder of that run; `models:/purifier/3` and `models:/purifier@champion`.
    What is fetched is kept by sha256 in `$MAEP_CACHE` (default `~/.cache/maep`) and verified at every use.
    Raises ArtifactError for what is absent, damaged or not what was recorded, UnavailableError for a dead service.
    """
    config = absolute(tracking or TrackingConfig())
    scheme, _, rest = uri.partition(":")
    if scheme == "bundled":
        return _bundled(rest)
    if scheme == "models":
        return _model(rest.lstrip("/"), config)
    if scheme == "runs":
        return _run(rest.strip("/"), config)
    if storage.is_remote(uri):
        return _fetch(uri, None, uri, config)
    if re.match(r"[a-z][a-z0-9+.-]+:", uri) and not uri.startswith("file:"):
        raise ConfigError(f"{hide_secrets(uri)!r} names no purifier: write {_FORMS}")
    folder = Path(artifact_store.direct(uri) or uri)
    if not folder.exists():
        raise ArtifactError(f"{uri} does not exist: write {_FORMS}")
    return _read(folder, None, uri)


def load_purifier(uri: str, tracking: TrackingConfig | None = None) -> nn.Module:
    """The purifier that `uri` names (see `resolve`), in eval mode and frozen: images [B,3,H,W] in [0,1] to the same."""
    from maep.models.build import load_purifier_artifact

    module: nn.Module = load_purifier_artifact(resolve(uri, tracking))
    return module


def bundled_names() -> list[str]:
    """The purifiers that ship with the package."""
    root = resources.files("maep") / "bundled"
    return sorted(entry.name for entry in root.iterdir() if (entry / _MANIFEST).is_file()) if root.is_dir() else []


def cache_folder() -> Path:
    """Where fetched artifacts are kept: `$MAEP_CACHE`, else `~/.cache/maep`."""
    return Path(os.environ.get("MAEP_CACHE") or Path.home() / ".cache" / "maep") / "artifacts"


def _bundled(name: str) -> Artifact:
    names = bundled_names()
    if name not in names:
        raise ArtifactError(f"bundled:{name} does not ship with maep: {nearest(name, names)}")
    root = resources.files("maep") / "bundled" / name
    if isinstance(root, Path):
        return _read(root, None, f"bundled:{name}")
    digest = storage.sha256((root / _MANIFEST).read_bytes())
    return _cached(digest, f"bundled:{name}", lambda beside: _unpack(root, beside))  # a zipped package


def _model(rest: str, config: TrackingConfig) -> Artifact:
    match = re.fullmatch(r"([^/@']+)(?:/(\d+)|@([\w.-]+))", rest)
    if match is None:
        raise ConfigError(
            f"models:/{rest} names no version: write models:/{config.model}@champion or models:/purifier/3"
        )
    _need_store(config, f"models:/{rest}")
    names = registry.names(config)
    if names and match[1] not in names:
        raise ArtifactError(f"models:/{rest}: no model is registered under {match[1]!r}: {nearest(match[1], names)}")
    config = replace(config, model=match[1])
    if match[2]:
        version = registry.by_version(config, int(match[2]))
    else:
        known = registry.aliases(config)
        if match[3] not in known:
            raise ArtifactError(f"models:/{rest}: no version has this alias: {nearest(match[3], known)}")
        version = registry.by_version(config, known[match[3]])
    if not version.sha256:
        raise ArtifactError(f"models:/{rest} has no tag sha256: it was not registered by maep, register it again")
    return _fetch(version.uri, version.sha256, f"models:/{rest}", config)


def _run(rest: str, config: TrackingConfig) -> Artifact:
    run_id, _, name = rest.partition("/")
    _need_store(config, f"runs:/{rest}")
    assert config.uri is not None
    client = mlflow_client.connect(config)
    with mlflow_client.translated(config.uri):
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise ArtifactError(f"runs:/{rest}: {hide_secrets(config.uri)} has no run {run_id!r}") from None
    if not name:
        newest = newest_checkpoint(run.data.tags)
        if newest is None:
            raise ArtifactError(f"runs:/{rest} recorded no checkpoint: name one of its folders, runs:/{run_id}/NAME")
        return _fetch(newest.uri, newest.manifest_sha256, f"runs:/{rest}", config)
    recorded = {checkpoint.uri: checkpoint.manifest_sha256 for checkpoint in checkpoints(run.data.tags)}
    place = next((known for known in recorded if known.endswith(f"/{run_id}/artifacts/{name}")), None)
    place = place or storage.join(run.info.artifact_uri, name)
    return _fetch(place, recorded.get(place), f"runs:/{rest}", config)


def _need_store(config: TrackingConfig, uri: str) -> None:
    """Looking something up must not make an empty store."""
    assert config.uri is not None
    database = Path(config.uri.removeprefix("sqlite:///"))
    if config.uri.startswith("sqlite:///") and not database.exists():
        raise UnavailableError(f"{uri}: there is no tracking store at {database}: give --tracking.uri")


def _fetch(place: str, sha256: str | None, uri: str, config: TrackingConfig) -> Artifact:
    """The artifact at `place`, which must have `sha256` if that was recorded; `uri` is how the user called it."""
    assert config.uri is not None
    tracking_uri = config.uri
    if artifact_store.is_local(place):
        return _read(Path(artifact_store.direct(place) or place), sha256, uri)
    if sha256 is None and storage.is_remote(place):  # one small read may spare the large ones
        sha256 = storage.sha256(_manifest(place))
    return _cached(sha256, uri, lambda beside: artifact_store.get(place, beside, tracking_uri))


def _manifest(place: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(place, _MANIFEST))
    except FileNotFoundError:
        raise ArtifactError(f"{place} holds no {_MANIFEST}: not an artifact, or its upload never finished") from None


def _cached(sha256: str | None, uri: str, fetch: Callable[[Path], object]) -> Artifact:
    """The artifact `sha256` from the cache, else what `fetch(folder)` brings, verified and kept."""
    from maep.artifact import is_valid

    root = cache_folder()
    if sha256 is not None and is_valid(root / sha256):
        return _read(root / sha256, sha256, uri)
    beside = root / f".{uuid.uuid4().hex}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        fetch(beside)
        found = _read(beside, sha256, uri)
        target = root / found.sha256
        try:
            storage.replace_folder(beside, target)
        except OSError:
            if not is_valid(target):  # else another process fetched the same one at the same moment
                raise
    except OSError as error:
        raise UnavailableError(f"cannot keep {uri} in {root}: {error.strerror or error}: set MAEP_CACHE") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return _read(target, found.sha256, uri)


def _unpack(source: Traversable, target: Path) -> None:
    target.mkdir()
    for entry in source.iterdir():
        if entry.is_dir():
            _unpack(entry, target / entry.name)
        else:
            (target / entry.name).write_bytes(entry.read_bytes())


def _read(folder: Path, sha256: str | None, uri: str) -> Artifact:
    from maep.artifact import read

    found = read(folder)
    if sha256 is not None and found.sha256 != sha256:
        raise ArtifactError(
            f"{uri}: {folder} has sha256 {found.sha256[:12]}, recorded was {sha256[:12]}: it was replaced, make it anew"
        )
    return found
