"""Checkpoints of a run: complete folders, an index that is written after them, the newest sound one to resume from."""

from __future__ import annotations

import json
import shutil
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
        """The newest checkpoint that verifies: a damaged one is passed over for the one before it."""
        for name in reversed(self._names()):
            try:
                return artifact.read(self.folder / name)
            except ArtifactError:
                continue
        return None

    def remove(self) -> None:
        """Drops all of them, once the run's result is in place."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _names(self) -> list[str]:
        try:
            names: list[str] = json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        return names
