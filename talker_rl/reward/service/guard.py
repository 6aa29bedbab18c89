"""Around every request: bearer token, size and time of the body, one structured log line, one count."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import sys
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from talker_rl.reward.service.metrics import Metrics

log = logging.getLogger("talker_rl.service")

OPEN = ("/healthz", "/readyz")
"""Paths that need no token: probes."""
BODY_SECONDS = 60.0
"""Longest time that a body may take to arrive."""
BODIES = 16
"""So many bodies of the largest size may be in memory at once."""


def problem(
    status: int, code: str, message: str, *, retryable: bool = False, headers: dict[str, str] | None = None
) -> Response:
    """An answer that is no success."""
    error = {"code": code, "message": message, "retryable": retryable}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


class Guard:
    """ASGI middleware.

    Args:
        token: what `Authorization: Bearer` must carry; None lets everyone in.
        max_body: bytes.
    """

    def __init__(self, app: ASGIApp, token: str | None, max_body: int, metrics: Metrics) -> None:
        self.app, self.max_body, self.metrics = app, max_body, metrics
        self._token = token.encode() if token else None
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, held = time.monotonic(), 0, 0
        complete = False

        async def limited() -> Message:
            nonlocal held, complete
            if complete:
                return await receive()  # waits for the client to hang up
            try:
                message = await asyncio.wait_for(receive(), BODY_SECONDS)
            except TimeoutError:
                raise HTTPException(408, f"the body took longer than {BODY_SECONDS:g} s") from None
            size = len(message.get("body", b""))
            held += size
            self._held += size
            complete = not message.get("more_body", False)
            if held > self.max_body:
                raise HTTPException(413, f"the body has more than {self.max_body} bytes")
            if self._held > BODIES * self.max_body:
                raise HTTPException(429, "too many large bodies at once", {"Retry-After": "1"})
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refused = self._refuse(scope)
            if refused is not None:
                await refused(scope, receive, noted)
            else:
                await self.app(scope, limited, noted)
        finally:
            self._held -= held
            self._note(scope, status, time.monotonic() - start)

    def _refuse(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        if self._token is not None and scope["path"] not in OPEN:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not (kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token)):
                return problem(401, "unauthorized", "a bearer token is needed", headers={"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.max_body:
            return problem(413, "too_large", f"the body has more than {self.max_body} bytes")
        return None

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        path = getattr(route, "path", "other")  # a path that a client made up must not become a label
        self.metrics.requests.labels(path, str(status)).inc()
        if path in ("/v1/score", "/get_reward"):
            self.metrics.request_seconds.observe(seconds)
        level = logging.DEBUG if path in ("/healthz", "/readyz", "/metrics") else logging.INFO
        log.log(level, "request", extra={"method": scope["method"], "path": path, "status": status,
                                         "seconds": round(seconds, 4)})  # fmt: skip


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, message, and what ``extra`` carried. Never headers, bodies or tokens."""

    _own = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}

    def format(self, record: logging.LogRecord) -> str:
        row: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        row |= {name: value for name, value in vars(record).items() if name not in self._own}
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str, ensure_ascii=False)


def set_up_logging(level: int) -> None:
    """The service's log lines go to standard error; one that cannot be written is lost and nothing else is."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.raiseExceptions = False
    for name in ("talker_rl.service", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
