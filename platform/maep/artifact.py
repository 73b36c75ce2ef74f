"""The one on-disk format: a folder of `config.json`, `model.safetensors`, `card.md` and, last, `MANIFEST.json`.

A training checkpoint is the same plus `state/` (safetensors or `torch.save` files that load with
`weights_only=True`). A folder without a valid manifest does not exist. No pickle is ever read.
The identity of an artifact, called its sha256 everywhere, is the digest of the bytes of its manifest.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from maep import storage
from maep.errors import ArtifactError

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
        if STATE not in self.files:
            raise ArtifactError(f"{self.folder} holds no training state: it is a finished {self.kind}")
        loaded: dict[str, Any] = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
        return loaded


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

    `extra` are further files by relative name (an evaluation, pictures); an older artifact at `folder` is replaced.
    """
    contents: dict[str, bytes] = {
        CONFIG: (json.dumps(dict(config), indent=2, sort_keys=True) + "\n").encode(),
        WEIGHTS: safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in weights.items()}),
        CARD: card.encode(),
        **(extra or {}),
    }
    if state is not None:
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        contents[STATE] = buffer.getvalue()
    target = Path(folder)
    beside = target.with_name(f".{target.name}.new-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        for name, data in contents.items():
            storage.write_bytes(beside / name, data)
        storage.write_bytes(beside / MANIFEST, _manifest(kind, contents))
        read(beside)
        storage.replace_folder(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return read(target)


def read(folder: str | Path) -> Artifact:
    """Opens a local artifact and verifies every file. Raises ArtifactError naming what is wrong."""
    root = Path(folder)
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
    """Whether a complete, unchanged artifact lies at `folder`."""
    try:
        read(folder)
    except (ArtifactError, OSError):
        return False
    return True


def upload(artifact: Artifact, uri: str) -> None:
    """Copies an artifact to `uri` (local or s3://), its manifest last."""
    storage.copy_files(artifact.folder, uri, [*artifact.files, MANIFEST])


def download(uri: str, folder: str | Path) -> Artifact:
    """Copies the artifact at `uri` (local or s3://) into `folder` and verifies it."""
    target = Path(folder)
    beside = target.with_name(f".{target.name}.new-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        try:
            storage.copy_files(uri, beside, [MANIFEST])
        except FileNotFoundError:
            raise ArtifactError(f"{uri} holds no {MANIFEST}: not an artifact, or its upload never finished") from None
        storage.copy_files(uri, beside, list(_read_manifest(beside)[0]["files"]))
        read(beside)
        storage.replace_folder(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return read(target)


def _manifest(kind: str, contents: Mapping[str, bytes]) -> bytes:
    files = {name: asdict(File(len(data), storage.sha256(data))) for name, data in sorted(contents.items())}
    return (json.dumps({"schema": SCHEMA, "kind": kind, "files": files}, indent=2) + "\n").encode()


def _read_manifest(root: Path) -> tuple[dict[str, Any], str]:
    path = root / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{root} holds no {MANIFEST}: not an artifact, or one that was never finished")
    data = path.read_bytes()
    try:
        manifest = json.loads(data)
        schema, names = manifest["schema"], list(manifest["files"])
        assert isinstance(manifest["kind"], str)
        assert all(set(entry) == {"size", "sha256"} for entry in manifest["files"].values())
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        raise ArtifactError(f"{path} is not a manifest: it is truncated or was edited") from None
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ArtifactError(f"{path} has schema {schema}, this maep reads up to {SCHEMA}: upgrade maep")
    outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:  # a manifest from elsewhere must not make us read or write outside its folder
        raise ArtifactError(f"{path} names {outside[0]!r}, which is outside the artifact")
    if CONFIG not in names or WEIGHTS not in names:
        raise ArtifactError(f"{path} lists no {CONFIG} or {WEIGHTS}: not an artifact")
    return manifest, storage.sha256(data)
