"""The middleware of every request: request ids and request metrics."""

from __future__ import annotations

import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maep_serve.engine.service import Service

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CLIENT_CLOSED = 499  # nginx's status for a caller that hung up


class RequestMiddleware:
    """Counts and times requests, and adds x-request-id (the caller's or a new one) unless a server in front does."""

    def __init__(self, app: ASGIApp, service: Service, adds_request_id: bool = True) -> None:
        self._app = app
        self._service = service
        self._adds_request_id = adds_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope) if self._adds_request_id else None
        started, status = time.monotonic(), _CLIENT_CLOSED

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if request_id is not None:
                    MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            status = 500
            raise
        finally:
            # The route's template, because callers can make up any number of paths
            route, version = getattr(scope.get("route"), "path", "none"), self._service.version
            self._service.metrics.requests.labels(route, str(status), version).inc()
            self._service.metrics.request_seconds.labels(route, version).observe(time.monotonic() - started)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
