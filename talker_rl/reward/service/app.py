"""The routes. Every answer that is no success has the same form, `Problem`, and never an item's content in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from talker_rl import __version__
from talker_rl.base.figures import count
from talker_rl.reward.service.engine import Engine, NotReady, Overloaded, TooLarge
from talker_rl.reward.service.guard import Guard, problem
from talker_rl.reward.service.openrlhf import RewardRequest, Rewards, items_of
from talker_rl.reward.service.protocol import PROTOCOL, Item, Problem, Ready, ScoreRequest, ScoreResponse

log = logging.getLogger("talker_rl.service")

_CODES = {400: "bad_request", 401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 408: "timeout",
          413: "too_large", 422: "invalid", 429: "overloaded", 503: "not_ready"}  # fmt: skip
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": code.replace("_", " ")}
    for status, code in _CODES.items()
    if status not in (404, 405)
}
_GONE = 499
"""Status in the log of a client that hung up."""


def create_app(engine: Engine, token: str | None = None) -> FastAPI:
    """The application; its lifespan starts and ends the engine's workers."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await engine.close()

    app = FastAPI(
        title="talker_rl reward service",
        version=__version__,
        description="Scores of speech. A score is a value with its components or a failure, never a guess.",
        lifespan=lifespan,
    )
    app.add_middleware(
        Guard, token=token, max_body=round(engine.config.max_body_mib * 2**20), metrics=engine.metrics
    )
    _add_handlers(app)

    @app.post("/v1/score", response_model=ScoreResponse, responses=_PROBLEMS, summary="Score items")
    async def score(body: ScoreRequest, request: Request) -> Response:
        results = await _unless_gone(request, engine, body.items, body.timeout_seconds)
        if results is None:
            return Response(status_code=_GONE)
        return _json({"protocol": PROTOCOL, "fingerprint": engine.fingerprint, "codec": engine.codec.name,
                      "items": results})

    @app.post("/get_reward", response_model=Rewards, responses=_PROBLEMS, summary="Rewards, as OpenRLHF asks for them")
    async def get_reward(body: RewardRequest, request: Request) -> Response:
        try:
            items = items_of(body)
        except ValueError as error:
            return problem(422, "invalid", str(error))
        results = await _unless_gone(request, engine, items, None)
        if results is None:
            return Response(status_code=_GONE)
        failures = [r["error"] for r in results if r["status"] == "failed"]
        if failures:
            first, retryable = failures[0], all(f["retryable"] for f in failures)
            message = (f"{len(failures)} of {count(len(results), 'item')} failed; first: {first['code']}: "
                       f"{first['message']}")
            headers = {"Retry-After": "1"} if retryable else None
            return problem(503 if retryable else 422, "failed_items", message, retryable=retryable, headers=headers)
        rewards = [r["reward"] for r in results]
        return _json({"rewards": rewards, "scores": rewards, "extra_logs": {}})

    @app.get("/healthz", summary="The process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", response_model=Ready, responses={503: {"model": Ready}},
             summary="Models are loaded and every kind of worker got the canary right")  # fmt: skip
    async def readyz() -> Response:
        ready = engine.readiness()
        return Response(ready.model_dump_json(), 200 if ready.ready else 503, media_type="application/json")

    @app.get("/metrics", summary="Prometheus metrics", responses={200: {"content": {"text/plain": {}}}},
             response_class=Response)  # fmt: skip
    async def metrics() -> Response:
        return Response(engine.metrics.text(), media_type="text/plain; version=0.0.4")

    return app


async def _unless_gone(
    request: Request, engine: Engine, items: Sequence[Item], timeout: float | None
) -> list[dict[str, Any]] | None:
    """The results, or None where the client hung up first: its work is given up then."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work = asyncio.create_task(engine.score(items, timeout))
    watch = asyncio.create_task(gone())
    try:
        await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        return await work if work.done() else None
    finally:
        for task in (work, watch):
            task.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)


def _json(data: dict[str, Any]) -> Response:
    return Response(json.dumps(data, allow_nan=False, ensure_ascii=False), media_type="application/json")


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(Overloaded)
    async def overloaded(_: Request, error: Overloaded) -> Response:
        return problem(429, "overloaded", str(error), retryable=True, headers={"Retry-After": str(error.retry_after)})

    @app.exception_handler(NotReady)
    async def not_ready(_: Request, error: NotReady) -> Response:
        return problem(503, "not_ready", str(error), retryable=True, headers={"Retry-After": "1"})

    @app.exception_handler(TooLarge)
    async def too_large(_: Request, error: TooLarge) -> Response:
        return problem(413, "too_large", str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        told = [f"{'.'.join(str(p) for p in e['loc'][1:])}: {e['msg']}" for e in error.errors()[:5]]
        return problem(422, "invalid", "; ".join(told))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "error")
        return problem(error.status_code, code, str(error.detail), retryable=error.status_code in (408, 429),
                       headers=dict(error.headers or {}))  # fmt: skip

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        log.error("unexpected error", exc_info=error)
        return problem(500, "internal", "an unexpected error; see the service's log", retryable=True)
