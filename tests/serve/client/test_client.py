"""Both clients retry what a retry can help, and nothing else; and they read what a real endpoint responds."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from email.utils import format_datetime
from typing import Any

import httpx
import numpy as np
import pytest

from maep.errors import ConfigError, UnavailableError
from maep_serve.api import create_api
from maep_serve.client.calls import content_type
from maep_serve.client.client import AsyncClient, Client, Info, Patience, ProblemError, Purified
from maep_serve.client.results import Suspicion
from maep_serve.client.retry import retry_after_s
from maep_serve.engine.service import Service

PNG = b"\x89PNG\r\n\x1a\n"
CLEAN = httpx.Response(200, content=b"clean", headers={"content-type": "image/png", "x-maep-purifier": "abc"})
Outcome = httpx.Response | Exception


class Script(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Returns the given outcomes in order, or raises them; records the requests."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return httpx.Response(outcome.status_code, content=outcome.content, headers=outcome.headers)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


def call_sync(script: Script, waits: list[float], method: str, *arguments: Any, **options: Any) -> Any:
    with Client("http://test", transport=script, sleep=waits.append, **options) as client:
        return getattr(client, method)(*arguments)


def call_async(script: Script, waits: list[float], method: str, *arguments: Any, **options: Any) -> Any:
    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def call() -> Any:
        async with AsyncClient("http://test", transport=script, sleep=sleep, **options) as client:
            return await getattr(client, method)(*arguments)

    return asyncio.run(call())


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


def refusal(status: int, code: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "detail": "why"}, headers=headers)


def within(waits: list[float], least: list[float]) -> bool:
    """Each wait is the requested one plus a jitter of up to half: clients must not return together."""
    return len(waits) == len(least) and all(low <= wait <= 1.5 * low for wait, low in zip(waits, least, strict=True))


def test_busy_not_ready_and_lost_connections_are_retried(call: Callable[..., Any]) -> None:
    script, waits = (
        Script(
            refusal(429, "queue-full", **{"Retry-After": "2"}),
            httpx.ConnectError("refused"),
            refusal(503, "not-ready", **{"Retry-After": "7"}),
            httpx.ReadError("lost"),
            httpx.ReadTimeout("late"),
            CLEAN,
        ),
        [],
    )
    assert call(script, waits, "purify", PNG) == Purified(b"clean", "image/png", "abc", None)
    assert within(waits, [2.0, 0.2, 7.0, 0.8, 1.6])
    assert {request.headers["content-type"] for request in script.requests} == {"image/png"}
    assert all(request.read() == PNG for request in script.requests)


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_proxy_that_lost_its_replica_is_retried(call: Callable[..., Any], status: int) -> None:
    script = Script(httpx.Response(status, text="Internal Server Error"), CLEAN)
    assert call(script, [], "purify", PNG).image == b"clean"


@pytest.mark.parametrize("status", [400, 401, 413, 415, 422, 500, 504])
def test_the_endpoints_own_refusals_are_raised_at_once(call: Callable[..., Any], status: int) -> None:
    script, waits = Script(refusal(status, "some-code")), []
    with pytest.raises(ProblemError, match="why") as caught:
        call(script, waits, "purify", PNG)
    assert (caught.value.status, caught.value.code) == (status, "some-code")
    assert (len(script.requests), waits) == (1, [])


def test_it_gives_up_after_its_retries(call: Callable[..., Any]) -> None:
    script = Script(*[httpx.ConnectError("refused")] * 3)
    with pytest.raises(UnavailableError, match=r"http://test .*3 .*ConnectError"):
        call(script, [], "purify", PNG, patience=Patience(retries=2))
    assert len(script.requests) == 3


def test_it_does_not_wait_beyond_its_deadline(call: Callable[..., Any]) -> None:
    script, waits = Script(refusal(429, "queue-full", **{"Retry-After": "500"})), []
    with pytest.raises(UnavailableError, match="429 queue-full"):
        call(script, waits, "purify", PNG, patience=Patience(deadline_s=60))
    assert waits == []


def test_a_response_of_another_server_is_an_error(call: Callable[..., Any]) -> None:
    with pytest.raises(ProblemError, match="404 unknown: <h1> no such page </h1>"):
        call(Script(httpx.Response(404, text="<h1>\nno such page\n</h1>")), [], "purify", PNG)
    for method, arguments in (("purify", [PNG]), ("classify", [PNG]), ("info", [])):
        with pytest.raises(UnavailableError, match="http://test"):
            call(Script(httpx.Response(200, text="<h1>Welcome</h1>")), [], method, *arguments)


def test_content_type_token_and_top_k(call: Callable[..., Any]) -> None:
    rows = [{"index": 3, "class": "cat", "probability": 0.5}]
    suspicion = {"distance": 0.1, "score": 0.5, "suspected": False, "false_positive_rate": 0.05}
    answer = {"before": rows, "after": rows, "changed": False, "purifier": "abc", "classifier": "net"}
    answer["suspicion"] = suspicion
    script = Script(httpx.Response(200, json=answer))
    found = call(script, [], "classify", b"\xff\xd8\xff", 3, token="secret")
    assert (found.before[0].name, found.after, found.changed) == ("cat", found.before, False)
    assert found.suspicion == Suspicion(**suspicion)
    (request,) = script.requests
    assert request.headers["content-type"] == "image/jpeg"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.url.params["top_k"] == "3"
    assert content_type(b"RIFF\x00\x00\x00\x00WEBPVP8 ") == "image/webp"


def test_the_token_is_in_no_log_repr_or_error(call: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    outcomes = [httpx.ReadError("lost"), refusal(503, "not-ready"), *[httpx.ConnectError("no")] * 4]
    with pytest.raises(UnavailableError) as caught:
        call(Script(*outcomes), [], "info", token="Geheim1")
    shown = [repr(Client("http://test", token="Geheim1")), repr(AsyncClient("http://test", token="Geheim1"))]
    assert "http://test" in caplog.text
    assert "Geheim1" not in "".join([caplog.text, str(caught.value), repr(caught.value), *shown])
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigError, match="token") as refused:
            kind("http://test", token="Geheim1\n")
        assert "Geheim1" not in str(refused.value)
        with pytest.raises(ConfigError, match=r"url: .*test") as refused:
            kind("http://me:Geheim1@test")
        assert "Geheim1" not in str(refused.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "x", "http://[::1"])
def test_an_invalid_url_is_an_error(url: str) -> None:
    with pytest.raises(ConfigError, match="url: "):
        Client(url)


def test_trailing_slash_and_path_prefix(call: Callable[..., Any]) -> None:
    script = Script(CLEAN)
    with Client("http://test/canary/", transport=script) as client:
        client.purify(PNG)
    assert str(script.requests[0].url) == "http://test/canary/v1/purify"


def test_retry_after_is_seconds_or_a_date() -> None:
    then = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    date = {"retry-after": format_datetime(then, usegmt=True)}
    assert retry_after_s({"retry-after": "3"}) == 3
    assert retry_after_s(date, lambda: then.timestamp() - 20) == 20
    assert retry_after_s(date, lambda: then.timestamp() + 20) == 0
    for nothing in ({}, {"retry-after": "soon"}, {"retry-after": "-1"}, {"retry-after": "²"}):
        assert retry_after_s(nothing) is None


@pytest.fixture
def drops() -> Iterator[tuple[str, list[bytes]]]:
    """A server that breaks its first connections during the response, and the requests it received."""
    whole = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\nx-maep-purifier: abc\r\ncontent-length: 5\r\n\r\nclean"
    received: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for answer in (b"", whole[:-3], whole):
                connection, _ = listener.accept()
                with connection:
                    received.append(_request(connection))
                    connection.sendall(answer)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", received
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def _request(connection: socket.socket) -> bytes:
    head, data = re.compile(rb"(?is).*?content-length: (\d+)\b.*?\r\n\r\n"), b""
    while not (found := head.match(data)) or len(data) < found.end() + int(found[1]):
        more = connection.recv(4096)
        assert more, "the request was not complete"
        data += more
    return data


def test_a_connection_that_breaks_within_the_response_is_retried(drops: tuple[str, list[bytes]]) -> None:
    url, received = drops
    with Client(url) as client:
        assert client.purify(PNG).image == b"clean"
    assert len(received) == 3
    assert all(request.endswith(PNG) for request in received)


def test_the_same_asynchronously(drops: tuple[str, list[bytes]]) -> None:
    async def purify() -> Purified:
        async with AsyncClient(drops[0]) as client:
            return await client.purify(PNG)

    assert asyncio.run(purify()).image == b"clean"


def test_it_reads_a_real_endpoints_responses(config: Any, models: Any, png: Callable[..., bytes]) -> None:
    """The real application through ASGI: records are filled, refusals have their code."""

    async def use() -> None:
        transport = httpx.ASGITransport(create_api(Service(config, models)))
        async with AsyncClient("http://test", transport=transport, num_connections=4) as client:
            answers = await asyncio.gather(*(client.purify(png(seed=seed)) for seed in range(12)))
            assert len({answer.image for answer in answers}) == 12
            assert {(answer.content_type, answer.purifier) for answer in answers} == {
                ("image/png", models.purifier_sha256)
            }
            assert all(answer.request_id for answer in answers)
            found = await client.classify(png(), top_k=4)
            assert [len(found.before), len(found.after)] == [4, 4]
            assert found.changed == (found.before[0].index != found.after[0].index)
            assert found.suspicion == Suspicion(found.suspicion.distance, None, None, None)
            assert found.suspicion.distance > 0
            for dtype in (np.uint8, np.float32):
                pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8)
                given = pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)
                array = await client.purify_array(given)
                assert (array.dtype, array.shape) == (given.dtype, given.shape)
                assert array.flags.writeable
                assert not np.array_equal(array, given)
            with pytest.raises(ConfigError, match=r"float64 \[3, 4\]"):
                await client.purify_array(np.zeros((3, 4)))
            info = await client.info()
            assert info == Info(models.purifier_sha256, (16, 16), "tiny", 10, config.max_body_bytes, config.max_pixels)
            with pytest.raises(ProblemError, match="not-an-image"):
                await client.purify(b"nothing")

    asyncio.run(use())
