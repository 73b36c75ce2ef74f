"""Checkpoints of a run: complete folders, an index that is written after them, the newest sound one to resume from."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from maep import artifact, storage
from maep.artifact import Artifact
from maep.errors import ArtifactError

_INDEX = "index.json"


class Checkpoints:
    """The checkpoints in `folder`, at most `keep` of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(
        self, samples_seen: int, config: Mapping[str, Any], weights: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> Artifact:
        """Writes one, then the index that names it, then drops the oldest beyond `keep`."""
        name = f"{samples_seen:012d}"
        card = f"# Training checkpoint\n\nAfter {samples_seen:,} images; a state to resume from, not a model to use.\n"
        saved = artifact.write(self.folder / name, "checkpoint", config, weights, card, state)
        names = [*[known for known in self._names() if known != name], name]
        storage.write_bytes(self.folder / _INDEX, json.dumps(names[-self.keep :]).encode())
        for old in names[: -self.keep]:
            shutil.rmtree(self.folder / old, ignore_errors=True)
        return saved

    def newest(self) -> Artifact | None:
        """The newest checkpoint that verifies: a damaged one is passed over, with a warning, for the one before it."""
        for name in reversed(self._names()):
            try:
                return artifact.read(self.folder / name)
            except ArtifactError as error:
                warnings.warn(f"{error}; it is passed over for the checkpoint before it", stacklevel=2)
        return None

    def remove(self) -> None:
        """Drops all of them, once the run's result is in place."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _names(self) -> list[str]:
        path = self.folder / _INDEX
        try:
            names: list[str] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except ValueError:
            raise ArtifactError(f"{path} is damaged: remove {self.folder} to start anew") from None
        return names


def check_same(saved: Artifact, config: Mapping[str, Any]) -> None:
    """Refuses what was trained under another configuration, naming the first key that differs."""
    mine, theirs = _flat(config), _flat(saved.config)
    for key in sorted(mine.keys() | theirs.keys()):
        if mine.get(key) != theirs.get(key):
            raise ArtifactError(
                f"{saved.folder} was trained with {key}={theirs.get(key)!r}, now it is {mine.get(key)!r}:"
                " choose another --output, or the same configuration"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
