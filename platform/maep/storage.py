"""One way to read and write local paths and `s3://bucket/key`: whole files, atomic, verified.

Local writes go beside the target, are flushed, and are renamed onto it. S3 writes are single objects or multipart
uploads, both atomic and checksummed by boto3; the endpoint and keys come from the usual AWS_* variables. What fails
on the way is tried again until `$MAEP_S3_DEADLINE_S` (120) seconds have passed.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from maep.errors import UnavailableError, UserError, WriteError

_S3 = "s3://"


def is_remote(uri: str | Path) -> bool:
    """Whether `uri` is an S3 address rather than a local path."""
    return str(uri).startswith(_S3)


def join(uri: str | Path, *parts: str) -> str:
    """`uri` with `parts` below it."""
    return "/".join([str(uri).rstrip("/"), *parts])


def sha256(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hex digest of a local file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(uri: str | Path, data: bytes, mode: int = 0o644) -> None:
    """Writes a whole file, or nothing: no reader ever sees a part of it. Raises WriteError where it cannot.

    `mode` is that of a local file; 0o600 is for what holds a secret.
    """
    if is_remote(uri):
        bucket, key = _split(str(uri))
        _call("write", uri, lambda: _s3().put_object(Bucket=bucket, Key=key, Body=data))
        return
    with whole(Path(uri), mode) as file:
        file.write(data)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other processes of this machine from working in `folder` too. Raises UnavailableError where one does."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                cure = "wait until it ends, or choose another --output"
                raise UnavailableError(f"another process works in {folder}: {cure}") from None
        yield
    finally:
        os.close(descriptor)  # lets go of it; the kernel does so too, however this process ends


@contextmanager
def whole(target: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """An open file that becomes `target` once the block has ended well; else it is gone and `target` is as it was.

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
    except FileNotFoundError:  # the source's, which the caller knows how to name
        raise
    except OSError as error:
        cure = (
            "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose a folder that can be written"
        )
        raise WriteError(f"cannot write {target}: {error.strerror or error}: {cure}") from None


def read_bytes(uri: str | Path) -> bytes:
    """A whole file. Raises FileNotFoundError where there is none."""
    if not is_remote(uri):
        return Path(uri).read_bytes()
    bucket, key = _split(str(uri))
    data: bytes = _call("read", uri, lambda: _s3().get_object(Bucket=bucket, Key=key)["Body"].read())
    return data


def size(uri: str | Path) -> int:
    """Bytes of a file. Raises FileNotFoundError where there is none."""
    if not is_remote(uri):
        return Path(uri).stat().st_size
    bucket, key = _split(str(uri))
    return int(_call("read", uri, lambda: _s3().head_object(Bucket=bucket, Key=key)["ContentLength"]))


def remove_folder(uri: str | Path) -> None:
    """Removes all files below folder `uri`, if there are any."""
    if not is_remote(uri):
        shutil.rmtree(uri, ignore_errors=True)
        return
    for name in list_files(uri):
        remove_file(join(uri, name))


def remove_file(uri: str | Path) -> None:
    """Removes a file, if there is one."""
    if not is_remote(uri):
        Path(uri).unlink(missing_ok=True)
        return
    bucket, key = _split(str(uri))
    _call("remove", uri, lambda: _s3().delete_object(Bucket=bucket, Key=key))


def list_files(uri: str | Path) -> list[str]:
    """Paths, relative to folder `uri`, of all files below it, sorted."""
    if not is_remote(uri):
        root = Path(uri)
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    bucket, prefix = _split(str(uri).rstrip("/") + "/")

    def pages() -> list[str]:
        found = []
        for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            found += [item["Key"][len(prefix) :] for item in page.get("Contents", [])]
        return sorted(found)

    listed: list[str] = _call("list", uri, pages)
    return listed


def copy_files(source: str | Path, target: str | Path, names: list[str]) -> None:
    """Copies files `names` (relative paths) from folder to folder in the order given, either side local or S3."""
    for name in names:
        _copy(join(source, name), join(target, name))


def _copy(source: str, target: str) -> None:
    if is_remote(source) and is_remote(target):
        write_bytes(target, read_bytes(source))
    elif is_remote(target):
        bucket, key = _split(target)
        _call("write", target, lambda: _s3().upload_file(source, bucket, key))
    elif is_remote(source):
        bucket, key = _split(source)
        with whole(Path(target)) as file:
            _call("read", source, lambda: _s3().download_fileobj(bucket, key, file))
    else:
        with open(source, "rb") as original, whole(Path(target)) as file:
            shutil.copyfileobj(original, file)


def replace_folder(beside: Path, target: Path) -> None:
    """Puts the finished folder `beside` where `target` is; an older `target` goes only once the new one is there.

    Several processes may do so at once: each puts a finished folder, the last one stays. If this process is killed
    between its two renames, `restore_folder` brings the older one back.
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
    _sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Where a replacement of `target` was cut short between its two renames, the older folder is put back."""
    if target.exists() or not target.parent.is_dir():
        return
    for old in target.parent.glob(f".{glob.escape(target.name)}.old-*"):
        with suppress(OSError):
            os.replace(old, target)
            return


def _moved(beside: Path, target: Path) -> bool:
    """Renames folder `beside` to `target`; False where a folder with something in it is in the way."""
    try:
        os.replace(beside, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri[len(_S3) :].partition("/")
    if not bucket:
        raise UserError(f"{uri!r} names no bucket: write s3://BUCKET/KEY")
    return bucket, key


def s3_endpoint() -> str | None:
    """Where S3 is, as the environment says; None: Amazon's."""
    names = ("AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL")
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


@lru_cache(maxsize=1)
def _s3() -> Any:
    import boto3
    from botocore.config import Config

    endpoint = s3_endpoint()
    settings = Config(
        retries={"mode": "standard", "total_max_attempts": 3}, connect_timeout=5, read_timeout=min(60.0, _deadline())
    )
    return boto3.client("s3", endpoint_url=endpoint, config=settings)


def _deadline() -> float:
    """Seconds after which an S3 that does not answer, or only with errors of its own, is given up."""
    text = os.environ.get("MAEP_S3_DEADLINE_S", "120")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise UserError(f"MAEP_S3_DEADLINE_S: {text!r} is no number of seconds above 0")
    return seconds


def _call(verb: str, uri: str | Path, action: Any) -> Any:
    """Runs an S3 call, again while the deadline allows; what the user can mend (keys, bucket, address) is one line."""
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return _persistently(action)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in ("NoSuchKey", "404"):
            raise FileNotFoundError(f"{uri} does not exist") from None
        raise UnavailableError(f"cannot {verb} {uri}: S3 answered {code or error}: check bucket and keys") from None
    except (BotoCoreError, S3UploadFailedError) as error:
        raise UnavailableError(f"cannot {verb} {uri}: {error}: check AWS_ENDPOINT_URL_S3 and the AWS keys") from None


def _persistently(action: Any) -> Any:
    """Runs `action` until it goes well, another try could not help, or the deadline has passed."""
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, IncompleteReadError

    ends, pause = time.monotonic() + _deadline(), 0.5
    while True:
        try:
            return action()
        except (BotoCoreError, ClientError) as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"] if isinstance(error, ClientError) else 0
            passing = status >= 500 or isinstance(error, HTTPClientError | ConnectionError | IncompleteReadError)
            if not passing or time.monotonic() + pause > ends:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 15.0)
