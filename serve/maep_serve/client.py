"""A small client: purifying is idempotent, so it tries again when the endpoint is busy, not ready, or gone a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx

from maep.errors import UnavailableError, UserError
from maep_serve.config import is_loopback

_BUSY = (429, 503)
_MAX_WAIT_S = 10.0


class ProblemError(UserError):
    """The endpoint refused a request: HTTP `status`, stable `code` (see maep_serve.problems) and one line."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"the endpoint answered {status} {code}: {detail}")
        self.status = status
        self.code = code


class Client:
    """Calls the endpoint at `url`. `token` is its bearer token, if it asks for one.

    A busy (429), not ready (503) or unreachable endpoint is asked again up to `retries` times, after its
    Retry-After or a wait that doubles from 0.1 s. `sleep` is for tests.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 5,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        through_proxy = not is_loopback(httpx.URL(url).host)  # HTTP_PROXY is not meant for this machine
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout_s, transport=transport, trust_env=through_proxy
        )
        self._url = url
        self._retries = retries
        self._sleep = sleep

    def purify(self, image: bytes) -> bytes:
        """PNG or JPEG bytes to the purified image's PNG bytes. Raises ProblemError, UnavailableError."""
        return self._call("POST", "/v1/purify", image).content

    def classify(self, image: bytes, top_k: int = 5) -> dict[str, Any]:
        """The `top_k` classes `before` and `after` purification, as /v1/classify answers them."""
        answer: dict[str, Any] = self._call("POST", f"/v1/classify?top_k={top_k}", image).json()
        return answer

    def info(self) -> dict[str, Any]:
        """What is served, and within which limits."""
        answer: dict[str, Any] = self._call("GET", "/v1/info").json()
        return answer

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, path: str, image: bytes | None = None) -> httpx.Response:
        headers = {} if image is None else {"Content-Type": _content_type(image)}
        wait_s = 0.1
        for attempt in range(self._retries + 1):
            reason = ""
            asked_wait_s = wait_s
            try:
                response = self._http.request(method, path, content=image, headers=headers)
                if response.is_success:
                    return response
                problem = _problem(response)
                if response.status_code not in _BUSY:
                    raise problem
                reason = str(problem)
                asked_wait_s = _retry_after(response, wait_s)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__} {error}".strip()
            if attempt < self._retries:
                self._sleep(min(asked_wait_s, _MAX_WAIT_S))
                wait_s *= 2
        raise UnavailableError(f"{self._url} does not serve after {self._retries + 1} attempts: {reason}")


def _content_type(image: bytes) -> str:
    return "image/jpeg" if image.startswith(b"\xff\xd8\xff") else "image/png"


def _problem(response: httpx.Response) -> ProblemError:
    try:
        body = response.json()
        return ProblemError(response.status_code, str(body["code"]), str(body["detail"]))
    except (ValueError, KeyError, TypeError):
        return ProblemError(response.status_code, "unknown", response.text[:200] or response.reason_phrase)


def _retry_after(response: httpx.Response, default_s: float) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else default_s
