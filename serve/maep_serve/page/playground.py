"""The page and what only it needs: sample pictures, and attacks to try."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from starlette.responses import HTMLResponse, Response

from maep.attacks.config import AttackConfig
from maep_serve.engine.loading import image_data
from maep_serve.engine.service import Service
from maep_serve.http import images, request_body
from maep_serve.http.problems import Problem, openapi_responses
from maep_serve.http.responses import top
from maep_serve.page import page_policy
from maep_serve.page.samples import Sample, load_samples

_ATTACK_MAX_PIXELS = 256 * 256
_PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}


def add_page_routes(app: FastAPI, service: Service, authorised: list[Any]) -> None:
    """`/`, and the samples that it shows."""
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
        text, policy = page_policy.page()
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/v1/samples", summary="The page's sample pictures", dependencies=authorised)
    async def list_samples() -> list[dict[str, Any]]:
        return [{"id": number, "name": sample.name} for number, sample in enumerate(await samples())]

    @app.get("/v1/samples/{number}", dependencies=authorised, response_class=Response, responses=_PNG)
    async def sample(number: int) -> Response:
        pictures = await samples()
        if not 0 <= number < len(pictures):
            raise Problem("not-found", f"sample {number}: there are {len(pictures)}, counted from 0")
        return Response(images.encode_png(pictures[number].pixels), media_type="image/png")


def add_attack_route(app: FastAPI, service: Service, authorised: list[Any]) -> None:
    """/v1/attack, for loopback only."""

    @app.post(
        "/v1/attack",
        summary="Playground: attack the bare classifier (oblivious), then purify",
        dependencies=authorised,
        openapi_extra=request_body.OPENAPI,
        responses=openapi_responses(*request_body.CODES, "unsupported-size", "invalid-parameter"),
    )
    async def attack(
        request: Request,
        attack: Literal["fgsm", "pgd"] = "pgd",
        eps: Annotated[float, Query(gt=0, le=16, description="Linf budget in levels of 255")] = 8,
        steps: Annotated[int, Query(ge=1, le=50)] = 20,
        top_k: Annotated[int, Query(ge=1, le=1000)] = 5,
    ) -> dict[str, Any]:
        engine = service.engine
        config = AttackConfig(name=attack, eps=eps / 255, steps=1 if attack == "fgsm" else steps)
        async with request_body.image(request, service, engine, _ATTACK_MAX_PIXELS) as pixels:
            given = images.to_uint8(pixels) if pixels.is_floating_point() else pixels
            result = await engine.attack(given, config)
        names = ("clean", "attacked", "purified")
        pictures = (result.clean, result.attacked, result.purified)
        return {
            "threat": "oblivious",
            "label": result.label,
            "purifier": engine.models.purifier_sha256,
            "images": {
                name: base64.b64encode(images.encode_png(picture)).decode()
                for name, picture in zip(names, pictures, strict=True)
            },
            "top": {
                name: top(row, engine.models.classes, top_k)
                for name, row in zip(names, result.probabilities, strict=True)
            },
        }
