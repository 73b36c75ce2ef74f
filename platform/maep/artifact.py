"""The one on-disk format: a folder of `config.json`, `model.safetensors`, `card.md` and, last, `MANIFEST.json`.

A training checkpoint is the same plus `state/` (safetensors or `torch.save` files that load with
`weights_only=True`). A folder without a valid manifest does not exist. No pickle is ever read.
The identity of an artifact, called its sha256 everywhere, is the digest of the bytes of its manifest.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from maep import storage
from maep.errors import ArtifactError, UnavailableError

SCHEMA = 1
MANIFEST = "MANIFEST.json"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "card.md"
STATE = "state/state.pt"


@dataclass(frozen=True)
class File:
    """Size in bytes and hex sha256 of one file of an artifact."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """A verified folder: `kind` is purifier, mae, conv, classifier or checkpoint; `config` builds the model."""

    folder: Path
    kind: str
    sha256: str
    config: dict[str, Any]
    files: dict[str, File]

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's state dict, on the CPU."""
        loaded: dict[str, torch.Tensor] = safetensors.torch.load_file(self.folder / WEIGHTS)
        return loaded

    def state(self) -> dict[str, Any]:
        """The training state of a checkpoint: tensors, numbers, strings and containers only."""
        self.require_state()
        loaded: dict[str, Any] = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
        return loaded

    def require_state(self) -> None:
        """Raises ArtifactError if this is not a checkpoint."""
        if STATE not in self.files:
            raise ArtifactError(
                f"{self.folder} holds no training state: it is a finished {self.kind}, not a checkpoint"
            )


def write(
    folder: str | Path,
    kind: str,
    config: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    card: str,
    state: Mapping[str, Any] | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> Artifact:
    """Writes an artifact beside `folder`, verifies it, and moves it into place: complete or not at all.

    `extra`: further files by relative path (an evaluation, pictures). Replaces an older artifact at `folder`.
    """
    contents: dict[str, bytes] = {
        CONFIG: (json.dumps(dict(config), indent=2, sort_keys=True) + "\n").encode(),
        WEIGHTS: safetensors.torch.save({name: t.detach().cpu().contiguous().clone() for name, t in weights.items()}),
        CARD: card.encode(),
        **(extra or {}),
    }
    if state is not None:
        contents[STATE] = _state_bytes(state)
    target = Path(folder)
    _refuse_outside(contents, target)
    with _in_place_of(target) as beside:
        for name, data in contents.items():
            storage.write_bytes(beside / name, data)
        storage.write_bytes(beside / MANIFEST, _manifest(kind, contents))
    return read(target)


def read(folder: str | Path) -> Artifact:
    """Opens a local artifact and verifies every file. Raises ArtifactError naming what is wrong."""
    root = Path(folder)
    storage.restore_folder(root)
    manifest, digest = _read_manifest(root)
    files = {name: File(**entry) for name, entry in manifest["files"].items()}
    for name, entry in files.items():
        path = root / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing: the artifact is incomplete, fetch or train it again")
        if path.stat().st_size != entry.size:
            raise ArtifactError(f"{path} has {path.stat().st_size} bytes, its manifest says {entry.size}: truncated")
        if storage.sha256_file(path) != entry.sha256:
            raise ArtifactError(f"{path} does not match its manifest: it was changed after it was written")
    config = json.loads((root / CONFIG).read_text(encoding="utf-8"))
    return Artifact(root, manifest["kind"], digest, config, files)


def is_valid(folder: str | Path) -> bool:
    """Whether there is a complete, unchanged artifact at `folder`."""
    try:
        read(folder)
    except (ArtifactError, OSError):
        return False
    return True


def upload(artifact: Artifact, uri: str) -> None:
    """Copies an artifact to `uri` (local or s3://): its files, then, after checking their sizes, its manifest."""
    storage.copy_files(artifact.folder, uri, artifact.files)
    for name, entry in artifact.files.items():
        written = storage.size(storage.join(uri, name))
        if written != entry.size:
            raise UnavailableError(f"{storage.join(uri, name)} has {written} of {entry.size} bytes: upload it again")
    storage.copy_files(artifact.folder, uri, [MANIFEST])


def download(uri: str, folder: str | Path) -> Artifact:
    """Copies the artifact at `uri` (local or s3://) into `folder` and verifies it."""
    target = Path(folder)
    with _in_place_of(target) as beside:
        try:
            storage.copy_files(uri, beside, [MANIFEST])
        except FileNotFoundError:
            raise ArtifactError(f"{uri} holds no {MANIFEST}: not an artifact, or its upload never finished") from None
        try:
            storage.copy_files(uri, beside, list(_read_manifest(beside)[0]["files"]))
        except FileNotFoundError as error:
            raise ArtifactError(f"{uri} is incomplete: a file of its {MANIFEST} is missing: {error}") from None
    return read(target)


@contextmanager
def _in_place_of(target: Path) -> Iterator[Path]:
    """A folder beside `target` to fill: verified and moved to `target` at the end, deleted after an exception."""
    beside = target.with_name(f".{target.name}.new-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        yield beside
        read(beside)
        storage.replace_folder(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _state_bytes(state: Mapping[str, Any]) -> bytes:
    """The training state as torch saves it. Loading is tested here, because at resume it would be too late."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ArtifactError(
            "the training state holds more than tensors, numbers, strings and containers: it could not be resumed"
        ) from None
    return buffer.getvalue()


def _refuse_outside(names: Iterable[str], place: Path) -> None:
    """Raises ArtifactError for names outside the folder: a manifest may come from elsewhere."""
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(f"{place} names {name!r}, which is outside the artifact")


def _manifest(kind: str, contents: Mapping[str, bytes]) -> bytes:
    files = {name: asdict(File(len(data), storage.sha256(data))) for name, data in sorted(contents.items())}
    return (json.dumps({"schema": SCHEMA, "kind": kind, "files": files}, indent=2) + "\n").encode()


def _read_manifest(root: Path) -> tuple[dict[str, Any], str]:
    path = root / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{root} holds no {MANIFEST}: not an artifact, or its writing never finished")
    data = path.read_bytes()
    try:
        manifest = json.loads(data)
        schema = manifest["schema"]
        if isinstance(schema, int) and schema > SCHEMA:  # checked first: a newer manifest may look different
            raise ArtifactError(f"{path} has schema {schema}, this maep reads up to {SCHEMA}: upgrade maep")
        names = list(manifest["files"])
        assert isinstance(schema, int)
        assert isinstance(manifest["kind"], str)
        for entry in manifest["files"].values():
            assert set(entry) == {"size", "sha256"}
            assert isinstance(entry["size"], int)
            assert isinstance(entry["sha256"], str)
    except ArtifactError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        raise ArtifactError(f"{path} is not a manifest: it is truncated or was edited") from None
    _refuse_outside(names, path)
    if CONFIG not in names or WEIGHTS not in names:
        raise ArtifactError(f"{path} lists no {CONFIG} or {WEIGHTS}: not an artifact")
    return manifest, storage.sha256(data)
