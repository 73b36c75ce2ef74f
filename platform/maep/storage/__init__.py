"""Read, write, list, copy and delete whole files, at local paths and at `s3://BUCKET/KEY` alike.

A local file is written beside its target, flushed, and renamed onto it; see `maep.storage.s3` for S3.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from maep.errors import UnavailableError, WriteError
from maep.storage import s3


def is_remote(uri: str | Path) -> bool:
    """Whether `uri` is an S3 address rather than a local path."""
    return str(uri).startswith(s3.SCHEME)


def join(uri: str | Path, *parts: str) -> str:
    """`uri` with `parts` below it."""
    return "/".join([str(uri).rstrip("/"), *parts])


def sha256(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hex digest of a local file, read in chunks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(uri: str | Path, data: bytes, mode: int = 0o644) -> None:
    """Writes a whole file or nothing: no reader ever sees part of it. Raises WriteError or UnavailableError.

    `mode` applies to local files; 0o600 for secrets.
    """
    if is_remote(uri):
        s3.write(str(uri), data)
        return
    with atomic_file(Path(uri), mode) as file:
        file.write(data)


def read_bytes(uri: str | Path) -> bytes:
    """A whole file. Raises FileNotFoundError where there is none."""
    return s3.read(str(uri)) if is_remote(uri) else Path(uri).read_bytes()


def size(uri: str | Path) -> int:
    """Bytes of a file. Raises FileNotFoundError where there is none."""
    return s3.size(str(uri)) if is_remote(uri) else Path(uri).stat().st_size


def list_files(uri: str | Path) -> list[str]:
    """Paths, relative to folder `uri`, of all files below it, sorted."""
    if is_remote(uri):
        return s3.list_keys(str(uri))
    root = Path(uri)
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def delete_file(uri: str | Path) -> None:
    """Deletes a file, if it exists."""
    if is_remote(uri):
        s3.delete(str(uri))
    else:
        Path(uri).unlink(missing_ok=True)


def delete_folder(uri: str | Path) -> None:
    """Deletes all files below folder `uri`, if it exists."""
    if not is_remote(uri):
        shutil.rmtree(uri, ignore_errors=True)
        return
    for name in list_files(uri):
        delete_file(join(uri, name))


def copy_files(source: str | Path, target: str | Path, names: Iterable[str]) -> None:
    """Copies files `names` (relative paths) from folder to folder in the order given, either side local or S3."""
    for name in names:
        _copy(join(source, name), join(target, name))


def _copy(source: str, target: str) -> None:
    if is_remote(target):
        s3.write(target, s3.read(source)) if is_remote(source) else s3.upload(Path(source), target)
        return
    with atomic_file(Path(target)) as file:
        if is_remote(source):
            s3.download(source, file)
        else:
            with open(source, "rb") as original:
                shutil.copyfileobj(original, file)


@contextmanager
def atomic_file(target: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """An open file that becomes `target` when the block succeeds; after an exception `target` is unchanged.

    Raises WriteError where it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(beside, mode)
            os.replace(beside, target)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except FileNotFoundError:  # of a source; the caller has the better message
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "free some space" if full else "choose a folder that can be written"
        raise WriteError(f"cannot write {target}: {error.strerror or error}: {cure}") from None


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Locks `folder` against other processes of this machine. Raises UnavailableError where one has locked it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot lock folders
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                cure = "wait until it ends, or choose another --output"
                raise UnavailableError(f"another process is using {folder}: {cure}") from None
        yield
    finally:
        os.close(descriptor)  # releases the lock, as the kernel does however this process ends


def replace_folder(beside: Path, target: Path) -> None:
    """Moves the finished folder `beside` to `target`; an older `target` is removed only afterwards.

    Several processes may call at once: the last one's folder remains. If this process is killed between its two
    renames, `restore_folder` brings the older folder back.
    """
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    try:
        while not _moved(beside, target):
            shutil.rmtree(old, ignore_errors=True)
            with suppress(FileNotFoundError):
                os.replace(target, old)
    except BaseException:
        restore_folder(target)
        raise
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Puts the older folder back if a process was killed while it replaced `target`."""
    if target.exists() or not target.parent.is_dir():
        return
    for old in target.parent.glob(f".{glob.escape(target.name)}.old-*"):
        with suppress(OSError):
            os.replace(old, target)
            return


def _moved(beside: Path, target: Path) -> bool:
    """Renames folder `beside` to `target`; False where a folder that is not empty is in the way."""
    try:
        os.replace(beside, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True
