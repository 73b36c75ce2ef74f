"""Which failed requests are retried, and when. Purification is idempotent, so every request may be repeated.

Retried: 429 and 503, after their Retry-After; lost connections and timeouts; and a 500, 502 or 504 whose body is not a
problem document of the endpoint, because then a proxy (Ray Serve's, nginx) lost the replica.
"""

from __future__ import annotations

import json
import logging
import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx

from maep.errors import UnavailableError
from maep_serve.client.results import ProblemError

_BUSY = (429, 503)
_PROXY_ERRORS = (500, 502, 504)
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawResponse:
    """A complete HTTP response. `headers` ignore case."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


@dataclass(frozen=True)
class Patience:
    """How long a call is retried: `timeout_s` per attempt, `deadline_s` for all attempts and waits together.

    retries: attempts after the first. A Retry-After beyond the deadline ends the call immediately.
    """

    timeout_s: float = 30.0
    deadline_s: float = 60.0
    retries: int = 5


class Attempts:
    """The attempts of one call to `url`. `clock` and `jitter` (a number in [0, 1)) are for tests."""

    def __init__(
        self,
        url: str,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._url = url
        self._patience = patience
        self._clock = clock
        self._jitter = jitter
        self._deadline = clock() + patience.deadline_s
        self._num_done = 0

    def timeout_s(self) -> float:
        """Timeout of the next attempt, in seconds."""
        return max(0.001, min(self._patience.timeout_s, self._deadline - self._clock()))

    def wait_after(self, failure: RawResponse | Exception) -> float:
        """Seconds to wait before the next attempt, after a response that is not 2xx, a lost connection or a timeout.

        Raises ProblemError for a response that another attempt would not change, and UnavailableError after the last
        attempt or for a server certificate that is not trusted.
        """
        if isinstance(failure, RawResponse):
            problem = read_problem(failure)
            lost = failure.status in _PROXY_ERRORS and problem.code == "unknown"
            if failure.status not in _BUSY and not lost:
                raise problem
            return self._wait(str(problem), retry_after_s(failure.headers))
        untrusted = _cause(failure, ssl.SSLCertVerificationError)
        if untrusted is not None:
            raise UnavailableError(f"{self._url}: its certificate is not trusted: {untrusted.verify_message}") from None
        return self._wait(f"{type(failure).__name__} {failure}".strip(), None)

    def _wait(self, reason: str, requested_s: float | None) -> float:
        self._num_done += 1
        backoff_s = min(_FIRST_WAIT_S * 2 ** (self._num_done - 1), _LONGEST_WAIT_S)
        wait_s = backoff_s if requested_s is None else requested_s
        wait_s *= 1 + self._jitter() / 2  # so that clients refused together do not return together
        if self._num_done > self._patience.retries or self._clock() + wait_s >= self._deadline:
            attempts = "1 attempt" if self._num_done == 1 else f"{self._num_done} attempts"
            raise UnavailableError(f"{self._url} is unavailable after {attempts}: {reason}")
        _log.info("%s: retrying in %.1f s after: %s", self._url, wait_s, reason)
        return wait_s


def read_problem(response: RawResponse) -> ProblemError:
    """The problem document of a `response`; code `unknown` where the body holds none."""
    try:
        body = json.loads(response.body)
        return ProblemError(response.status, str(body["code"]), str(body["detail"]))
    except (ValueError, KeyError, TypeError):
        text = " ".join(response.body[:1000].decode(errors="replace").split())
        return ProblemError(response.status, "unknown", text[:200] or "empty body")


def retry_after_s(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Seconds that Retry-After requests (RFC 9110, 10.2.3: a number or a date); None if absent or malformed."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now())
    except (ValueError, OverflowError):
        return None


def _cause(error: BaseException, kind: type[ssl.SSLCertVerificationError]) -> ssl.SSLCertVerificationError | None:
    """The exception of `kind` in the chain of causes of `error`."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, kind):
        found = found.__cause__ or found.__context__
    return found
