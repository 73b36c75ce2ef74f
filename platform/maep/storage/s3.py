"""S3: one endpoint and one set of keys. Use it through `maep.storage`, except for Parquet (`arrow`).

Endpoint and keys come from the usual AWS_* variables. boto3 reads and writes whole objects: single or multipart
uploads, atomic and checksummed. Transient failures are retried until `$MAEP_S3_DEADLINE_S` (120) seconds have passed.
Arrow's own client, whose threads do not hold Python's lock, reads Parquet. There the caller sets the deadline:
`within`, `data.read_timeout_s`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from maep.errors import UnavailableError, UserError

T = TypeVar("T")
SCHEME = "s3://"
_CURE = "check bucket, AWS_ENDPOINT_URL_S3 and the AWS keys"
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_ARROW_ATTEMPTS = 8
_ARROW_FAULT = "AWS Error"


def read(uri: str) -> bytes:
    """A whole object. Raises FileNotFoundError where there is none."""
    data: bytes = _call("read", uri, lambda s3, at: s3.get_object(**at)["Body"].read())
    return data


def write(uri: str, data: bytes) -> None:
    """Writes a whole object."""
    _call("write", uri, lambda s3, at: s3.put_object(**at, Body=data))


def upload(path: Path, uri: str) -> None:
    """Writes a local file as an object."""
    _call("write", uri, lambda s3, at: s3.upload_file(str(path), *at.values()))


def download(uri: str, file: BinaryIO) -> None:
    """Reads an object into an open file."""
    _call("read", uri, lambda s3, at: s3.download_fileobj(*at.values(), file))


def size(uri: str) -> int:
    """Bytes of an object. Raises FileNotFoundError where there is none."""
    return int(_call("read", uri, lambda s3, at: s3.head_object(**at)["ContentLength"]))


def delete(uri: str) -> None:
    """Deletes an object, if it exists."""
    _call("delete", uri, lambda s3, at: s3.delete_object(**at))


def list_keys(folder: str) -> list[str]:
    """Keys below `folder`, relative to it, sorted."""

    def pages(s3: Any, at: dict[str, str]) -> list[str]:
        prefix = at["Key"].rstrip("/") + "/" if at["Key"] else ""
        found = s3.get_paginator("list_objects_v2").paginate(Bucket=at["Bucket"], Prefix=prefix)
        return sorted(item["Key"][len(prefix) :] for page in found for item in page.get("Contents", []))

    listed: list[str] = _call("list", folder, pages)
    return listed


def arrow(uri: str) -> tuple[Any, str]:
    """Arrow's file system for `uri`, and the path of `uri` in it. Run its calls inside `within`."""
    return _arrow(_endpoint(), _credentials()), uri.removeprefix(SCHEME)


def within(seconds: float, uri: str, action: Callable[[], T]) -> T:
    """The result of `action`, which reads `uri` by Arrow. Raises UnavailableError after `seconds` or an S3 error."""
    future: Future[T] = Future()

    def attempt() -> None:
        try:
            future.set_result(action())
        except BaseException as error:  # raised in the thread that waits
            future.set_exception(error)

    # A daemon thread, not a pool's: it may hang in a dead connection, and the process must not wait for it at exit.
    threading.Thread(target=attempt, daemon=True, name=f"read {uri}").start()
    try:
        return future.result(seconds)
    except OSError as error:  # also TimeoutError
        if not future.done():
            raise UnavailableError(f"{uri}: S3 gave no answer within {seconds:g} s: {_CURE}") from None
        if _ARROW_FAULT in str(error):
            raise UnavailableError(f"{uri}: {' '.join(str(error).split())}: {_CURE}") from None
        raise


def _split(uri: str) -> dict[str, str]:
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise UserError(f"{uri!r} names no bucket: write s3://BUCKET/KEY")
    return {"Bucket": bucket, "Key": key}


def _endpoint() -> str | None:
    """The endpoint in the environment; None is Amazon's."""
    names = ("AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL")
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _credentials() -> tuple[str | None, ...]:
    """Keys in the environment, by which clients are cached."""
    return tuple(os.environ.get(name) for name in _CREDENTIALS)


@lru_cache(maxsize=4)
def _boto3(endpoint: str | None, credentials: tuple[str | None, ...], deadline_s: float) -> Any:
    import boto3
    from botocore.config import Config

    retries = {"mode": "standard", "total_max_attempts": 3}
    settings = Config(retries=retries, connect_timeout=5, read_timeout=min(60.0, deadline_s))
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=settings)


@lru_cache(maxsize=4)
def _arrow(endpoint: str | None, credentials: tuple[str | None, ...]) -> Any:
    from pyarrow import fs

    address = urlsplit(endpoint or "")
    return fs.S3FileSystem(  # it finds the keys itself, so that none is pickled when Ray sends it to other processes
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        scheme=address.scheme or "https",
        endpoint_override=address.netloc or None,
        connect_timeout=5,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ARROW_ATTEMPTS),
    )


def _deadline_s() -> float:
    text = os.environ.get("MAEP_S3_DEADLINE_S", "120")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise UserError(f"MAEP_S3_DEADLINE_S: {text!r} must be a number of seconds above 0")
    return seconds


def _call(verb: str, uri: str, action: Callable[[Any, dict[str, str]], T]) -> T:
    """The result of `action(client, {Bucket, Key})`, retried within the deadline. Raises UnavailableError.

    FileNotFoundError for an object that does not exist.
    """
    deadline_s, at = _deadline_s(), _split(uri)
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError

    client = _boto3(_endpoint(), _credentials(), deadline_s)
    try:
        return _retry(lambda: action(client, at), deadline_s)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in ("NoSuchKey", "404"):
            raise FileNotFoundError(f"{uri} does not exist") from None
        raise UnavailableError(f"cannot {verb} {uri}: S3 answered {code or error}: {_CURE}") from None
    except (BotoCoreError, S3UploadFailedError) as error:
        raise UnavailableError(f"cannot {verb} {uri}: {error}: {_CURE}") from None


def _retry(action: Callable[[], T], deadline_s: float) -> T:
    """The result of `action`, repeated after transient failures until `deadline_s` have passed."""
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, IncompleteReadError

    ends, pause = time.monotonic() + deadline_s, 0.5
    while True:
        try:
            return action()
        except (BotoCoreError, ClientError) as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"] if isinstance(error, ClientError) else 0
            transient = status >= 500 or isinstance(error, HTTPClientError | ConnectionError | IncompleteReadError)
            if not transient or time.monotonic() + pause > ends:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 15.0)
