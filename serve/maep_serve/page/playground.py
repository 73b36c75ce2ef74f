"""The playground: the page, its sample images, and attacks to try on them."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import importlib.resources
import re
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from starlette.responses import HTMLResponse, Response

from maep.attacks.config import AttackConfig
from maep_serve import images
from maep_serve.engine.service import Service
from maep_serve.http import request_body
from maep_serve.http.responses import top
from maep_serve.page.samples import Sample, load_samples
from maep_serve.problems import Problem, openapi_responses

_ATTACK_MAX_PIXELS = 256 * 256
_PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}


def add_page_routes(app: FastAPI, service: Service, authorised: list[Any]) -> None:
    """Adds `/` and the sample images that the page shows."""
    loaded: list[Sample] = []
    loading = asyncio.Lock()

    async def samples() -> list[Sample]:
        models = service.models
        async with loading:
            if not loaded:
                loaded.extend(await asyncio.to_thread(load_samples, models.data, models.image_size))
        return loaded

    @app.get("/", summary="The page", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        text, policy = page_and_policy()
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/v1/samples", summary="The page's sample images", dependencies=authorised)
    async def list_samples() -> list[dict[str, Any]]:
        return [{"id": number, "name": sample.name} for number, sample in enumerate(await samples())]

    @app.get("/v1/samples/{number}", dependencies=authorised, response_class=Response, responses=_PNG)
    async def sample(number: int) -> Response:
        known = await samples()
        if not 0 <= number < len(known):
            raise Problem("not-found", f"sample {number} does not exist: there are {len(known)}, counted from 0")
        return Response(images.encode(known[number].pixels), media_type="image/png")


def add_attack_route(app: FastAPI, service: Service, authorised: list[Any]) -> None:
    """Adds /v1/attack; call it for loopback endpoints only."""

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
            result = await engine.attack(images.to_uint8(pixels) if pixels.is_floating_point() else pixels, config)
        classes = engine.models.classes
        shown = {"clean": result.clean, "attacked": result.attacked, "purified": result.purified}
        tops = [top(probabilities, classes, top_k) for probabilities in result.probabilities]
        return {
            "threat": "oblivious",
            "label": result.label,
            "purifier": engine.models.purifier_sha256,
            "images": {name: base64.b64encode(images.encode(image)).decode() for name, image in shown.items()},
            "top": dict(zip(shown, tops, strict=True)),
        }


@functools.cache
def page_and_policy() -> tuple[str, str]:
    """The page's HTML and its Content-Security-Policy (level 3): only its own script and style, by their sha256."""
    text = importlib.resources.files("maep_serve").joinpath("page/index.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hashes(text, 'script')}; style-src {_hashes(text, 'style')}; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hashes(text: str, element: str) -> str:
    inside = re.findall(rf"<{element}>(.*?)</{element}>", text, re.S)
    digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in inside)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
