"""The client tries again where that helps, and only there."""

from __future__ import annotations

import httpx
import pytest

from maep.errors import UnavailableError
from maep_serve.client import Client, ProblemError

PNG = b"\x89PNG\r\n\x1a\n"


class Script(httpx.BaseTransport):
    """Answers with what it is given, in order; an exception is raised. Remembers the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def refusal(status: int, code: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "detail": "why"}, headers=headers)


def client_of(*answers: httpx.Response | Exception, **options: object) -> tuple[Client, Script, list[float]]:
    script, waits = Script(*answers), []
    return Client("http://test", transport=script, sleep=waits.append, **options), script, waits


def test_busy_not_ready_and_lost_connections_are_tried_again():
    client, script, waits = client_of(
        refusal(429, "queue-full", **{"Retry-After": "2"}),
        httpx.ConnectError("refused"),
        refusal(503, "not-ready", **{"Retry-After": "500"}),
        httpx.ReadError("lost"),
        httpx.Response(200, content=b"purified"),
    )
    assert client.purify(PNG) == b"purified"
    assert waits == [2.0, 0.2, 10.0, 0.8]
    assert {request.headers["content-type"] for request in script.requests} == {"image/png"}
    assert all(request.read() == PNG for request in script.requests)


def test_other_refusals_are_raised_at_once():
    client, script, waits = client_of(refusal(413, "body-too-large"))
    with pytest.raises(ProblemError, match="413 body-too-large: why") as caught:
        client.purify(PNG)
    assert (caught.value.status, caught.value.code) == (413, "body-too-large")
    assert len(script.requests) == 1
    assert waits == []


def test_it_gives_up_with_one_line():
    client, script, _ = client_of(*[httpx.ConnectError("refused")] * 3, retries=2)
    with pytest.raises(UnavailableError, match=r"http://test .* 3 attempts: ConnectError refused"):
        client.purify(PNG)
    assert len(script.requests) == 3


def test_an_answer_that_is_no_problem_document_is_still_one_line():
    client, _, _ = client_of(httpx.Response(502, text="Bad gateway"))
    with pytest.raises(ProblemError, match="502 unknown: Bad gateway"):
        client.purify(PNG)


def test_jpeg_and_token_and_top_k():
    client, script, _ = client_of(httpx.Response(200, json={"before": []}), token="secret")
    assert client.classify(b"\xff\xd8\xff", top_k=3) == {"before": []}
    (request,) = script.requests
    assert request.headers["content-type"] == "image/jpeg"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.url.params["top_k"] == "3"
