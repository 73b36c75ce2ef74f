"""Python clients of the endpoint: `Client`, and `AsyncClient`, whose concurrent calls fill the endpoint's batches.

Both are thin shells around `calls` (requests and responses) and `retry` (attempts, waits, deadline): they only send
and sleep. The token never appears in a repr, error or log line.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx

from maep.errors import ConfigError, UnavailableError
from maep_serve.client import calls
from maep_serve.client.calls import Call, Pixels
from maep_serve.client.results import Candidate, Classified, Info, ProblemError, Purified
from maep_serve.client.retry import Attempts, Patience, RawResponse
from maep_serve.config import TOKEN_VARIABLE, is_loopback

__all__ = ["AsyncClient", "Candidate", "Classified", "Client", "Info", "Patience", "ProblemError", "Purified"]

DEFAULT_URL = "http://127.0.0.1:8000"
_T = TypeVar("_T")


class Client:
    """Calls the endpoint at `url`; threads may share it.

    token: the endpoint's bearer token, if it requires one. ca_file: certificates to trust instead of the system's.
    Every method raises ProblemError, with its `code`, if the endpoint refuses the request, and UnavailableError if it
    does not respond within `patience`. `transport` and `sleep` are for tests.
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
        """Purify an encoded image (PNG, JPEG, WebP)."""
        return self._run(calls.purify(image))

    def classify(self, image: bytes, top_k: int = 5) -> Classified:
        """The classifier's `top_k` classes before and after purification."""
        return self._run(calls.classify(image, top_k))

    def purify_array(self, image: Pixels) -> Pixels:
        """Purify RGB pixels [H, W, 3], uint8 or float32 in [0, 1]; the result has the same shape and dtype."""
        return self._run(calls.purify_array(image))

    def info(self) -> Info:
        """The served models and the endpoint's limits."""
        return self._run(calls.info())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def _run(self, call: Call[_T]) -> _T:
        attempts = Attempts(self.url, self._patience)
        while True:
            outcome = self._attempt(call, attempts.timeout_s())
            if isinstance(outcome, RawResponse) and outcome.ok:
                return _read(self.url, call, outcome)
            self._sleep(attempts.wait_after(outcome))

    def _attempt(self, call: Call[Any], timeout_s: float) -> RawResponse | Exception:
        """The response, or the error that prevented it. httpx limits each read; the loop limits all reads together."""
        deadline = time.monotonic() + timeout_s
        try:
            with self._http.stream(**call.request(timeout_s)) as response:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > deadline:
                        raise httpx.ReadTimeout(f"response incomplete after {timeout_s:g} s")
                return RawResponse(response.status_code, response.headers, bytes(body))
        except httpx.RequestError as error:
            return error


class AsyncClient:
    """`Client` for asyncio: same arguments, methods and errors. `num_connections` bounds the concurrent requests."""

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
        # A semaphore, because waiting for a connection must not count towards an attempt's timeout.
        self._free = asyncio.Semaphore(num_connections)
        limits = httpx.Limits(max_connections=num_connections, max_keepalive_connections=num_connections)
        self._http = httpx.AsyncClient(**_options(self.url, token, ca_file), transport=transport, limits=limits)

    async def purify(self, image: bytes) -> Purified:
        """See `Client.purify`."""
        return await self._run(calls.purify(image))

    async def classify(self, image: bytes, top_k: int = 5) -> Classified:
        """See `Client.classify`."""
        return await self._run(calls.classify(image, top_k))

    async def purify_array(self, image: Pixels) -> Pixels:
        """See `Client.purify_array`."""
        return await self._run(calls.purify_array(image))

    async def info(self) -> Info:
        """See `Client.info`."""
        return await self._run(calls.info())

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

    async def _run(self, call: Call[_T]) -> _T:
        async with self._free:
            attempts = Attempts(self.url, self._patience)
            while True:
                outcome = await self._attempt(call, attempts.timeout_s())
                if isinstance(outcome, RawResponse) and outcome.ok:
                    return _read(self.url, call, outcome)
                await self._sleep(attempts.wait_after(outcome))

    async def _attempt(self, call: Call[Any], timeout_s: float) -> RawResponse | Exception:
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._http.request(**call.request(timeout_s))
            return RawResponse(response.status_code, response.headers, response.content)
        except (httpx.RequestError, TimeoutError) as error:
            return error


def token_of_environment() -> str | None:
    """The first token in $MAEP_SERVE_TOKEN (an endpoint may accept several), or None."""
    return os.environ.get(TOKEN_VARIABLE, "").split(",")[0].strip() or None


def checked_url(url: str) -> str:
    """`url` without a trailing slash. Raises ConfigError unless it is http(s) without a password."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"url: not a valid URL ({error}): write http://HOST:PORT") from None
    if parsed.userinfo:
        raise ConfigError(f"url: the URL of {parsed.host} contains a password: pass the token as `token` instead")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"url: {url!r} is not an endpoint: write http://HOST:PORT or https://HOST")
    return url.rstrip("/")


def _options(url: str, token: str | None, ca_file: str | None) -> dict[str, Any]:
    """The arguments that both httpx clients take. Raises ConfigError for an unusable token or certificate file."""
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError("token: must be printable ASCII without spaces (does it end with a line break?)")
    try:
        trusted = True if ca_file is None else ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"ca_file: cannot read certificates from {ca_file}: {error.strerror or error}") from None
    return {
        "base_url": url,
        "headers": {} if token is None else {"Authorization": f"Bearer {token}"},
        "verify": trusted,
        "trust_env": not is_loopback(httpx.URL(url).host),  # HTTP_PROXY does not apply to this machine
    }


def _read(url: str, call: Call[_T], response: RawResponse) -> _T:
    try:
        return call.read(response)
    except (KeyError, ValueError):
        raise UnavailableError(f"{url} does not respond like a maep endpoint: check the address") from None
