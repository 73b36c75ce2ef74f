"""The HTTP face of a `Service`: a FastAPI application that knows nothing of Ray."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import importlib.resources
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, TypeVar

import torch
from fastapi import Depends, FastAPI, Query, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maep.attacks.config import AttackConfig
from maep_serve import images
from maep_serve.loading import image_data
from maep_serve.problems import Problem, add_handlers, openapi_responses
from maep_serve.samples import Sample, load_samples
from maep_serve.service import Service

_T = TypeVar("_T")
_TYPES = ("image/png", "image/jpeg")
_ATTACK_MAX_PIXELS = 256 * 256
_CLOSE = {"Connection": "close"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_BODY = {"requestBody": {"required": True, "content": {kind: {"schema": {"type": "string"}} for kind in _TYPES}}}
_PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}
_BODY_CODES = (
    "not-an-image",
    "unauthorized",
    "body-timeout",
    "length-required",
    "body-too-large",
    "unsupported-media-type",
    "too-many-pixels",
    "unsupported-image",
    "queue-full",
    "not-ready",
    "timeout",
)


def create_api(service: Service, token_sha256: str | None = None, own_request_id: bool = True) -> FastAPI:
    """The application before `service`.

    token_sha256: hex digest of the bearer token that /v1/* needs; None asks for none.
    own_request_id: whether to add x-request-id to answers (Ray Serve's proxy does so itself).
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="maep", summary="Adversarial image in, clean image out.", lifespan=lifespan, docs_url=None, redoc_url=None
    )
    add_handlers(app)
    if own_request_id:
        app.add_middleware(_RequestId)
    _add_state_routes(app, service)
    authorised = [Depends(_bearer(token_sha256))]
    _add_model_routes(app, service, authorised)
    _add_page_routes(app, service, authorised)
    if service.config.playground_is_on and service.config.classifier is not None:
        _add_attack_route(app, service, authorised)
    return app


def _add_state_routes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="The process is up")
    async def healthz() -> dict[str, str]:
        return {"status": "up"}

    @app.get("/readyz", summary="The model is loaded, verified and warmed", responses=openapi_responses("not-ready"))
    async def readyz() -> dict[str, str]:
        return {"status": "ready", "purifier": service.models.purifier_sha256}


def _add_model_routes(app: FastAPI, service: Service, authorised: list[Any]) -> None:
    body_codes = openapi_responses(*_BODY_CODES)

    @app.post(
        "/v1/purify",
        summary="PNG or JPEG in, purified PNG out",
        dependencies=authorised,
        response_class=Response,
        openapi_extra=_BODY,
        responses={**body_codes, **_PNG},
    )
    async def purify(request: Request) -> Response:
        headers = {"x-maep-purifier": service.models.purifier_sha256}
        async with _image(request, service) as pixels:
            png = await _encode(await service.purify(pixels), service)
        return Response(png, media_type="image/png", headers=headers)

    @app.post(
        "/v1/classify",
        summary="The classifier's best classes before and after purification",
        dependencies=authorised,
        openapi_extra=_BODY,
        responses=openapi_responses(*_BODY_CODES, "no-classifier", "unsupported-size", "invalid-parameter"),
    )
    async def classify(request: Request, top_k: Annotated[int, Query(ge=1, le=1000)] = 5) -> JSONResponse:
        models = service.models
        service.require_classifier()
        async with _image(request, service) as pixels:
            answer = await service.classify(pixels)
        content = {
            "before": _top(answer.before, models.classes, top_k),
            "after": _top(answer.after, models.classes, top_k),
            "changed": int(answer.before.argmax()) != int(answer.after.argmax()),
            "purifier": models.purifier_sha256,
            "classifier": models.classifier_name,
        }
        return JSONResponse(content, headers={"x-maep-purifier": models.purifier_sha256})

    @app.get(
        "/v1/info",
        summary="What is served, and within which limits",
        dependencies=authorised,
        responses=openapi_responses("unauthorized", "not-ready"),
    )
    async def info() -> dict[str, Any]:
        models, config = service.models, service.config
        return {
            "purifier": models.purifier_sha256,
            "image_size": list(models.image_size),
            "classifier": models.classifier_name,
            "num_classes": len(models.classes),
            "playground": config.playground_is_on and models.classifier is not None,
            "max_body_bytes": config.max_body_bytes,
            "max_pixels": config.max_pixels,
        }


def _add_page_routes(app: FastAPI, service: Service, authorised: list[Any]) -> None:
    loaded: list[Sample] = []
    loading = asyncio.Lock()

    async def samples() -> list[Sample]:
        size = service.models.image_size
        async with loading:
            if not loaded:
                loaded.extend(await asyncio.to_thread(load_samples, image_data(service.config, size), size))
        return loaded

    @app.get("/", summary="The page", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        text = importlib.resources.files("maep_serve").joinpath("page/index.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": _PAGE_POLICY})

    @app.get("/v1/samples", summary="The page's sample pictures", dependencies=authorised)
    async def list_samples() -> list[dict[str, Any]]:
        return [{"id": number, "name": sample.name} for number, sample in enumerate(await samples())]

    @app.get("/v1/samples/{number}", dependencies=authorised, response_class=Response, responses=_PNG)
    async def sample(number: int) -> Response:
        pictures = await samples()
        if not 0 <= number < len(pictures):
            raise Problem("not-found", f"sample {number}: there are {len(pictures)}, counted from 0")
        return Response(images.encode_png(pictures[number].pixels), media_type="image/png")


def _add_attack_route(app: FastAPI, service: Service, authorised: list[Any]) -> None:
    @app.post(
        "/v1/attack",
        summary="Playground: attack the bare classifier (oblivious), then purify",
        dependencies=authorised,
        openapi_extra=_BODY,
        responses=openapi_responses(*_BODY_CODES, "unsupported-size", "invalid-parameter"),
    )
    async def attack(
        request: Request,
        attack: Literal["fgsm", "pgd"] = "pgd",
        eps: Annotated[float, Query(gt=0, le=16, description="Linf budget in levels of 255")] = 8,
        steps: Annotated[int, Query(ge=1, le=50)] = 20,
        top_k: Annotated[int, Query(ge=1, le=1000)] = 5,
    ) -> dict[str, Any]:
        models = service.models
        config = AttackConfig(name=attack, eps=eps / 255, steps=1 if attack == "fgsm" else steps)
        async with _image(request, service, _ATTACK_MAX_PIXELS) as pixels:
            result = await service.attack(pixels, config)
        names = ("clean", "attacked", "purified")
        pictures = (result.clean, result.attacked, result.purified)
        return {
            "threat": "oblivious",
            "label": result.label,
            "purifier": models.purifier_sha256,
            "images": {
                name: base64.b64encode(images.encode_png(picture)).decode()
                for name, picture in zip(names, pictures, strict=True)
            },
            "top": {
                name: _top(row, models.classes, top_k) for name, row in zip(names, result.probabilities, strict=True)
            },
        }


@asynccontextmanager
async def _image(request: Request, service: Service, max_pixels: int | None = None) -> AsyncIterator[torch.Tensor]:
    """The request's image, uint8 [1, 3, H, W], while it is worked on; every cap is held before more memory is spent."""
    limit = service.config.max_pixels if max_pixels is None else min(max_pixels, service.config.max_pixels)
    with service.admission():
        data = await _read_body(request, service.config.max_body_bytes, service.config.request_timeout_s)
        async with service.time_limit():
            if images.is_small(data):
                yield images.decode(data, min(limit, images.SMALL))
                return
            with service.reservation(await _in_thread(service, images.num_pixels, data, limit)):
                # From the bytes again: an opened image, whose metadata may outweigh its pixels, must not queue up.
                pixels = await _in_thread(service, images.decode, data, limit)
                del data  # it is not needed while the pixels wait
                yield pixels


async def _read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _TYPES:
        raise Problem("unsupported-media-type", f"content-type is {kind[:80]!r}", _CLOSE)
    length = request.headers.get("content-length")
    if length is None and "transfer-encoding" not in request.headers:
        raise Problem("length-required", "send the image as the body", _CLOSE)
    too_large = Problem("body-too-large", f"at most {max_bytes} bytes are taken", _CLOSE)
    if length is not None and length.isdecimal() and int(length) > max_bytes:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                data += chunk
                if len(data) > max_bytes:
                    raise too_large
    except TimeoutError:
        raise Problem("body-timeout", f"not complete after {timeout_s:g} s", _CLOSE) from None
    return bytes(data)


async def _in_thread(service: Service, function: Callable[..., _T], *arguments: Any) -> _T:
    return await asyncio.get_running_loop().run_in_executor(service.coding, function, *arguments)


async def _encode(pixels: torch.Tensor, service: Service) -> bytes:
    if pixels.numel() <= 3 * images.SMALL:
        return images.encode_png(pixels)
    return await _in_thread(service, images.encode_png, pixels)


def _top(probabilities: torch.Tensor, classes: tuple[str, ...], top_k: int) -> list[dict[str, Any]]:
    best = probabilities.topk(min(top_k, len(probabilities)))
    return [
        {"index": index, "class": classes[index] if index < len(classes) else str(index), "probability": round(p, 6)}
        for p, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _bearer(token_sha256: str | None) -> Callable[[Request], Awaitable[None]]:
    async def check(request: Request) -> None:
        if token_sha256 is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).hexdigest()
        if not (hmac.compare_digest(digest, token_sha256) and scheme.lower() == "bearer"):
            raise Problem("unauthorized", "send Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer", **_CLOSE})

    return check


class _RequestId:
    """Answers carry the caller's x-request-id, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)
