"""Client of the reward service: several endpoints, bounded retries, one scorer per run.

An answer is taken only if it is whole: the asked ids in the asked order, each a score or a failure, from the one scorer
that this client began with. Everything else is tried again or stops the run; nothing is made up.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from talker_rl.base.errors import StageError
from talker_rl.records.codec import codec_named
from talker_rl.reward.service.fingerprint import Parts, differing
from talker_rl.reward.service.protocol import (
    PROTOCOL,
    TOKEN_VARIABLE,
    Item,
    ItemResult,
    Limits,
    Ready,
    ScoreRequest,
    ScoreResponse,
)

_RETRIED = (408, 429)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 20.0
"""Seconds, before jitter."""


class ServiceError(StageError):
    """A service that cannot be reached, refuses, or is another scorer than the run's."""


class _TryAgain(Exception):
    """Nothing was scored, and the same request may succeed later."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        self.after = after
        super().__init__(why)


@dataclass
class _Endpoint:
    """One service and how it has been doing."""

    url: str
    asked: int = 0
    """Requests under way."""
    failures: int = 0
    """In a row."""
    rests_until: float = 0.0
    """time.monotonic() before which others are asked first."""

    def rest(self, after: float = 0.0) -> None:
        self.failures += 1
        self.rests_until = time.monotonic() + max(after, min(_LONGEST_PAUSE, 0.25 * 2 ** min(self.failures, 10)))

    def well(self) -> None:
        self.failures, self.rests_until = 0, 0.0


class ScoreClient:
    """Scores items through one or more services.

    Args:
        endpoints: base URLs.
        token: bearer token.
        expected: fingerprint parts that every service must have (`fingerprint.settings_parts`, `part_hash`).
        fingerprint, parts: of the scorer that the run began with; None takes the first service's.
        concurrency: requests under way at once.
        request_items: items per request.
        attempts, patience: a request is given up after so many tries, or when that many seconds have gone by and each
            service has been tried.
        item_retries: how often an item is sent again that failed by the machine's fault.
        hedge_after: after so many seconds without an answer a second service is asked as well; None never does.
        timeout: seconds without a sign of life from a connected service.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        token: str | None = None,
        expected: Parts | None = None,
        fingerprint: str | None = None,
        parts: Parts | None = None,
        concurrency: int = 16,
        request_items: int = 8,
        attempts: int = 20,
        patience: float = 300.0,
        item_retries: int = 2,
        hedge_after: float | None = None,
        timeout: float = 330.0,
    ) -> None:
        if not endpoints:
            raise ServiceError("No endpoint was given", fix="name at least one, e.g. http://127.0.0.1:8020")
        self._endpoints = [_Endpoint(url.rstrip("/")) for url in dict.fromkeys(endpoints)]
        self.expected, self.fingerprint, self.parts = expected or {}, fingerprint, parts
        self.concurrency, self.request_items = concurrency, request_items
        self.attempts, self.patience, self.item_retries = attempts, patience, item_retries
        self.hedge_after = hedge_after
        self._limits: Limits | None = None
        self._runner = asyncio.Runner()
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(timeout, connect=10.0),
            limits=httpx.Limits(max_connections=concurrency * 2),
            follow_redirects=False,
            trust_env=False,
        )

    def connect(self) -> str:
        """Wait until a service is ready and compare it with what is expected; returns the fingerprint.

        Raises:
            ServiceError: none became ready in time, or one scores otherwise.
        """
        self._runner.run(self._connect())
        assert self.fingerprint is not None
        return self.fingerprint

    def score(
        self, items: Sequence[Item], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[ItemResult]:
        """Results in the order of the items; `progress` is called with (done, total).

        Raises:
            ServiceError: a request was refused or given up, or a service turned out to be another scorer. What had
                been scored is not lost: services answer it from their cache.
        """
        if self._limits is None:
            self.connect()
        results: list[ItemResult | None] = [None] * len(items)
        self._runner.run(self._score(items, results, progress))
        return [r for r in results if r is not None]

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._http.aclose())
        self._runner.close()

    def __enter__(self) -> ScoreClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- connecting ---------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        give_up = time.monotonic() + self.patience
        while True:
            answers = await asyncio.gather(*map(self._ready, self._endpoints))
            ready = [a for a in answers if isinstance(a, Ready)]
            if ready:
                self._limits = Limits(**{
                    name: min(getattr(a.limits, name) for a in ready) for name in Limits.model_fields
                })
                return
            if time.monotonic() > give_up:
                raise ServiceError("No reward service became ready: " + "; ".join(map(str, answers)),
                                   where=self._names(), fix="see its log, or raise the patience")  # fmt: skip
            await asyncio.sleep(random.uniform(0.2, 1.0))

    async def _ready(self, endpoint: _Endpoint) -> Ready | str:
        """The state of a service, or why there is none yet."""
        try:
            answer = await self._http.get(f"{endpoint.url}/readyz", timeout=10.0)
            state = Ready.model_validate_json(answer.content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"{endpoint.url}: {type(error).__name__}: {error}"
        except ValueError:
            return f"{endpoint.url}: status {answer.status_code} and no answer of a reward service"
        self._check_protocol(endpoint, state.protocol)
        if not state.ready or state.fingerprint is None:
            return f"{endpoint.url}: {state.reason}"
        wrong = differing(self.expected, state.parts)
        if wrong:
            raise ServiceError(
                f"This service scores otherwise than the run. What differs: {'; '.join(wrong)}",
                where=endpoint.url,
                fix="start it with the run's configuration, checkpoint and version of talker_rl",
            )
        self._check_fingerprint(endpoint, state.fingerprint, state.parts)
        self.parts = self.parts or state.parts
        return state

    def _check_protocol(self, endpoint: _Endpoint, protocol: int) -> None:
        if protocol != PROTOCOL:
            raise ServiceError(f"The service speaks protocol {protocol}, this client {PROTOCOL}", where=endpoint.url,
                               fix="install the same version of talker_rl on both sides")  # fmt: skip

    def _check_fingerprint(self, endpoint: _Endpoint, found: str, parts: Parts | None = None) -> None:
        self.fingerprint = self.fingerprint or found
        if found != self.fingerprint:
            differ = differing(self.parts, parts) if self.parts and parts else [found[:12], self.fingerprint[:12]]
            raise ServiceError(
                f"Another scorer than the one that the run began with. What differs: {'; '.join(differ)}",
                where=endpoint.url,
                fix="serve the scorer that the run began with, or do the stage again: --force-stage scores",
            )

    def _names(self) -> str:
        return ", ".join(e.url for e in self._endpoints)

    # -- scoring ------------------------------------------------------------------------------------------------

    async def _score(
        self, items: Sequence[Item], results: list[ItemResult | None], progress: Callable[[int, int], None]
    ) -> None:
        free = asyncio.Semaphore(self.concurrency)
        done = 0

        async def part(indices: list[int]) -> None:
            nonlocal done
            async with free:
                for index, result in zip(indices, await self._with_retries([items[i] for i in indices]), strict=True):
                    results[index] = result
                done += len(indices)
                progress(done, len(items))

        await _all(part(indices) for indices in self._parts(items))

    def _parts(self, items: Sequence[Item]) -> list[list[int]]:
        """Indices of each request's items, within the services' limits."""
        assert self._limits is not None
        most = min(self.request_items, self._limits.max_items)
        parts: list[list[int]] = []
        seconds = size = 0.0
        for i, item in enumerate(items):
            codec = codec_named(item.codec)
            own = codec.seconds_of(len(item.codes or ()) // codec.groups)
            weight = 8.0 * len(item.codes or ()) + 1.5 * len(item.audio or b"") + 8.0 * len(item.text) + 2000
            full = bool(parts) and (
                len(parts[-1]) == most
                or seconds + own > self._limits.queue_seconds / 2
                or size + weight > self._limits.max_body_bytes
            )
            if not parts or full:
                parts.append([])
                seconds = size = 0.0
            parts[-1].append(i)
            seconds, size = seconds + own, size + weight
        return parts

    async def _with_retries(self, items: list[Item]) -> list[ItemResult]:
        """Results of one request; items that failed by the machine's fault are sent again a few times."""
        results = await self._ask(items)
        for attempt in range(self.item_retries):
            again = [i for i, r in enumerate(results) if r.error is not None and r.error.retryable]
            if not again:
                break
            await asyncio.sleep(_pause(attempt))
            for i, result in zip(again, await self._ask([items[i] for i in again]), strict=True):
                results[i] = result
        return results

    async def _ask(self, items: list[Item]) -> list[ItemResult]:
        body = ScoreRequest.model_construct(items=items).model_dump_json(exclude_none=True).encode()
        ids = [item.id for item in items]
        start, last = time.monotonic(), ""
        for attempt in range(self.attempts):
            try:
                return await self._hedged(body, ids)
            except _TryAgain as error:
                last = str(error)
                pause = error.after + _pause(attempt)
                # One that stopped answering used up all patience by itself: then another is asked all the same.
                others = attempt + 1 < len(self._endpoints)
                if time.monotonic() + pause - start > self.patience and not others:
                    break
                await asyncio.sleep(pause)
        raise ServiceError(f"Gave up on a scoring request after {time.monotonic() - start:.0f} s; last: {last}",
                           where=self._names(), fix="mend the service and start the same command again: what is "
                           "finished is kept")  # fmt: skip

    async def _hedged(self, body: bytes, ids: list[str]) -> list[ItemResult]:
        first = self._choose()
        if self.hedge_after is None or len(self._endpoints) == 1:
            return await self._post(first, body, ids)
        tasks = [asyncio.create_task(self._post(first, body, ids))]
        try:
            finished, _ = await asyncio.wait(tasks, timeout=self.hedge_after)
            if not finished:
                tasks.append(asyncio.create_task(self._post(self._choose(first), body, ids)))
            for next_done in asyncio.as_completed(tasks):
                try:
                    return await next_done
                except _TryAgain as error:
                    last = error
            raise last
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _choose(self, other_than: _Endpoint | None = None) -> _Endpoint:
        """The healthy endpoint with the fewest requests under way; where none is, the one that rested longest."""
        now = time.monotonic()
        able = [e for e in self._endpoints if e is not other_than]
        awake = [e for e in able if e.rests_until <= now]
        if awake:
            return min(awake, key=lambda e: (e.asked, random.random()))
        return min(able, key=lambda e: e.rests_until)

    async def _post(self, endpoint: _Endpoint, body: bytes, ids: list[str]) -> list[ItemResult]:
        endpoint.asked += 1
        try:
            answer = await self._http.post(
                f"{endpoint.url}/v1/score", content=body, headers={"Content-Type": "application/json"}
            )
        except httpx.TransportError as error:
            endpoint.rest()
            raise _TryAgain(f"{endpoint.url}: {type(error).__name__}: {error}") from error
        finally:
            endpoint.asked -= 1
        status = answer.status_code
        if status in _RETRIED or status >= 500:
            after = _seconds(answer.headers.get("Retry-After"))
            if status != 408:
                endpoint.rest(after)
            raise _TryAgain(f"{endpoint.url}: status {status}: {_message(answer)}", after)
        if status != 200:
            fix = f"set ${TOKEN_VARIABLE} to its token" if status in (401, 403) else "see docs/SERVICE.md"
            raise ServiceError(
                f"The service refuses this request ({status}): {_message(answer)}", where=endpoint.url, fix=fix
            )
        try:
            scored = ScoreResponse.model_validate_json(answer.content)
        except ValueError as error:
            endpoint.rest()
            raise _TryAgain(f"{endpoint.url}: not the answer of a reward service: {error!s:.200}") from error
        self._check_protocol(endpoint, scored.protocol)
        self._check_fingerprint(endpoint, scored.fingerprint)
        if [r.id for r in scored.items] != ids:
            raise ServiceError("The answer is to other items than those asked", where=endpoint.url,
                               fix="see that nothing between here and the service answers in its place (a cache)")
        endpoint.well()
        return scored.items


async def _all(parts: Any) -> None:
    """Run coroutines together; the first error ends the others and is raised as it is."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _pause(attempt: int) -> float:
    """Exponential with full jitter, so that clients that were refused together do not come back together."""
    return random.uniform(0.0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**attempt))


def _seconds(header: str | None) -> float:
    """`Retry-After` in seconds, within reason; its other form, a date, is not used by the service."""
    try:
        return min(60.0, max(0.0, float(header or 0)))
    except ValueError:
        return 0.0


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
