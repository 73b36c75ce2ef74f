"""A run whose output is s3://: it works in a folder of each machine, and what a fresh machine goes on from lies there.

  run-key                    which training this is: a working folder that is of another one is emptied
  owner                      which process goes on with it: a cut-off one that still runs finds out, and stops
  checkpoints/NAME-SHA/      each with its manifest last, and complete before the index names it
  checkpoints/index.json     the newest last
  model/, best/, history.jsonl, config.yaml      as in the folder of a local run

What S3 does not take or give within `$MAEP_S3_DEADLINE_S` ends the run with the file's name; the same line goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import warnings
from contextlib import suppress
from pathlib import Path

from maep import artifact, storage
from maep.artifact import Artifact
from maep.errors import ArtifactError, UnavailableError
from maep.train.checkpoint.history import HISTORY
from maep.train.checkpoint.store import BEST, CHECKPOINTS, INDEX, MODEL, RESUMED, RUN_KEY, Checkpoints, hold
from maep.train.loop.meter import Progress

_OWNER = "owner"
_SMALL = (HISTORY, "config.yaml")


def working_folder(output: str | Path) -> Path:
    """Where a run with this output works: the folder itself, or one of this machine's cache for an s3:// address."""
    if not storage.is_remote(output):
        return Path(output)
    address = str(output).rstrip("/")
    cache = Path(os.environ.get("MAEP_CACHE") or Path.home() / ".cache" / "maep")
    name = address.rpartition("/")[2]
    return (cache / "outputs" / f"{name}-{hashlib.sha256(address.encode()).hexdigest()[:12]}").absolute()


def mirror_of(output: str | Path, keep: int) -> Mirror | None:
    """The mirror of a run whose output is an s3:// address; None for a folder."""
    return Mirror(str(output), working_folder(output), keep) if storage.is_remote(output) else None


class Mirror:
    """The run in `folder` as it lies at `uri`, with the last `keep` checkpoints.

    As a callback, it takes each checkpoint there. Everything raises UnavailableError, which names the file, where S3
    does not answer within its deadline.
    """

    def __init__(self, uri: str, folder: Path, keep: int) -> None:
        self.uri, self.folder, self.keep = uri.rstrip("/"), folder, keep
        self._token: str | None = None

    def pull(self) -> None:
        """Brings the working folder up to what lies at `uri`; what is newer here stays."""
        key, path = self._read(RUN_KEY), self.folder / RUN_KEY
        if key is None or not path.is_file() or path.read_bytes() != key:
            _empty(self.folder)
            storage.write_bytes(path, key or uuid.uuid4().hex.encode())
        if key is None:
            return
        for name in _SMALL:
            theirs, mine = self._read(name), self.folder / name
            if theirs is not None and (not mine.is_file() or len(theirs) > mine.stat().st_size):
                storage.write_bytes(mine, theirs)
        for name in (BEST, MODEL):
            if self._digest(name) is not None and not artifact.is_valid(self.folder / name):
                artifact.download(self._at(name), self.folder / name)
        if not (self.folder / MODEL).exists():
            self._pull_newest()

    def claim(self) -> None:
        """Makes this process the one that goes on with the run; a checkpoint that only it has is taken to `uri`."""
        self._token = uuid.uuid4().hex
        storage.write_bytes(self._at(RUN_KEY), (self.folder / RUN_KEY).read_bytes())
        storage.write_bytes(self._at(_OWNER), self._token.encode())
        newest = self._local().newest()
        if newest is not None:
            self._put(newest)

    def bring(self, name: str, sha256: str = "") -> Artifact:
        """What another machine has in its working folder under `name`, or `lend` has named, in the one here."""
        lies = f"{name}-{sha256[:8]}" if name.startswith(CHECKPOINTS) else name
        return artifact.download(self._at(lies), self.folder / name)

    def lend(self, given: Artifact) -> str:
        """Takes an artifact of this machine to `uri`, where the workers `bring` it; its name there."""
        name = f"{RESUMED}/{given.sha256[:16]}"
        self._replace(given, name)
        return name

    def finish(self) -> None:
        """Takes the result there, then the rest, and drops the checkpoints."""
        self._replace(artifact.read(self.folder / MODEL), MODEL)
        self._push_small()
        storage.delete_folder(self._at(CHECKPOINTS))

    def on_step(self, progress: Progress) -> None:
        """Nothing."""

    def on_checkpoint(self, saved: Artifact, samples_seen: int) -> None:
        """Takes it there."""
        self._put(saved)
        self._push_small()

    def on_end(self, result: Artifact) -> None:
        """Nothing yet: what the others do at the end is for `finish` too."""

    def on_failure(self, error: BaseException) -> None:
        """Says there how the run ended, if it can."""
        with suppress(UnavailableError):
            self._push_small()

    def _put(self, saved: Artifact) -> None:
        """One checkpoint, then the index that names it, then the oldest go."""
        name = f"{saved.folder.name}-{saved.sha256[:8]}"
        names = self._names()
        if names[-1:] == [name]:
            return
        self._check_owner()
        if self._digest(f"{CHECKPOINTS}/{name}") != saved.sha256:
            self._upload(saved, f"{CHECKPOINTS}/{name}")
        self._check_owner()
        names = [*[known for known in names if known != name], name]
        storage.write_bytes(self._at(CHECKPOINTS, INDEX), json.dumps(names[-self.keep :]).encode())
        for old in names[: -self.keep]:
            storage.delete_folder(self._at(CHECKPOINTS, old))

    def _pull_newest(self) -> None:
        """The newest sound checkpoint there, unless the newest here is as new."""
        local = self._local()
        mine = local.newest()
        for name in reversed(self._names()):
            here = name.rpartition("-")[0]
            if mine is not None and mine.folder.name >= here:
                return
            try:
                artifact.download(self._at(CHECKPOINTS, name), self.folder / CHECKPOINTS / here)
            except ArtifactError as error:
                warnings.warn(f"{error}; it is passed over for the checkpoint before it", stacklevel=2)
                continue
            local.adopt(here)
            return

    def _upload(self, given: Artifact, name: str) -> None:
        """Its files, which are then there in full, and its manifest last."""
        storage.copy_files(given.folder, self._at(name), list(given.files))
        for file, entry in given.files.items():
            size = storage.size(self._at(name, file))
            if size != entry.size:
                raise UnavailableError(f"{self._at(name, file)} has {size} bytes, {entry.size} were written: try again")
        storage.copy_files(given.folder, self._at(name), [artifact.MANIFEST])

    def _replace(self, given: Artifact, name: str) -> None:
        """Puts it in the place of an older one, of which nothing counts while it is half-replaced."""
        if self._digest(name) != given.sha256:
            storage.delete_folder(self._at(name))
            self._upload(given, name)

    def _push_small(self) -> None:
        for name in _SMALL:
            if (self.folder / name).is_file():
                storage.write_bytes(self._at(name), (self.folder / name).read_bytes())
        self._push_best()

    def _push_best(self) -> None:
        best, held = self.folder / BEST, self.folder / f".{BEST}-held"
        try:
            # There need be none, and the validation may be replacing it: then the next one is taken.
            with suppress(ArtifactError, FileNotFoundError):
                if storage.sha256((best / artifact.MANIFEST).read_bytes()) != self._digest(BEST):
                    self._replace(hold(artifact.read(best), held), BEST)
        finally:
            shutil.rmtree(held, ignore_errors=True)

    def _check_owner(self) -> None:
        owner = self._read(_OWNER)
        if self._token is not None and owner != self._token.encode():
            raise UnavailableError(f"another process goes on with the run at {self.uri}: this one ends here")

    def _names(self) -> list[str]:
        text = self._read(f"{CHECKPOINTS}/{INDEX}")
        names: list[str] = json.loads(text) if text else []
        return names

    def _digest(self, name: str) -> str | None:
        """sha256 of the complete artifact of that name there; None: there is none."""
        manifest = self._read(f"{name}/{artifact.MANIFEST}")
        return None if manifest is None else storage.sha256(manifest)

    def _read(self, name: str) -> bytes | None:
        try:
            return storage.read_bytes(self._at(name))
        except FileNotFoundError:
            return None

    def _at(self, *parts: str) -> str:
        return storage.join(self.uri, *parts)

    def _local(self) -> Checkpoints:
        return Checkpoints(self.folder / CHECKPOINTS, self.keep)


def _empty(folder: Path) -> None:
    """What is of a run in the folder goes; itself it stays, for it may be locked (`storage.lock_folder`)."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == RESUMED:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
