"""Checkpoints of a run, in a folder or on S3: complete artifacts, and an index that is written after them.

A run resumes from the newest that verifies. A kill at any moment leaves the checkpoint before it intact.
"""

from __future__ import annotations

import json
import math
import os
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
from maep.config import flatten
from maep.errors import ArtifactError, UnavailableError

MODEL, BEST, CHECKPOINTS, RESUMED = "model", "best", "checkpoints", "resumed-from"
"""Folders in the output of a run."""
RUN_KEY = "run-key"
"""A file there: the identity of the training."""
INDEX = "index.json"
_OWNER = "owner"
_SCORE = "score.json"


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint: a copy on the CPU, which further training does not change."""

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
    """The last `keep` checkpoints at `uri`, a folder or s3://: each complete before the index names it.

    index.json   names, the newest last
    owner        a token of the process that writes here
    NAME/        an artifact; NAME is the number of images seen, in a remote store with the start of its sha256
    """

    def __init__(self, uri: str | Path, keep: int) -> None:
        self.uri, self.keep = str(uri), keep
        self._token: str | None = None
        self._turn = threading.Lock()  # one thread saves, another unpins
        self._old: set[str] = set()
        self._pinned: set[str] = set()

    def claim(self) -> None:
        """Makes this process the owner. An earlier owner that still runs raises at its next write."""
        self._token = uuid.uuid4().hex
        storage.write_bytes(storage.join(self.uri, _OWNER), self._token.encode())

    def save(self, taken: Snapshot) -> Artifact:
        """Writes a snapshot into this folder. Raises WriteError, or UnavailableError where another process owns it."""
        self._check_owner()
        card = f"# Training checkpoint\n\nAfter {taken.samples_seen:,} images; for resuming, not a model to use.\n"
        folder = Path(self.uri) / f"{taken.samples_seen:012d}"
        saved = artifact.write(folder, "checkpoint", taken.config, taken.weights, card, taken.state)
        self.put(saved)
        return saved

    def put(self, saved: Artifact) -> None:
        """Makes `saved` the newest: uploads it unless it is here, adds it to the index, deletes the oldest."""
        here = saved.folder.parent == Path(self.uri)
        name = saved.folder.name if here else f"{saved.folder.name}-{saved.sha256[:8]}"
        known = self.names()
        if known[-1:] == [name] and not here:
            return
        self._check_owner()
        target = storage.join(self.uri, name)
        if not here and digest(target) != saved.sha256:
            artifact.upload(saved, target)
            self._check_owner()
        names = [*[each for each in known if each != name], name]
        storage.write_bytes(storage.join(self.uri, INDEX), json.dumps(names[-self.keep :]).encode())
        with self._turn:
            self._old = self._old.union(names[: -self.keep]) - {name}
            self._drop()

    def pin(self, saved: Artifact) -> None:
        """Keeps `saved`, even when newer ones are saved, until it is unpinned."""
        with self._turn:
            self._pinned.add(saved.folder.name)

    def unpin(self, saved: Artifact) -> None:
        """Deletes `saved` if newer ones have replaced it."""
        with self._turn:
            self._pinned.discard(saved.folder.name)
            self._drop()

    def newest(self, into: Path | None = None) -> Artifact | None:
        """The newest checkpoint that verifies, downloaded into folder `into` from another store.

        Damaged ones are skipped with a warning.
        """
        for name in reversed(self.names()):
            try:
                if into is None:
                    return artifact.read(Path(self.uri) / name)
                return artifact.download(storage.join(self.uri, name), into / local_name(name))
            except ArtifactError as error:
                warnings.warn(f"skipping a damaged checkpoint: {error}", stacklevel=2)
        return None

    def names(self) -> list[str]:
        """The checkpoints in the index, the newest last."""
        path = storage.join(self.uri, INDEX)
        try:
            names: list[str] = json.loads(storage.read_bytes(path))
        except FileNotFoundError:
            return []
        except ValueError:
            raise ArtifactError(f"{path} is damaged: delete {self.uri} to start again") from None
        return names

    def remove(self) -> None:
        """Deletes all of them, once the run's result is in place."""
        storage.delete_folder(self.uri)

    def _drop(self) -> None:
        for name in self._old - self._pinned:
            storage.delete_folder(storage.join(self.uri, name))
            self._old.remove(name)

    def _check_owner(self) -> None:
        if self._token is not None and read_if_exists(storage.join(self.uri, _OWNER)) != self._token.encode():
            raise UnavailableError(f"another process has resumed the run at {self.uri}: this one stops")


def local_name(name: str) -> str:
    """The name of a checkpoint in a run's own folder."""
    return name.partition("-")[0]


def read_if_exists(uri: str) -> bytes | None:
    """A file's content; None where there is none."""
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        return None


def digest(uri: str) -> str | None:
    """sha256 of the complete artifact at `uri`; None where there is none."""
    manifest = read_if_exists(storage.join(uri, artifact.MANIFEST))
    return None if manifest is None else storage.sha256(manifest)


@dataclass(frozen=True)
class Score:
    """The value of `metric` (as configured) for a checkpoint, the images seen, and the checkpoint's sha256."""

    metric: str
    value: float
    samples_seen: int
    sha256: str


class Best:
    """The best of a run's checkpoints by a validation metric, as an artifact of `kind` in `folder`; kept after the run.

    The highest value of `metric` is best; with a `-` before its name, the lowest.
    """

    def __init__(self, folder: Path, metric: str, kind: str) -> None:
        self.folder, self.metric, self.kind = folder, metric, kind

    def offer(self, saved: Artifact, samples_seen: int, metrics: Mapping[str, float]) -> bool:
        """Keeps checkpoint `saved` if its `metrics` are the best so far, and returns whether they are.

        Raises ArtifactError where the metric is missing, or the checkpoint was deleted (`hold` it while measuring).
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
        """The score of the best one so far; None before the first."""
        if not artifact.is_valid(self.folder):
            return None
        return Score(**json.loads((self.folder / _SCORE).read_text(encoding="utf-8")))

    def _value(self, score: Score) -> float:
        return -score.value if self.metric.startswith("-") else score.value


def hold(saved: Artifact, folder: Path) -> Artifact:
    """A hard-linked copy of a checkpoint at `folder`, which the run does not delete; the caller does."""
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
    """Raises ArtifactError where `saved` was trained under another configuration, naming the first key that differs."""
    mine, theirs = flatten(config), flatten(saved.config)
    for key in sorted(mine.keys() | theirs.keys()):
        if mine.get(key) != theirs.get(key):
            raise ArtifactError(
                f"{saved.folder} was trained with {key}={theirs.get(key)!r}, now it is {mine.get(key)!r}:"
                " choose another --output, or use the same configuration"
            )
