"""Refusals have stable codes and cost little work; queues, time limits and batches."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import httpx
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.testclient import TestClient

from maep.models import tiles
from maep_serve import images
from maep_serve.api import create_api
from maep_serve.config import ServeConfig
from maep_serve.engine.service import Service

PNG = {"content-type": "image/png"}


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
        ("/v1/purify/", PNG, b"x", "not-found"),
        ("/v2/", PNG, b"x", "not-found"),
    ],
)
def test_bad_requests_are_problems(client, path, headers, body, code, is_problem):
    assert is_problem(client.post(path, content=body, headers=headers), code)


def test_too_many_pixels(client, png, is_problem):
    assert is_problem(client.post("/v1/purify", content=png(301, 301), headers=PNG), "too-many-pixels")
    assert is_problem(client.post("/v1/attack", content=png(257, 257), headers=PNG), "too-many-pixels")


def test_classified_images_have_a_pixel_limit_of_their_own(client, models, png, is_problem):
    assert client.get("/v1/info").json()["max_classified_pixels"] == 256 * 256
    assert client.post("/v1/classify", content=png(256, 256), headers=PNG).status_code == 200
    assert is_problem(client.post("/v1/classify", content=png(256, 257), headers=PNG), "too-many-pixels")
    assert client.post("/v1/purify", content=png(256, 257), headers=PNG).status_code == 200
    assert dataclasses.replace(models, image_size=(224, 224)).most_classified_pixels == 448 * 448


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


def test_a_body_that_does_not_arrive_times_out(config, models):
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
    """A purifier that blocks until its gate is open, and records its batch sizes."""

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


def test_concurrent_requests_share_forward_passes(config, models, png, pixels_of, offline):
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


def test_a_full_queue_answers_429_at_once_and_recovers(config, models, png, is_problem):
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


def encoded(height: int, width: int, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_an_image_beyond_the_pixels_in_flight_is_429_before_it_is_decoded(config, models, png, is_problem):
    service, gated = gated_service(config, models, max_pixels_in_flight=300 * 300)
    undecodable = png(257, 257)[:100]

    async def main() -> None:
        transport = httpx.ASGITransport(app=create_api(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            first = asyncio.ensure_future(client.post("/v1/purify", content=png(300, 300), headers=PNG))
            await asyncio.to_thread(gated.entered.wait, 30)
            refused = await client.post("/v1/purify", content=undecodable, headers=PNG)
            assert is_problem(refused, "queue-full")
            assert int(refused.headers["retry-after"]) > 0
            gated.gate.set()
            assert (await first).status_code == 200
            assert is_problem(await client.post("/v1/purify", content=undecodable, headers=PNG), "not-an-image")
            assert (await client.post("/v1/purify", content=png(300, 300), headers=PNG)).status_code == 200
        await service.close()

    asyncio.run(main())


def test_an_image_returned_as_float32_counts_as_float32(config, models, png, is_problem):
    service = Service(dataclasses.replace(config, max_pixels_in_flight=4 * 300 * 300), models)
    as_floats = {**PNG, "accept": "application/octet-stream;dtype=float32"}
    with TestClient(create_api(service)) as client:
        assert client.post("/v1/purify", content=png(300, 300), headers=as_floats).status_code == 200
        with service.reservation(300 * 300):
            assert is_problem(client.post("/v1/purify", content=png(300, 300), headers=as_floats), "queue-full")
            assert client.post("/v1/purify", content=png(300, 300), headers=PNG).status_code == 200


def test_small_images_pass_while_large_ones_use_all_pixels_in_flight(config, models, png):
    service = Service(dataclasses.replace(config, max_pixels_in_flight=300 * 300), models)
    with TestClient(create_api(service)) as client, service.reservation(300 * 300):
        for body in (png(), png(256, 256), encoded(32, 32, "JPEG")):
            assert client.post("/v1/purify", content=body, headers=PNG).status_code == 200
        assert client.post("/v1/purify", content=png(257, 257), headers=PNG).status_code == 429


def test_a_large_image_that_claims_to_be_small_is_refused(client, png, is_problem):
    small, large = encoded(8, 8, "PNG"), encoded(299, 300, "PNG")
    assert client.post("/v1/purify", content=large, headers=PNG).status_code == 200
    two_headers = large[:8] + small[8:33] + large[8:]
    assert is_problem(client.post("/v1/purify", content=two_headers, headers=PNG), "too-many-pixels")


@contextmanager
def busy_codecs(service: Service) -> Iterator[None]:
    """Occupy every codec thread."""
    gate = threading.Event()
    for _ in range(64):
        service.codecs.submit(gate.wait, 30)
    try:
        yield
    finally:
        gate.set()


def text(size: int) -> PngInfo:
    info = PngInfo()
    info.add_text("comment", "a" * size)
    return info


@pytest.mark.parametrize(
    "body",
    [encoded(8, 8, "JPEG"), encoded(8, 8, "PNG", pnginfo=text(9000)), encoded(300, 300, "PNG")],
    ids=["jpeg", "much metadata", "many pixels"],
)
def test_slow_decoding_happens_off_the_event_loop(config, models, png, body):
    service = Service(config, models)

    async def main() -> None:
        transport = httpx.ASGITransport(app=create_api(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            with busy_codecs(service):
                slow = asyncio.ensure_future(client.post("/v1/purify", content=body, headers=PNG))
                while service.num_in_flight < 1:
                    await asyncio.sleep(0)
                assert (await client.get("/healthz")).status_code == 200
                assert (await client.post("/v1/purify", content=png(32, 32), headers=PNG)).status_code == 200
                assert not slow.done()
            assert (await slow).status_code == 200
        await service.close()

    asyncio.run(main())


@pytest.mark.parametrize("accept", ["image/png", "application/octet-stream;dtype=float32"])
def test_large_images_are_processed_off_the_event_loop(config, models, png, monkeypatch, accept):
    """Each step takes up to a second at 16 million pixels, which would block all other requests."""
    threads: dict[str, set[str]] = {}

    def watch(module: ModuleType, name: str) -> None:
        function = getattr(module, name)

        def watched(*arguments: object) -> object:
            threads.setdefault(name, set()).add(threading.current_thread().name.partition("_")[0])
            return function(*arguments)

        monkeypatch.setattr(module, name, watched)

    service = Service(config, models)
    watch(tiles, "pad")
    watch(tiles, "blend")
    watch(images, "to_float")
    watch(images, "to_uint8")
    with TestClient(create_api(service)) as client:
        answer = client.post("/v1/purify", content=png(299, 300), headers={**PNG, "accept": accept})
        assert answer.status_code == 200
    assert {"pad", "blend", "to_float"} <= set(threads)
    assert set().union(*threads.values()) <= {"inference", "codec"}


def test_decoding_counts_towards_the_time_limit(config, models, is_problem):
    service = Service(dataclasses.replace(config, request_timeout_s=0.2), models)
    with TestClient(create_api(service)) as client:
        with busy_codecs(service):
            answer = client.post("/v1/purify", content=encoded(300, 300, "JPEG"), headers=PNG)
            assert is_problem(answer, "timeout")
        assert service.num_in_flight == service.num_pixels_in_flight == 0
        service.config = dataclasses.replace(service.config, request_timeout_s=30)
        assert client.post("/v1/purify", content=encoded(300, 300, "JPEG"), headers=PNG).status_code == 200


def test_a_timeout_is_504_and_the_service_recovers(config, models, png, is_problem):
    service, gated = gated_service(config, models, request_timeout_s=0.2)
    with TestClient(create_api(service)) as client:
        assert is_problem(client.post("/v1/purify", content=png(), headers=PNG), "timeout")
        gated.gate.set()
        service.config = dataclasses.replace(service.config, request_timeout_s=30)
        assert client.post("/v1/purify", content=png(), headers=PNG).status_code == 200
