"""A run whose output is s3://: it works in a local folder, and its state on S3 is enough for another machine to resume.

  run-key                    the identity of the training; a working folder of another training is emptied
  checkpoints/               see `maep.train.checkpoint.store.Checkpoints`
  model/, best/, history.jsonl, config.yaml      as in the folder of a local run

A file that S3 does not take or return within its deadline ends the run; the same command resumes it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from maep import artifact, storage
from maep.artifact import Artifact
from maep.errors import ArtifactError, UnavailableError
from maep.train.checkpoint.history import HISTORY
from maep.train.checkpoint.store import (
    BEST,
    CHECKPOINTS,
    MODEL,
    RESUMED,
    RUN_KEY,
    Checkpoints,
    digest,
    hold,
    local_name,
    read_if_exists,
)
from maep.train.loop.callback import Callback

_SMALL = (HISTORY, "config.yaml")


def working_folder(output: str | Path) -> Path:
    """The folder in which a run with this output works: the output itself, or for s3:// a folder in the cache."""
    if not storage.is_remote(output):
        return Path(output)
    address = str(output).rstrip("/")
    cache = Path(os.environ.get("MAEP_CACHE") or Path.home() / ".cache" / "maep")
    name = address.rpartition("/")[2]
    return (cache / "outputs" / f"{name}-{hashlib.sha256(address.encode()).hexdigest()[:12]}").absolute()


def mirror_of(output: str | Path, keep: int) -> Mirror | None:
    """The mirror of a run whose output is an s3:// address; None for a folder."""
    return Mirror(str(output), working_folder(output), keep) if storage.is_remote(output) else None


class Mirror(Callback):
    """The copy at `uri` of the run in `folder`; a callback that uploads each checkpoint.

    Everything raises UnavailableError, naming the file, where S3 does not answer within its deadline.
    """

    def __init__(self, uri: str, folder: Path, keep: int) -> None:
        self.uri, self.folder = uri.rstrip("/"), folder
        self._here = Checkpoints(folder / CHECKPOINTS, keep)
        self._there = Checkpoints(self._at(CHECKPOINTS), keep)

    def pull(self) -> None:
        """Downloads what is newer at `uri` than in the working folder."""
        key, path = read_if_exists(self._at(RUN_KEY)), self.folder / RUN_KEY
        if key is None or not path.is_file() or path.read_bytes() != key:
            _empty(self.folder)
            storage.write_bytes(path, key or uuid.uuid4().hex.encode())
        if key is None:
            return
        for name in _SMALL:
            theirs, mine = read_if_exists(self._at(name)), self.folder / name
            if theirs is not None and (not mine.is_file() or len(theirs) > mine.stat().st_size):
                storage.write_bytes(mine, theirs)
        for name in (BEST, MODEL):
            if digest(self._at(name)) is not None and not artifact.is_valid(self.folder / name):
                artifact.download(self._at(name), self.folder / name)
        if not (self.folder / MODEL).exists():
            self._pull_newest()

    def claim(self) -> None:
        """Makes this process the owner of the run, and uploads a checkpoint that only this machine has."""
        storage.write_bytes(self._at(RUN_KEY), (self.folder / RUN_KEY).read_bytes())
        self._there.claim()
        newest = self._here.newest()
        if newest is not None:
            self._there.put(newest)

    def fetch(self, name: str, sha256: str = "") -> Artifact:
        """Downloads artifact `name` of another machine's working folder, or one that `lend` has uploaded."""
        remote = f"{name}-{sha256[:8]}" if name.startswith(CHECKPOINTS) else name
        return artifact.download(self._at(remote), self.folder / name)

    def lend(self, given: Artifact) -> str:
        """Uploads an artifact of this machine for all workers to `fetch`, and returns its name."""
        name = f"{RESUMED}/{given.sha256[:16]}"
        self._replace(given, name)
        return name

    def finish(self) -> None:
        """Uploads the result, then the rest, and deletes the checkpoints."""
        self._replace(artifact.read(self.folder / MODEL), MODEL)
        self._push_small()
        self._there.remove()

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        """Uploads the checkpoint."""
        self._there.put(saved)
        self._push_small()

    def on_failure(self, error: BaseException) -> None:
        """Uploads the history, if S3 answers."""
        with suppress(UnavailableError):
            self._push_small()

    def _pull_newest(self) -> None:
        """Downloads the newest valid checkpoint, unless the newest here has seen as many images."""
        mine, theirs = self._here.newest(), self._there.names()
        if mine is None or (theirs and local_name(theirs[-1]) > mine.folder.name):
            fetched = self._there.newest(into=self.folder / CHECKPOINTS)
            if fetched is not None and (mine is None or fetched.folder.name > mine.folder.name):
                self._here.put(fetched)

    def _replace(self, given: Artifact, name: str) -> None:
        """Replaces an older artifact. Until it is complete it has no manifest, and so does not exist."""
        if digest(self._at(name)) != given.sha256:
            storage.delete_folder(self._at(name))
            artifact.upload(given, self._at(name))

    def _push_small(self) -> None:
        for name in _SMALL:
            if (self.folder / name).is_file():
                storage.write_bytes(self._at(name), (self.folder / name).read_bytes())
        best, held = self.folder / BEST, self.folder / f".{BEST}-held"
        try:
            # There may be no best checkpoint, or validation may be replacing it; the next call uploads it.
            with suppress(ArtifactError, FileNotFoundError):
                if digest(str(best)) != digest(self._at(BEST)):
                    self._replace(hold(artifact.read(best), held), BEST)
        finally:
            shutil.rmtree(held, ignore_errors=True)

    def _at(self, *parts: str) -> str:
        return storage.join(self.uri, *parts)


def _empty(folder: Path) -> None:
    """Empties the folder of a run but keeps the folder itself, which may be locked (`storage.lock_folder`)."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == RESUMED:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
