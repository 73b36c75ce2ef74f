"""The HTTP interface of a `Service`: a FastAPI application that is independent of Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from starlette.responses import JSONResponse, Response

from maep_serve.engine.engine import Comparison
from maep_serve.engine.loading import Models
from maep_serve.engine.service import Service
from maep_serve.engine.suspicion import FALSE_POSITIVE_RATE
from maep_serve.http import oip, request_body, responses
from maep_serve.http.middleware import RequestMiddleware
from maep_serve.http.tokens import Tokens
from maep_serve.page import playground
from maep_serve.problems import Problem, add_handlers, openapi_responses


def create_api(
    service: Service,
    tokens: Tokens | None = None,
    own_request_id: bool = True,
    background: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> FastAPI:
    """The application for `service`.

    tokens: required by /v1/* and /v2/*, except for health checks; None requires none.
    own_request_id: whether to add x-request-id to responses (Ray Serve adds it itself).
    background: runs on the event loop for the application's lifetime.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = None if background is None else asyncio.create_task(background())
        yield
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await service.close()

    app = FastAPI(
        title="maep",
        summary="Adversarial image in, clean image out.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # behind a proxy it would redirect https:// to http://, and leak the token
    )
    add_handlers(app)
    app.add_middleware(RequestMiddleware, service=service, adds_request_id=own_request_id)
    authorised = [] if tokens is None else [Depends(_bearer(tokens))]  # each dependency costs time per request
    _add_state_routes(app, service, authorised)
    _add_model_routes(app, service, authorised)
    oip.add_routes(app, service, authorised)
    playground.add_page_routes(app, service, authorised)
    if service.config.playground_is_on and service.config.classifier is not None:
        playground.add_attack_route(app, service, authorised)
    return app


def _add_state_routes(app: FastAPI, service: Service, authorised: list[Any]) -> None:
    @app.get("/healthz", summary="The process is up")
    async def healthz() -> dict[str, str]:
        return {"status": "up"}

    @app.get("/readyz", summary="The model is loaded, verified and warmed", responses=openapi_responses("not-ready"))
    async def readyz() -> dict[str, str]:
        return {"status": "ready", "purifier": service.models.purifier_sha256}

    @app.get(
        "/v1/info",
        summary="The served models and the endpoint's limits",
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
            "calibrated": models.calibration is not None,
            "playground": config.playground_is_on and models.classifier is not None,
            "max_body_bytes": config.max_body_bytes,
            "max_pixels": config.max_pixels,
            "max_classified_pixels": min(models.most_classified_pixels, config.max_pixels),
        }


def _add_model_routes(app: FastAPI, service: Service, authorised: list[Any]) -> None:
    @app.post(
        "/v1/purify",
        summary="Purify an image",
        dependencies=authorised,
        response_class=Response,
        openapi_extra=request_body.OPENAPI,
        responses={**openapi_responses(*request_body.CODES), **responses.OPENAPI},
    )
    async def purify(request: Request) -> Response:
        engine, form = service.engine, responses.wanted(request.headers.get("accept", ""))
        async with request_body.image(request, service, engine, output=form.dtype) as pixels:
            purified = await engine.purify(await responses.prepared(pixels, form, engine))
            return await responses.respond(purified, form, engine)

    @app.post(
        "/v1/classify",
        summary="The classifier's best classes before and after purification, and a suspicion score",
        dependencies=authorised,
        openapi_extra=request_body.OPENAPI,
        responses=openapi_responses(*request_body.CODES, "no-classifier", "unsupported-size", "invalid-parameter"),
    )
    async def classify(request: Request, top_k: Annotated[int, Query(ge=1, le=1000)] = 5) -> JSONResponse:
        engine = service.engine
        engine.require_classifier()
        async with request_body.image(request, service, engine, engine.models.most_classified_pixels) as pixels:
            comparison = await engine.classify(pixels)
        document = _classified(comparison, engine.models, top_k)
        return JSONResponse(document, headers=responses.version_headers(engine.models))


def _classified(comparison: Comparison, models: Models, top_k: int) -> dict[str, Any]:
    score = comparison.score
    scored = models.calibration if score is not None else None
    return {
        "before": responses.top(comparison.before, models.classes, top_k),
        "after": responses.top(comparison.after, models.classes, top_k),
        "changed": comparison.changed,
        "suspicion": {
            "distance": comparison.distance,
            "class_changed": comparison.changed,
            "score": None if score is None else round(score, 6),
            "suspected": comparison.suspected,
            "false_positive_rate": None if score is None else FALSE_POSITIVE_RATE,
            "calibrated_on": None if scored is None else scored.images,
        },
        "purifier": models.purifier_sha256,
        "classifier": models.classifier_name,
    }


def _bearer(tokens: Tokens) -> Callable[[Request], Awaitable[None]]:
    async def check(request: Request) -> None:
        if not tokens.allow(request.headers.get("authorization", "")):
            headers = {"WWW-Authenticate": "Bearer", **request_body.CLOSE}
            raise Problem("unauthorized", "send the header Authorization: Bearer TOKEN", headers)

    return check
