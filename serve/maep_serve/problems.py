"""Errors as `application/problem+json` (RFC 9457), each with a `code` that is stable across versions."""

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
    "invalid-request": (400, "The body is not an Open Inference Protocol request"),
    "unauthorized": (401, "A bearer token is required"),
    "not-found": (404, "Not found"),
    "method-not-allowed": (405, "Method not allowed"),
    "body-timeout": (408, "The body did not arrive in time"),
    "length-required": (411, "A body with a Content-Length is required"),
    "body-too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The body must be image/png, image/jpeg, image/webp or a tensor"),
    "too-many-pixels": (422, "The image has too many pixels"),
    "unsupported-image": (422, "This kind of image is not supported"),
    "invalid-tensor": (422, "The tensor is not a valid image"),
    "unsupported-size": (422, "The classifier does not support images of this size"),
    "invalid-parameter": (422, "A parameter is invalid"),
    "queue-full": (429, "Too many requests"),
    "internal-error": (500, "Internal error"),
    "no-classifier": (404, "This endpoint has no classifier"),
    "not-ready": (503, "The endpoint is not ready"),
    "timeout": (504, "The request timed out"),
}

_PROTOCOL = "/v2/"
_HTTP_CODES = {404: "not-found", 405: "method-not-allowed"}
_SCHEMA = {
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
_log = logging.getLogger(__name__)


class Problem(Exception):
    """A response other than 2xx: a `code` of CODES, one line of detail, and headers."""

    def __init__(self, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.status, self.title = CODES[code]
        self.detail = detail
        self.headers = dict(headers or {})

    def response(self, path: str = "") -> Response:
        """The problem document. Under /v2 it also has the member `error`, which the protocol's clients show."""
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
    """Turn every error of `app`, including those of its framework, into a problem document."""

    async def handle(request: Request, error: Exception) -> Response:
        path = request.url.path.removeprefix(request.scope.get("root_path", ""))
        return _problem(request, error).response(path)

    for kind in (Problem, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)


def _problem(request: Request, error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        first: dict[str, Any] = dict(error.errors()[0])
        where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return Problem("invalid-parameter", f"{where}: {first['msg']}")
    if isinstance(error, HTTPException):
        code = _HTTP_CODES.get(error.status_code, "internal-error")
        return Problem(code, f"{request.method} {request.url.path}", error.headers)
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return Problem("internal-error", "see the endpoint's log")


def openapi_responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` entry of a route that may respond with the problems `codes`."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(CODES[code][0], []).append(code)
    return {
        status: {
            "description": " or ".join(f"`{code}`" for code in names),
            "content": {CONTENT_TYPE: {"schema": _SCHEMA}},
        }
        for status, names in sorted(by_status.items())
    }
