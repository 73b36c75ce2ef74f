"""Checkpoints of a run: complete folders, an index that is written after them, the newest sound one to resume from.

What is written is a copy on the CPU, taken between two steps. A kill at any moment leaves the one before whole.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from maep import artifact, storage
from maep.artifact import Artifact
from maep.errors import ArtifactError, UnavailableError

MODEL, BEST, CHECKPOINTS, RESUMED = "model", "best", "checkpoints", "resumed-from"
"""Folders in the output of a run."""
RUN_KEY = "run-key"
"""A file there, which says which training it is."""
INDEX = "index.json"
_OWNER = "owner"
_SCORE = "score.json"


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds, on the CPU and apart from the model that trains on."""

    samples_seen: int
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    state: Mapping[str, Any]


def snapshot(
    samples_seen: int, config: Mapping[str, Any], weights: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Snapshot:
    """A copy of the tensors in `weights` and `state`, which nest in mappings, lists and tuples."""
    return Snapshot(samples_seen, config, _copied(weights), _copied(state))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner) for inner in value)
    return value


class Checkpoints:
    """The checkpoints in `folder`, at most `keep` of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._token: str | None = None
        self._turn = threading.Lock()  # one thread saves, another is done with what was saved
        self._old: set[str] = set()
        self._pinned: set[str] = set()

    def claim(self) -> None:
        """Makes this process the one that writes here. A cut-off one that still runs then finds out, and stops."""
        self._token = uuid.uuid4().hex
        storage.write_bytes(self.folder / _OWNER, self._token.encode())

    def save(
        self, samples_seen: int, config: Mapping[str, Any], weights: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> Artifact:
        """Writes one, then the index that names it, then drops the oldest beyond `keep`.

        Raises WriteError where it cannot be written, and UnavailableError where another process has claimed `folder`.
        """
        name = f"{samples_seen:012d}"
        card = f"# Training checkpoint\n\nAfter {samples_seen:,} images; a state to resume from, not a model to use.\n"
        self._check_owner()
        saved = artifact.write(self.folder / name, "checkpoint", config, weights, card, state)
        self._check_owner()
        names = [*[known for known in self._names() if known != name], name]
        storage.write_bytes(self.folder / INDEX, json.dumps(names[-self.keep :]).encode())
        with self._turn:
            self._old = self._old.union(names[: -self.keep]) - {name}
            self._drop()
        return saved

    def adopt(self, name: str) -> None:
        """Takes the checkpoint that was put into folder `name` for the newest."""
        names = [*[known for known in self._names() if known != name], name]
        storage.write_bytes(self.folder / INDEX, json.dumps(names[-self.keep :]).encode())

    def pin(self, saved: Artifact) -> None:
        """Keeps it on disk, newer ones or not, until it is unpinned."""
        with self._turn:
            self._pinned.add(saved.folder.name)

    def unpin(self, saved: Artifact) -> None:
        """Drops it, if newer ones have taken its place."""
        with self._turn:
            self._pinned.discard(saved.folder.name)
            self._drop()

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

    def _drop(self) -> None:
        for name in self._old - self._pinned:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            self._old.remove(name)

    def _check_owner(self) -> None:
        if self._token is None:
            return
        path = self.folder / _OWNER
        if not path.is_file() or path.read_text(encoding="ascii") != self._token:
            raise UnavailableError(f"another process goes on with the run in {self.folder.parent}: this one ends here")

    def _names(self) -> list[str]:
        path = self.folder / INDEX
        try:
            names: list[str] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except ValueError:
            raise ArtifactError(f"{path} is damaged: remove {self.folder} to start anew") from None
        return names


@dataclass(frozen=True)
class Score:
    """What made a checkpoint the best: `metric` as it was named, its value, the images seen, the sha256."""

    metric: str
    value: float
    samples_seen: int
    sha256: str


class Best:
    """The best of a run's checkpoints by one metric, as an artifact of `kind` in `folder`; it stays after the run.

    `metric` names a value of what a validation reports; the highest is best, or with a `-` before it, the lowest.
    """

    def __init__(self, folder: Path, metric: str, kind: str) -> None:
        self.folder, self.metric, self.kind = folder, metric, kind

    def offer(self, saved: Artifact, samples_seen: int, metrics: Mapping[str, float]) -> bool:
        """Keeps checkpoint `saved`, measured as `metrics`, if it is the best so far; whether it is.

        Raises ArtifactError where the metric was not measured, or the checkpoint is gone (`hold` it while measuring).
        """
        name = self.metric.removeprefix("-")
        if name not in metrics:
            raise ArtifactError(f"loop.keep_best: {name} was not measured: choose one of {', '.join(sorted(metrics))}")
        score = Score(self.metric, float(metrics[name]), samples_seen, saved.sha256)
        if math.isnan(score.value):
            return False
        best = self.score()
        if best is not None and best.metric == score.metric and not self._value(score) > self._value(best):
            return False
        card = f"# Best checkpoint\n\nAfter {samples_seen:,} images; {name} {score.value:.6g}.\n"
        extra = {_SCORE: json.dumps(asdict(score)).encode()}
        artifact.write(self.folder, self.kind, saved.config, saved.weights(), card, extra=extra)
        return True

    def score(self) -> Score | None:
        """What the best one so far was measured as; None: there is none."""
        if not artifact.is_valid(self.folder):
            return None
        return Score(**json.loads((self.folder / _SCORE).read_text(encoding="utf-8")))

    def _value(self, score: Score) -> float:
        return -score.value if self.metric.startswith("-") else score.value


def hold(saved: Artifact, folder: Path) -> Artifact:
    """The same checkpoint at `folder`, sharing its bytes on disk, where keep-last does not drop it.

    For what measures it beside the training; who holds it removes it.
    """
    for name in [*saved.files, artifact.MANIFEST]:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(saved.folder / name, target)
        except OSError:  # another file system, or one without links
            storage.copy_files(saved.folder, folder, [name])
    return artifact.read(folder)


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
