"""What every request passes first: its id, its count and its time."""

from __future__ import annotations

import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maep_serve.engine.service import Service

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_GONE = 499  # the caller hung up: nginx's number for it


class Front:
    """Answers carry the caller's x-request-id, or a new one, unless something before this does so; all are measured."""

    def __init__(self, app: ASGIApp, service: Service, adds_request_id: bool = True) -> None:
        self._app = app
        self._service = service
        self._adds_request_id = adds_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope) if self._adds_request_id else None
        began, status = time.monotonic(), _GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if request_id is not None:
                    MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            status = 500
            raise
        finally:
            # The route's template: of paths there are as many as callers like
            route, version = getattr(scope.get("route"), "path", "none"), self._service.version
            self._service.metrics.requests.labels(route, str(status), version).inc()
            self._service.metrics.request_seconds.labels(route, version).observe(time.monotonic() - began)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
