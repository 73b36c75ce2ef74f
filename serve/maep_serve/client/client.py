"""The endpoint from Python: `Client`, and `AsyncClient` for many images at once, which is what fills batches.

Both try again where that helps (see `retry`) and give up at a deadline. The token is in no repr, error or
log line.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from maep.errors import ConfigError, UnavailableError
from maep_serve.client import results
from maep_serve.client.results import Candidate, Classified, Info, ProblemError, Purified
from maep_serve.client.retry import Answer, Attempts, Patience
from maep_serve.config import TOKEN_VARIABLE, is_loopback

__all__ = ["AsyncClient", "Candidate", "Classified", "Client", "Info", "Patience", "ProblemError", "Purified"]

DEFAULT_URL = "http://127.0.0.1:8000"
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


Pixels = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Client:
    """Calls the endpoint at `url` from any number of threads.

    token: its bearer token, if it asks for one. ca_file: certificates to trust instead of the system's.
    Every method raises ProblemError where the endpoint refuses (with its `code`), and UnavailableError where it does
    not serve within `patience`. `transport` and `sleep` are for tests.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str | None = None,
        patience: Patience | None = None,
        ca_file: str | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = checked_url(url)
        self._patience = patience or Patience()
        self._sleep = sleep
        self._http = httpx.Client(**_options(self.url, token, ca_file), transport=transport)

    def purify(self, image: bytes) -> Purified:
        """The purified form of an encoded image (PNG, JPEG, WebP)."""
        return _read(self.url, self._call(_purify(image)), _purified)

    def classify(self, image: bytes, top_k: int = 5) -> Classified:
        """The classifier's `top_k` best classes before and after purification."""
        return _read(self.url, self._call(_classify(image, top_k)), _classified)

    def purify_array(self, image: Pixels) -> Pixels:
        """The purified form of RGB pixels, [H, W, 3]: uint8, or float32 in [0, 1]; the same shape and type."""
        return _read(self.url, self._call(_purify_array(image)), _array)

    def info(self) -> Info:
        """What is served, and within which limits."""
        return _read(self.url, self._call(_INFO), _info)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def _call(self, request: _Request) -> Answer:
        attempts = Attempts(self.url, self._patience)
        while True:
            try:
                answer = self._attempt(request, attempts.timeout_s())
                if answer.ok:
                    return answer
                wait_s = attempts.wait_after(answer)
            except httpx.RequestError as error:
                wait_s = attempts.wait_after_loss(error)
            _log.info("%s%s: again in %.1f s", self.url, request.path, wait_s)
            self._sleep(wait_s)

    def _attempt(self, request: _Request, timeout_s: float) -> Answer:
        """httpx limits each step of an exchange; a body that trickles in is limited here."""
        ends = time.monotonic() + timeout_s
        sending = self._http.stream(
            request.method, request.path, content=request.body, headers=request.headers, timeout=timeout_s
        )
        with sending as response:
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() > ends:
                    raise httpx.ReadTimeout(f"the answer was not complete after {timeout_s:g} s")
            return Answer(response.status_code, response.headers, bytes(body))


class AsyncClient:
    """`Client` for asyncio: the same arguments, methods and errors. `num_connections` bounds what is under way."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str | None = None,
        patience: Patience | None = None,
        ca_file: str | None = None,
        num_connections: int = 64,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.url = checked_url(url)
        self._patience = patience or Patience()
        self._sleep = sleep
        # A semaphore, for waiting for a connection must not count against an attempt's time.
        self._free = asyncio.Semaphore(num_connections)
        limits = httpx.Limits(max_connections=num_connections, max_keepalive_connections=num_connections)
        self._http = httpx.AsyncClient(**_options(self.url, token, ca_file), transport=transport, limits=limits)

    async def purify(self, image: bytes) -> Purified:
        """See `Client.purify`."""
        return _read(self.url, await self._call(_purify(image)), _purified)

    async def classify(self, image: bytes, top_k: int = 5) -> Classified:
        """See `Client.classify`."""
        return _read(self.url, await self._call(_classify(image, top_k)), _classified)

    async def purify_array(self, image: Pixels) -> Pixels:
        """See `Client.purify_array`."""
        return _read(self.url, await self._call(_purify_array(image)), _array)

    async def info(self) -> Info:
        """See `Client.info`."""
        return _read(self.url, await self._call(_INFO), _info)

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

    async def _call(self, request: _Request) -> Answer:
        async with self._free:
            attempts = Attempts(self.url, self._patience)
            while True:
                try:
                    answer = await self._attempt(request, attempts.timeout_s())
                    if answer.ok:
                        return answer
                    wait_s = attempts.wait_after(answer)
                except (httpx.RequestError, TimeoutError) as error:
                    wait_s = attempts.wait_after_loss(error)
                _log.info("%s%s: again in %.1f s", self.url, request.path, wait_s)
                await self._sleep(wait_s)

    async def _attempt(self, request: _Request, timeout_s: float) -> Answer:
        async with asyncio.timeout(timeout_s):
            response = await self._http.request(
                request.method, request.path, content=request.body, headers=request.headers, timeout=timeout_s
            )
        return Answer(response.status_code, response.headers, response.content)


_INFO = _Request("GET", "/v1/info")
_RAW = "application/octet-stream"
_DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4")}


def token_of_environment() -> str | None:
    """The first token in $MAEP_SERVE_TOKEN, which may hold several for an endpoint; None where there is none."""
    return os.environ.get(TOKEN_VARIABLE, "").split(",")[0].strip() or None


def content_type(image: bytes) -> str:
    """The media type of an encoded image, from its first bytes; what is unknown is sent as PNG and refused there."""
    if image.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    return "image/png"


def checked_url(url: str) -> str:
    """`url` without a slash at its end. Raises ConfigError for what is no http(s) address, or carries a password."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"the endpoint's URL cannot be used ({error}): write http://HOST:PORT") from None
    if parsed.userinfo:
        raise ConfigError(f"the URL of {parsed.host} carries a password: give the token apart from it")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"{url!r} is no endpoint: write http://HOST:PORT or https://HOST")
    return url.rstrip("/")


def _options(url: str, token: str | None, ca_file: str | None) -> dict[str, Any]:
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError("the token must be printable ASCII without spaces (a line end at its end, perhaps?)")
    return {
        "base_url": url,
        "headers": {} if token is None else {"Authorization": f"Bearer {token}"},
        "verify": True if ca_file is None else _trusting(ca_file),
        "trust_env": not is_loopback(httpx.URL(url).host),  # HTTP_PROXY is not meant for this machine
    }


def _trusting(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"ca_file: {ca_file} holds no certificates: {error.strerror or error}") from None


def _purify(image: bytes) -> _Request:
    return _Request("POST", "/v1/purify", image, {"Content-Type": content_type(image)})


def _classify(image: bytes, top_k: int) -> _Request:
    return _Request("POST", f"/v1/classify?top_k={top_k}", image, {"Content-Type": content_type(image)})


def _purify_array(image: Pixels) -> _Request:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype not in (np.uint8, np.float32):
        raise ConfigError(f"an image of {image.dtype} {list(image.shape)}: uint8 or float32 [H, W, 3] is needed")
    headers = {
        "Content-Type": _RAW,
        "Accept": f"{_RAW};dtype={image.dtype.name}",
        "X-Shape": ",".join(map(str, image.shape)),
        "X-Dtype": image.dtype.name,
    }
    return _Request("POST", "/v1/purify", np.ascontiguousarray(image, image.dtype.newbyteorder("<")).tobytes(), headers)


def _purified(answer: Answer) -> Purified:
    return results.purified(answer.body, answer.headers)


def _array(answer: Answer) -> Pixels:
    shape = tuple(map(int, answer.headers["x-shape"].split(",")))
    dtype = _DTYPES[answer.headers["x-dtype"]]
    # A copy, for what numpy reads from bytes cannot be written to.
    return np.frombuffer(answer.body, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _classified(answer: Answer) -> Classified:
    return results.classified(json.loads(answer.body))


def _info(answer: Answer) -> Info:
    return results.info(json.loads(answer.body))


def _read(url: str, answer: Answer, read: Callable[[Answer], _T]) -> _T:
    try:
        return read(answer)
    except (KeyError, TypeError, ValueError):
        raise UnavailableError(f"{url} answers, but not as a maep endpoint does: check the address") from None
