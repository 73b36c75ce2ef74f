"""When a request that failed is sent again: purifying is idempotent, so a lost answer may be asked for once more.

Tried again: 429 and 503, after their Retry-After; a lost connection or no answer in time; and a 500, 502 or 504 that is
not the endpoint's own document, for then something before it (Ray Serve's proxy, nginx) lost the replica.
"""

from __future__ import annotations

import json
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
_LOST_BEHIND_A_FRONT = (500, 502, 504)
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 10.0


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, read to its end. `headers` are found in any case."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


@dataclass(frozen=True)
class Patience:
    """How long a call is kept up: `timeout_s` for each attempt, `deadline_s` for all of them with their waits.

    retries: attempts after the first. A Retry-After that ends behind the deadline ends the call at once.
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
        self._ends = clock() + patience.deadline_s
        self._done = 0

    def timeout_s(self) -> float:
        """Seconds that the next attempt may take."""
        return max(0.001, min(self._patience.timeout_s, self._ends - self._clock()))

    def wait_after(self, answer: Answer) -> float:
        """Seconds to wait before the next attempt, after an `answer` that is not 2xx.

        Raises ProblemError where another attempt would be answered the same, UnavailableError after the last one.
        """
        problem = read_problem(answer)
        lost = answer.status in _LOST_BEHIND_A_FRONT and problem.code == "unknown"
        if answer.status not in _BUSY and not lost:
            raise problem
        return self._wait(str(problem), retry_after_s(answer.headers))

    def wait_after_loss(self, error: httpx.RequestError | TimeoutError) -> float:
        """Seconds to wait before the next attempt, after a lost connection or no answer in time.

        Raises UnavailableError after the last attempt, and at once where the server's certificate is not trusted.
        """
        distrust = _cause(error, ssl.SSLCertVerificationError)
        if distrust is not None:
            raise UnavailableError(f"{self._url}: its certificate is not trusted: {distrust.verify_message}") from None
        return self._wait(f"{type(error).__name__} {error}".strip(), None)

    def _wait(self, reason: str, asked_s: float | None) -> float:
        self._done += 1
        wait_s = min(_FIRST_WAIT_S * 2 ** (self._done - 1), _LONGEST_WAIT_S) if asked_s is None else asked_s
        wait_s *= 1 + self._jitter() / 2  # so that those who were refused together do not come back together
        times = "1 attempt" if self._done == 1 else f"{self._done} attempts"
        if self._done > self._patience.retries or self._clock() + wait_s >= self._ends:
            raise UnavailableError(f"{self._url} does not serve after {times}: {reason}")
        return wait_s


def read_problem(answer: Answer) -> ProblemError:
    """The problem document of an `answer`; its code is `unknown` where the body is none."""
    try:
        body = json.loads(answer.body)
        return ProblemError(answer.status, str(body["code"]), str(body["detail"]))
    except (ValueError, KeyError, TypeError):
        text = " ".join(answer.body[:1000].decode(errors="replace").split())
        return ProblemError(answer.status, "unknown", text[:200] or "no explanation")


def retry_after_s(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Seconds that Retry-After asks for (RFC 9110, 10.2.3: a number or a date); None where it says nothing."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now())
    except (ValueError, OverflowError):
        return None


def _cause(error: BaseException, kind: type[ssl.SSLCertVerificationError]) -> ssl.SSLCertVerificationError | None:
    """The exception of `kind` that `error` comes from, if any does."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, kind):
        found = found.__cause__ or found.__context__
    return found
