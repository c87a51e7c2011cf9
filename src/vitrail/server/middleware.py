"""What happens to every request: faulty headers are refused, failures answered, and all of them logged and counted."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Collection, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from vitrail.server.headers import find_fault
from vitrail.server.log import FIELDS
from vitrail.server.metrics import Metrics
from vitrail.server.protocol import FAULT
from vitrail.server.settings import Serving
from vitrail.server.upload import Refused

Message = MutableMapping[str, Any]
"""A message of ASGI."""

SECURITY_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
OTHER_PATH = "other"
"""What the log and the counts call any path that the server does not have."""

log = logging.getLogger(__name__)


class Middleware:
    """The ASGI application around another; it logs nothing that a request holds or asks for.

    Args:
        app: Answers requests whose headers are in order.
        paths: Paths that `app` has, by which requests are logged and counted.
        metrics: Counts and times of requests.
        serving: Settings, of which the server's names are compared with those that requests call it
            by.
    """

    def __init__(
        self, app: Any, paths: Collection[str], metrics: Metrics, serving: Serving
    ) -> None:
        self._app = app
        self._paths = paths
        self._metrics = metrics
        self._serving = serving

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = secrets.token_hex(8)
        status = 0

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own_headers = ((b"x-request-id", request_id.encode()), *SECURITY_HEADERS)
                message["headers"] = [*message["headers"], *own_headers]
            await send(message)

        async def receive_or_refuse() -> Message:
            message = await receive()
            fault = scope["state"].get(FAULT)
            if fault is not None:
                raise Refused(fault.status, fault.reason)
            return message

        async def fail(code: int, reason: str) -> None:
            nonlocal status
            if not status:  # nothing of an answer is sent yet
                await JSONResponse({"error": reason}, code)(scope, receive, send_and_note_status)
            status = code

        app = self._choose_app(scope)
        try:
            await app(scope, receive_or_refuse, send_and_note_status)
        except asyncio.CancelledError:
            await fail(503, "the server ends, and has no time left for this request; try again")
        except Exception:
            log.exception("a request failed", extra={FIELDS: {"id": request_id}})
            await fail(500, f"an error of the server; its log has {request_id}")
        self._record(scope, request_id, status, time.perf_counter() - began)

    def _choose_app(self, scope: Message) -> Any:
        """Return the application, or the refusal of what is no request, or of one with faulty headers."""
        fault = scope["state"].get(FAULT)
        fault = fault or find_fault(scope["headers"], scope["http_version"], self._serving)
        if fault is None:
            return self._app
        status, reason = fault
        return JSONResponse({"error": reason}, status, {"Connection": "close"})

    def _record(self, scope: Message, request_id: str, status: int, seconds: float) -> None:
        """Count a request, and write its line of the log."""
        path = scope["path"] if scope["path"] in self._paths else OTHER_PATH
        self._metrics.requests.labels(path, str(status)).inc()
        self._metrics.request_seconds.labels(path).observe(seconds)
        fields = {
            "id": request_id,
            "method": scope["method"],
            "path": path,
            "status": status,
            "ms": round(1000 * seconds, 1),
            **scope["state"],
        }
        if FAULT in fields:
            fields[FAULT] = fields[FAULT].reason
        log.info("request", extra={FIELDS: fields})
