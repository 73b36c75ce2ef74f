"""Every route, in this process: answers, problems with stable codes, readiness, limits."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import io
import threading

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from maep_serve import images
from maep_serve.api import create_api
from maep_serve.config import ServeConfig
from maep_serve.problems import CODES, CONTENT_TYPE
from maep_serve.service import Service

PNG = {"content-type": "image/png"}


def pixels_of(data: bytes) -> torch.Tensor:
    return images.decode(data, 10**6)


def is_problem(response: httpx.Response, code: str) -> bool:
    body = response.json()
    assert response.headers["content-type"] == CONTENT_TYPE
    assert set(body) == {"type", "title", "status", "detail", "code"}
    assert response.status_code == body["status"] == CODES[body["code"]][0]
    assert "\n" not in body["detail"]
    return body["code"] == code


def offline(models, data: bytes) -> torch.Tensor:
    """The purifier called as any notebook would, rounded to 8 bits."""
    with torch.inference_mode():
        return images.to_uint8(models.purifier(images.to_float(pixels_of(data))))


def test_purify_equals_the_offline_purifier_bit_for_bit(client, models, png):
    for seed in range(4):
        data = png(seed=seed)
        response = client.post("/v1/purify", content=data, headers=PNG)
        assert response.status_code == 200
        assert response.headers["content-type"] == "image/png"
        assert response.headers["x-maep-purifier"] == models.purifier_sha256
        assert torch.equal(pixels_of(response.content), offline(models, data))
        assert not torch.equal(pixels_of(response.content), pixels_of(data))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 16), (50, 21), (150, 290)])
def test_any_size_comes_back_at_that_size(client, png, height, width):
    response = client.post("/v1/purify", content=png(height, width), headers=PNG)
    assert response.status_code == 200
    assert pixels_of(response.content).shape == (1, 3, height, width)


def test_jpeg_is_taken(client, models, picture):
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG")
    response = client.post("/v1/purify", content=buffer.getvalue(), headers={"content-type": "image/jpeg; q=1"})
    assert torch.equal(pixels_of(response.content), offline(models, buffer.getvalue()))


def test_classify_gives_the_best_classes_before_and_after(client, models, png):
    data = png(seed=5)
    body = client.post("/v1/classify?top_k=3", content=data, headers=PNG).json()
    with torch.inference_mode():
        before = models.classifier(images.to_float(pixels_of(data)))[0].softmax(0)
        after = models.classifier(images.to_float(offline(models, data)))[0].softmax(0)
    for given, expected in ((body["before"], before), (body["after"], after)):
        assert [row["index"] for row in given] == expected.topk(3).indices.tolist()
        assert [row["class"] for row in given] == [str(row["index"]) for row in given]
        np.testing.assert_allclose([row["probability"] for row in given], expected.topk(3).values, atol=1e-5)
    assert body["purifier"] == models.purifier_sha256
    assert body["classifier"] == "tiny"
    assert body["changed"] == (int(before.argmax()) != int(after.argmax()))
    assert len(client.post("/v1/classify?top_k=1000", content=data, headers=PNG).json()["before"]) == 10


def test_an_endpoint_without_a_classifier_says_so(config, models, png):
    bare = dataclasses.replace(models, classifier=None, classifier_name=None, classes=())
    service = Service(dataclasses.replace(config, classifier=None), bare)
    with TestClient(create_api(service)) as client:
        assert is_problem(client.post("/v1/classify", content=png(), headers=PNG), "no-classifier")
        assert is_problem(client.post("/v1/attack", content=png(), headers=PNG), "not-found")
        assert client.post("/v1/purify", content=png(), headers=PNG).status_code == 200
        assert client.get("/v1/info").json()["playground"] is False


def test_a_size_the_classifier_cannot_take_is_the_callers_problem(config, models, png):
    fixed = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
    service = Service(config, dataclasses.replace(models, classifier=fixed))
    with TestClient(create_api(service)) as client:
        assert client.post("/v1/classify", content=png(), headers=PNG).status_code == 200
        assert is_problem(client.post("/v1/classify", content=png(20, 20), headers=PNG), "unsupported-size")


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_the_playground_attacks_within_the_budget(client, models, png, name):
    data = png(seed=2)
    body = client.post(f"/v1/attack?attack={name}&eps=8&steps=5", content=data, headers=PNG).json()
    pictures = {key: pixels_of(base64.b64decode(text)) for key, text in body["images"].items()}
    assert torch.equal(pictures["clean"], pixels_of(data))
    change = (pictures["attacked"].int() - pictures["clean"].int()).abs()
    assert 0 < change.max() <= 8
    with torch.inference_mode():
        expected = images.to_uint8(models.purifier(images.to_float(pictures["attacked"])))
    assert torch.equal(pictures["purified"], expected)
    assert body["threat"] == "oblivious"
    top = body["top"]
    assert body["label"] == top["clean"][0]["index"]
    confidence = {row["index"]: row["probability"] for row in top["attacked"]}
    assert confidence.get(body["label"], 0) < top["clean"][0]["probability"]
    assert {len(rows) for rows in top.values()} == {5}


def test_the_playground_is_for_loopback_only(config, models, png):
    with pytest.raises(ValueError, match="playground"):
        dataclasses.replace(config, host="0.0.0.0", playground=True)
    for off in (dataclasses.replace(config, host="0.0.0.0"), dataclasses.replace(config, playground=False)):
        with TestClient(create_api(Service(off, models))) as client:
            assert is_problem(client.post("/v1/attack", content=png(), headers=PNG), "not-found")
            assert client.get("/v1/info").json()["playground"] is False


def test_ready_only_when_the_model_is(config, models, png):
    service = Service(config)
    with TestClient(create_api(service)) as client:
        assert client.get("/healthz").status_code == 200
        for response in (client.get("/readyz"), client.post("/v1/purify", content=png(), headers=PNG)):
            assert is_problem(response, "not-ready")
            assert int(response.headers["retry-after"]) > 0
    service = Service(config, models)
    with TestClient(create_api(service)) as client:
        assert client.get("/readyz").json() == {"status": "ready", "purifier": models.purifier_sha256}


@pytest.mark.parametrize(
    ("path", "headers", "body", "code"),
    [
        ("/v1/purify", PNG, b"not an image", "not-an-image"),
        ("/v1/purify", PNG, b"", "not-an-image"),
        ("/v1/purify", {"content-type": "text/plain"}, b"x", "unsupported-media-type"),
        ("/v1/purify", {"content-type": "application/json"}, b"{}", "unsupported-media-type"),
        ("/v1/purify", {}, b"x", "unsupported-media-type"),
        ("/v1/purify", PNG, bytes(200_001), "body-too-large"),
        ("/v1/classify", PNG, bytes(200_001), "body-too-large"),
        ("/v1/classify?top_k=0", PNG, b"x", "invalid-parameter"),
        ("/v1/classify?top_k=many", PNG, b"x", "invalid-parameter"),
        ("/v1/attack?eps=99", PNG, b"x", "invalid-parameter"),
        ("/v1/attack?eps=nan", PNG, b"x", "invalid-parameter"),
        ("/v1/attack?attack=rude", PNG, b"x", "invalid-parameter"),
        ("/v1/nothing", PNG, b"x", "not-found"),
    ],
)
def test_bad_requests_are_problems(client, path, headers, body, code):
    assert is_problem(client.post(path, content=body, headers=headers), code)


def test_the_wrong_method_is_a_problem(client):
    response = client.get("/v1/purify")
    assert is_problem(response, "method-not-allowed")
    assert response.headers["allow"] == "POST"


def test_too_many_pixels(client, png):
    assert is_problem(client.post("/v1/purify", content=png(301, 301), headers=PNG), "too-many-pixels")
    assert is_problem(client.post("/v1/attack", content=png(257, 257), headers=PNG), "too-many-pixels")


def raw_call(app, headers: list[tuple[bytes, bytes]], chunks: list[bytes]) -> tuple[int, bytes, int]:
    """POST /v1/purify at the ASGI level: status, body, and how many chunks were read."""
    sent: list[dict] = []
    read = 0

    async def receive() -> dict:
        nonlocal read
        if read == len(chunks):
            await asyncio.Event().wait()
        read += 1
        return {"type": "http.request", "body": chunks[read - 1], "more_body": read < len(chunks)}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/purify",
        "raw_path": b"/v1/purify",
        "query_string": b"",
        "headers": headers,
        "scheme": "http",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 1),
    }
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 30))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], body, read


def test_a_chunked_body_is_capped_while_it_streams(config, models):
    app = create_api(Service(config, models))
    headers = [(b"content-type", b"image/png"), (b"transfer-encoding", b"chunked")]
    status, body, read = raw_call(app, headers, [bytes(100_000)] * 50)
    assert status == 413
    assert b"body-too-large" in body
    assert read == 3


def test_a_body_without_length_is_refused_unread(config, models):
    status, body, read = raw_call(create_api(Service(config, models)), [(b"content-type", b"image/png")], [b"x"] * 3)
    assert (status, read) == (411, 0)
    assert b"length-required" in body


def test_a_body_that_does_not_arrive_ends(config, models):
    app = create_api(Service(dataclasses.replace(config, request_timeout_s=0.05), models))
    headers = [(b"content-type", b"image/png"), (b"content-length", b"1000")]

    async def receive_nothing() -> dict:
        await asyncio.Event().wait()
        raise AssertionError

    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/purify", "query_string": b"", "headers": headers}
    asyncio.run(asyncio.wait_for(app(scope, receive_nothing, send), 30))
    assert sent[0]["status"] == 408


class Gated(torch.nn.Module):
    """A purifier that answers only once its gate is open, and remembers its batches."""

    def __init__(self, purifier: torch.nn.Module) -> None:
        super().__init__()
        self.purifier = purifier
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.sizes: list[int] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(batch))
        self.entered.set()
        assert self.gate.wait(30)
        return self.purifier(batch)


def gated_service(config: ServeConfig, models, **changes: object) -> tuple[Service, Gated]:
    gated = Gated(models.purifier)
    service = Service(dataclasses.replace(config, **changes), dataclasses.replace(models, purifier=gated))
    gated.sizes.clear()
    gated.entered.clear()
    gated.gate.clear()
    return service, gated


def test_concurrent_requests_share_forward_passes(config, models, png):
    service, gated = gated_service(config, models)
    bodies = [png(seed=seed) for seed in range(17)]

    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=create_api(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            first = asyncio.ensure_future(client.post("/v1/purify", content=bodies[0], headers=PNG))
            await asyncio.to_thread(gated.entered.wait, 30)
            rest = [asyncio.ensure_future(client.post("/v1/purify", content=b, headers=PNG)) for b in bodies[1:]]
            while service.num_in_flight < 17:
                await asyncio.sleep(0)
            for _ in range(100):  # so that what was admitted is also decoded and queued
                await asyncio.sleep(0)
            gated.gate.set()
            responses = await asyncio.gather(first, *rest)
            await service.close()
            return responses

    responses = asyncio.run(main())
    assert gated.sizes == [1, 8, 8]
    for data, response in zip(bodies, responses, strict=True):
        difference = pixels_of(response.content).int() - offline(models, data).int()
        assert difference.abs().max() <= 1  # each caller's own picture; a batch may round differently


def test_a_full_queue_answers_429_at_once_and_recovers(config, models, png):
    service, gated = gated_service(config, models, max_batch_size=1, max_queued_requests=2)

    async def main() -> None:
        transport = httpx.ASGITransport(app=create_api(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            waiting = [asyncio.ensure_future(client.post("/v1/purify", content=png(), headers=PNG)) for _ in range(3)]
            while service.num_in_flight < 3:
                await asyncio.sleep(0)
            refused = await client.post("/v1/purify", content=png(), headers=PNG)
            assert is_problem(refused, "queue-full")
            assert int(refused.headers["retry-after"]) > 0
            gated.gate.set()
            assert [response.status_code for response in await asyncio.gather(*waiting)] == [200] * 3
            assert (await client.post("/v1/purify", content=png(), headers=PNG)).status_code == 200
        await service.close()

    asyncio.run(main())


def test_too_slow_is_504_and_the_service_lives_on(config, models, png):
    service, gated = gated_service(config, models, request_timeout_s=0.2)
    with TestClient(create_api(service)) as client:
        assert is_problem(client.post("/v1/purify", content=png(), headers=PNG), "timeout")
        gated.gate.set()
        service.config = dataclasses.replace(service.config, request_timeout_s=30)
        assert client.post("/v1/purify", content=png(), headers=PNG).status_code == 200


def test_a_token_is_asked_for_where_there_is_one(config, models, png):
    app = create_api(Service(config, models), hashlib.sha256(b"secret").hexdigest())
    with TestClient(app) as client:
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        for given in ("", "Bearer wrong", "secret", "Basic secret"):
            headers = {**PNG, "authorization": given}
            assert is_problem(client.post("/v1/purify", content=png(), headers=headers), "unauthorized")
            assert is_problem(client.get("/v1/info", headers=headers), "unauthorized")
        headers = {**PNG, "authorization": "Bearer secret"}
        assert client.post("/v1/purify", content=png(), headers=headers).status_code == 200


def test_request_ids(client):
    assert client.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = client.get("/healthz", headers={"x-request-id": "not ok!"}).headers["x-request-id"]
    assert len(made) == 32
    assert client.get("/healthz").headers["x-request-id"] != made


def test_the_page_needs_nothing_from_outside(client):
    response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "oblivious" in response.text
    for outside in ("https://", "//cdn", "@import"):
        assert outside not in response.text


def test_samples_are_eight_pictures_of_the_data_set(client):
    samples = client.get("/v1/samples").json()
    assert [sample["id"] for sample in samples] == list(range(8))
    assert [sample["name"] for sample in samples] == list("01234567")
    for sample in samples:
        response = client.get(f"/v1/samples/{sample['id']}")
        assert pixels_of(response.content).shape == (1, 3, 16, 16)
    assert is_problem(client.get("/v1/samples/8"), "not-found")
    assert is_problem(client.get("/v1/samples/x"), "invalid-parameter")


def test_openapi_names_the_routes_and_their_problems(client):
    document = client.get("/openapi.json").json()
    assert {"/v1/purify", "/v1/classify", "/v1/attack", "/healthz", "/readyz", "/v1/info"} <= set(document["paths"])
    purify = document["paths"]["/v1/purify"]["post"]
    assert set(purify["requestBody"]["content"]) == {"image/png", "image/jpeg"}
    assert {"400", "408", "411", "413", "415", "422", "429", "503", "504"} <= set(purify["responses"])
    assert "image/png" in purify["responses"]["200"]["content"]
