"""Errors as `application/problem+json` (RFC 9457), each with a `code` that stays the same across versions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

CONTENT_TYPE = "application/problem+json"

# code -> (HTTP status, title)
CODES: dict[str, tuple[int, str]] = {
    "not-an-image": (400, "The body is not a readable PNG, JPEG or WebP image"),
    "invalid-request": (400, "The body is no request of the Open Inference Protocol"),
    "unauthorized": (401, "A bearer token is required"),
    "not-found": (404, "There is nothing at this address"),
    "method-not-allowed": (405, "This address does not take this method"),
    "body-timeout": (408, "The body did not arrive in time"),
    "length-required": (411, "A body with a Content-Length is required"),
    "body-too-large": (413, "The body is larger than this endpoint takes"),
    "unsupported-media-type": (415, "The body must be image/png, image/jpeg, image/webp or a tensor"),
    "too-many-pixels": (422, "The image has more pixels than this endpoint takes"),
    "unsupported-image": (422, "This kind of picture is not taken"),
    "invalid-tensor": (422, "The tensor is not an image of the kind taken"),
    "unsupported-size": (422, "The classifier cannot take an image of this size"),
    "invalid-parameter": (422, "A parameter cannot be used"),
    "queue-full": (429, "Too many requests are waiting"),
    "internal-error": (500, "The endpoint failed"),
    "no-classifier": (404, "This endpoint protects no classifier"),
    "not-ready": (503, "The model is not loaded yet"),
    "timeout": (504, "The image was not purified in time"),
}

_PROTOCOL = "/v2/"
_HTTP_CODES = {404: "not-found", 405: "method-not-allowed"}


class Problem(Exception):
    """An answer other than 2xx: a `code` of CODES, one line of detail, and headers."""

    def __init__(self, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.status, self.title = CODES[code]
        self.detail = detail
        self.headers = dict(headers or {})

    def response(self, path: str = "") -> Response:
        """The problem document. Below /v2 it has the member `error` too, which the protocol's clients show."""
        body = {
            "type": f"urn:maep:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if f"{path}/".startswith(_PROTOCOL):
            body["error"] = f"{self.code}: {self.detail}"
        return JSONResponse(body, self.status, self.headers, media_type=CONTENT_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Makes every error of `app`, also its framework's own, a problem document."""

    def answer(request: Request, error: Problem) -> Response:
        path = request.url.path.removeprefix(request.scope.get("root_path", ""))
        return error.response(path)

    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return answer(request, error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first: dict[str, Any] = dict(error.errors()[0])
        where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return answer(request, Problem("invalid-parameter", f"{where}: {first['msg']}"))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _HTTP_CODES.get(error.status_code, "internal-error")
        return answer(request, Problem(code, f"{request.method} {request.url.path}", error.headers))

    async def internal(request: Request, error: Exception) -> Response:
        logging.getLogger(__name__).error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(request, Problem("internal-error", "the endpoint's log says more"))

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, internal)


def openapi_responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` entry of a route that may answer with the problems `codes`."""
    schema = {
        "type": "object",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "string", "enum": sorted(CODES)},
        },
    }
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(CODES[code][0], []).append(code)
    return {
        status: {
            "description": " or ".join(f"`{code}`" for code in names),
            "content": {CONTENT_TYPE: {"schema": schema}},
        }
        for status, names in sorted(by_status.items())
    }
