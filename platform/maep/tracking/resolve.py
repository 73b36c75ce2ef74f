"""Resolve a `PurifierRef` to a verified local folder. What is loaded is byte for byte what was evaluated."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from maep import storage
from maep.errors import ArtifactError, UnavailableError, nearest
from maep.tracking import artifact_store, registry
from maep.tracking import client as mlflow_client
from maep.tracking.checkpoints import checkpoints, newest_checkpoint
from maep.tracking.client import TrackingConfig, hide_secrets
from maep.tracking.purifier_ref import FORMS, PurifierRef

if TYPE_CHECKING:
    from torch import nn

    from maep.artifact import Artifact

_MANIFEST = "MANIFEST.json"


def resolve(purifier: str | Path | PurifierRef, tracking: TrackingConfig | None = None) -> Artifact:
    """The artifact that `purifier` names, as a verified local folder.

    Downloads are cached by sha256 in `$MAEP_CACHE` (default `~/.cache/maep`) and verified at every use.
    Raises ConfigError for a malformed URI, ArtifactError for an artifact that is absent, damaged or not the recorded
    one, and UnavailableError for a service that does not answer.
    """
    config = tracking or TrackingConfig()
    ref = purifier if isinstance(purifier, PurifierRef) else PurifierRef.parse(str(purifier))
    if ref.scheme == "folder":
        if not Path(ref.name).exists():
            raise ArtifactError(f"{ref} does not exist: write {FORMS}")
        return _read(Path(ref.name), ref.sha256, ref)
    if ref.scheme == "bundled":
        return _bundled(ref)
    if ref.sha256 is not None and (kept := _kept(ref.sha256)) is not None:
        return kept
    if ref.scheme == "models":
        return _model(ref, config)
    if ref.scheme == "runs":
        return _run(ref, config)
    return _fetch(ref.name, ref.sha256, ref, config)


def load_purifier(uri: str | Path | PurifierRef, tracking: TrackingConfig | None = None) -> nn.Module:
    """The purifier that `uri` names (see `PurifierRef`), in eval mode and frozen.

    It maps images [B,3,H,W] in [0,1] to images of the same shape and range.
    """
    from maep.models.build import load_purifier_artifact

    module: nn.Module = load_purifier_artifact(resolve(uri, tracking))
    return module


def cache_folder() -> Path:
    """Where fetched artifacts are kept: `$MAEP_CACHE`, else `~/.cache/maep`."""
    return Path(os.environ.get("MAEP_CACHE") or Path.home() / ".cache" / "maep") / "artifacts"


def _bundled(ref: PurifierRef) -> Artifact:
    root = Path(str(resources.files("maep") / "bundled"))
    names = [path.parent.name for path in root.glob(f"*/{_MANIFEST}")]
    if ref.name not in names:
        raise ArtifactError(f"{ref} does not ship with maep: {nearest(ref.name, names)}")
    return _read(root / ref.name, ref.sha256, ref)


def _model(ref: PurifierRef, config: TrackingConfig) -> Artifact:
    _need_store(config, ref)
    names = registry.names(config)
    if names and ref.name not in names:
        raise ArtifactError(f"{ref}: no model is registered under {ref.name!r}: {nearest(ref.name, names)}")
    config = replace(config, model=ref.name)
    number = ref.version
    if number is None:
        assert ref.alias is not None
        known = registry.aliases(config)
        if ref.alias not in known:
            raise ArtifactError(f"{ref}: no version has this alias: {nearest(ref.alias, known)}")
        number = known[ref.alias]
    version = registry.by_version(config, number)
    if not version.sha256:
        raise ArtifactError(f"{ref} has no tag sha256: it was not registered by maep, register it again")
    return _fetch(version.uri, version.sha256, ref, config)


def _run(ref: PurifierRef, config: TrackingConfig) -> Artifact:
    _need_store(config, ref)
    client = mlflow_client.connect(config)
    with mlflow_client.translated(config.store):
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(ref.name)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise ArtifactError(f"{ref}: {hide_secrets(config.store)} has no run {ref.name!r}") from None
    if not ref.path:
        newest = newest_checkpoint(run.data.tags)
        if newest is None:
            raise ArtifactError(f"{ref} recorded no checkpoint: name one of its folders, runs:/{ref.name}/FOLDER")
        return _fetch(newest.uri, newest.manifest_sha256, ref, config)
    recorded = {checkpoint.uri: checkpoint.manifest_sha256 for checkpoint in checkpoints(run.data.tags)}
    place = next((known for known in recorded if known.endswith(f"/{ref.name}/artifacts/{ref.path}")), None)
    place = place or storage.join(run.info.artifact_uri, ref.path)
    return _fetch(place, recorded.get(place), ref, config)


def _need_store(config: TrackingConfig, ref: PurifierRef) -> None:
    """Raises UnavailableError where there is no store: a lookup must not create an empty one."""
    database = Path(config.store.removeprefix("sqlite:///"))
    if config.store.startswith("sqlite:///") and not database.exists():
        raise UnavailableError(f"{ref}: there is no tracking store at {database}: set --tracking.uri")


def _fetch(place: str, sha256: str | None, ref: PurifierRef, config: TrackingConfig) -> Artifact:
    """The artifact at `place`, which must match `sha256` (recorded with it) and the sha256 that `ref` is pinned to."""
    if ref.sha256 not in (None, sha256) and sha256 is not None:
        raise ArtifactError(f"{ref}: its sha256 was {str(ref.sha256)[:12]}, now it is {sha256[:12]}: it was replaced")
    sha256 = sha256 or ref.sha256
    if artifact_store.is_local(place):
        return _read(Path(artifact_store.direct(place) or place), sha256, ref)
    if sha256 is None and storage.is_remote(place):  # reading the manifest may spare the download
        sha256 = storage.sha256(_manifest(place))
    return _cached(sha256, ref, lambda beside: artifact_store.get(place, beside, config.store))


def _manifest(place: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(place, _MANIFEST))
    except FileNotFoundError:
        raise ArtifactError(f"{place} holds no {_MANIFEST}: not an artifact, or its upload never finished") from None


def _kept(sha256: str) -> Artifact | None:
    """The cached artifact with that sha256; None if it is absent or damaged."""
    from maep.artifact import is_valid, read

    folder = cache_folder() / sha256
    return read(folder) if is_valid(folder) else None


def _cached(sha256: str | None, ref: PurifierRef | str, fetch: Callable[[Path], object]) -> Artifact:
    """The artifact `sha256` from the cache, else the one that `fetch(folder)` downloads, verified and kept."""
    if sha256 is not None and (kept := _kept(sha256)) is not None:
        return kept
    root = cache_folder()
    beside = root / f".{uuid.uuid4().hex}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        fetch(beside)
        found = _read(beside, sha256, ref)
        try:
            storage.replace_folder(beside, root / found.sha256)
        except OSError:
            if _kept(found.sha256) is None:  # else another process fetched the same artifact at the same time
                raise
    except OSError as error:
        raise UnavailableError(f"cannot keep {ref} in {root}: {error.strerror or error}: set MAEP_CACHE") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return _read(root / found.sha256, found.sha256, ref)


def _read(folder: Path, sha256: str | None, ref: PurifierRef | str) -> Artifact:
    from maep.artifact import read

    found = read(folder)
    if sha256 is not None and found.sha256 != sha256:
        raise ArtifactError(
            f"{ref}: {folder} has sha256 {found.sha256[:12]}, expected {sha256[:12]}: it was replaced, create it again"
        )
    return found
