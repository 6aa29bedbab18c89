"""What happens to an item: admitted or refused, answered from the cache, decoded, judged, answered by its deadline.

Every item gets exactly one answer. A worker's death, a deadline, a full queue and a shutdown are failures with a code;
none of them is ever a number.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from talker_rl.base.errors import TalkerRLError
from talker_rl.base.figures import count
from talker_rl.records.codec import Codec
from talker_rl.reward.config import RewardConfig, ServiceConfig
from talker_rl.reward.service import frames
from talker_rl.reward.service.canary import Canary, CanarySpec, default_canary
from talker_rl.reward.service.fingerprint import PARTS, Parts, fingerprint_of
from talker_rl.reward.service.metrics import Metrics
from talker_rl.reward.service.pool import Pool, WorkerDied, WorkerProcess
from talker_rl.reward.service.protocol import Item, Limits, Ready, failed
from talker_rl.reward.service.queues import Job, JobQueue
from talker_rl.speech.config import ModelConfig, Token2WavConfig
from talker_rl.speech.registry import codec_of

log = logging.getLogger("talker_rl.service")

_BYTES_A_SECOND = {b"OggS": 2e3, b"fLaC": 24e3}
"""Of sound files by their first bytes, roughly; 48,000 (16 bit, 24 kHz) for others."""
_LEAST_SECONDS = 0.1
"""What any item counts for, so that the bound on speech bounds their number too."""
_MOST_DEATHS = 2
"""Workers that may die over an item: it is tried once more, alone."""


class Overloaded(Exception):
    """More speech is waiting than is allowed; ``retry_after`` in seconds."""

    def __init__(self, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__("too much speech is waiting")


class TooLarge(Exception):
    """A request that would never be accepted."""


class NotReady(Exception):
    """No worker has been ready yet."""


@dataclass(frozen=True)
class ServiceSpec:
    """What is served, and how."""

    model: ModelConfig
    token2wav: Token2WavConfig
    reward: RewardConfig
    service: ServiceConfig
    canary: CanarySpec | None = None


class Engine:
    """Queues, cache and workers behind the routes.

    Args:
        spec: what is served.
        fatal: called where the workers cannot start at all, with the reason.
    """

    def __init__(self, spec: ServiceSpec, fatal: Callable[[TalkerRLError], None] = lambda error: None) -> None:
        self.config = config = spec.service
        self.metrics = Metrics()
        self.canary = Canary(spec.canary)
        self.parts: Parts = {}
        self.speakers: list[str] = []
        self.codec = codec_of(spec.model)
        self._live: dict[str, Job] = {}
        self._cache: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._load = 0.0
        self._finished: deque[tuple[float, float]] = deque(maxlen=64)
        plain = {
            "model": spec.model.model_dump(mode="json"),
            "token2wav": spec.token2wav.model_dump(mode="json"),
            "reward": spec.reward.model_dump(mode="json"),
            "max_seconds": config.max_seconds,
        }

        def pool(kind: str, count: int, question: Callable[[list[Job]], frames.Frame]) -> Pool:
            return Pool(
                kind,
                count,
                plain | {"kind": kind},
                JobQueue(config.batch_items, config.batch_seconds, config.batch_wait),
                admit=lambda worker, hello: self._admit_worker(kind, worker, hello),
                question=question,
                done=self._decoded if kind == "decode" else self._scored,
                lost=lambda jobs, why: self._lost(kind, jobs, why),
                fatal=fatal,
                metrics=self.metrics,
                timeouts=(config.start_timeout, config.worker_timeout),
            )

        self.pools = {
            "decode": pool("decode", config.decoders, decode_question),
            "score": pool("score", config.recognizers, score_question),
        }
        self.metrics.queued_seconds.set_function(lambda: self._load)
        for kind, each in self.pools.items():
            self.metrics.queued_jobs.labels(kind).set_function(each.queue.__len__)
            self.metrics.workers_ready.labels(kind).set_function(each.workers.__len__)

    def start(self) -> None:
        """Begin to start the workers; returns at once."""
        for pool in self.pools.values():
            pool.start()

    async def close(self) -> None:
        """Answer what is still waiting as `shutting_down`, and end the workers."""
        for job in list(self._live.values()):
            self._finish(job, failed(job.item.id, "shutting_down", "the service was stopped", retryable=True))
        await asyncio.gather(*(pool.close() for pool in self.pools.values()))

    # -- what the routes ask ------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str | None:
        """None until a worker of each kind has been ready."""
        return fingerprint_of(self.parts) if self.parts.keys() == PARTS.keys() else None

    def readiness(self) -> Ready:
        """Whether every kind of worker has one that got the canary right."""
        idle = [pool for pool in self.pools.values() if not pool.workers]
        config = self.config
        return Ready(
            ready=not idle,
            reason="; ".join(pool.problem or f"{pool.kind}: starting" for pool in idle) or None,
            fingerprint=self.fingerprint,
            parts=self.parts,
            speakers=self.speakers,
            codec=self.codec.name,
            limits=Limits(
                max_items=config.max_items,
                max_seconds=config.max_seconds,
                queue_seconds=config.queue_seconds,
                max_body_bytes=round(config.max_body_mib * 2**20),
            ),
        )

    async def score(self, items: Sequence[Item], timeout: float | None = None) -> list[dict[str, Any]]:
        """One `ItemResult` an item, in order. Cancel it, and items that nobody else waits for are given up.

        Raises:
            NotReady, Overloaded, TooLarge: nothing was accepted.
        """
        jobs = self._admit(items)
        try:
            await asyncio.wait(
                [job.future for job in jobs], timeout=min(timeout or math.inf, self.config.request_timeout)
            )
            return [
                job.future.result()
                if job.future.done()
                else self._count(failed(job.item.id, "deadline", "no score before the deadline", retryable=True))
                for job in jobs
            ]
        finally:
            for job in jobs:
                self._release(job)

    # -- admission ----------------------------------------------------------------------------------------------

    def _admit(self, items: Sequence[Item]) -> list[Job]:
        if self.fingerprint is None or not all(pool.was_ready for pool in self.pools.values()):
            raise NotReady(self.readiness().reason)
        if len(items) > self.config.max_items:
            raise TooLarge(f"{count(len(items), 'item')}; send at most {self.config.max_items}")
        jobs = [self._job(item) for item in items]
        new = sum(job.seconds for job in jobs if job.waiters == 0 and job.wanted)
        if new > self.config.queue_seconds:
            raise TooLarge(f"{new:.0f} s of speech; send at most {self.config.queue_seconds:g} s at once")
        if self._load + new > self.config.queue_seconds and new:
            raise Overloaded(self._retry_after(new))
        for job in jobs:
            if job.wanted and job.waiters == 0:
                self._enqueue(job)
            job.waiters += 1
        return jobs

    def _job(self, item: Item) -> Job:
        """The item's job: a new one, one under way, or a finished one."""
        key = hashlib.sha256(item.model_dump_json().encode()).hexdigest()
        if key in self._live:
            self.metrics.cache_hits.inc()
            return self._live[key]
        item = item if item.codec else item.model_copy(update={"codec": self.codec.name})
        seconds = speech_seconds(item, self.codec, self.config.max_seconds)
        job = Job(key, item, seconds, asyncio.get_running_loop().create_future())
        known = self._cache.get(key)
        if known is not None:
            self._cache.move_to_end(key)
            self.metrics.cache_hits.inc()
        known = known or refusal(item, self.codec, self.config.max_seconds)
        if known is not None:
            job.future.set_result(self._count(known))
        return job

    def _enqueue(self, job: Job) -> None:
        self._live[job.key] = job
        self._load += job.seconds
        self.pools["decode" if needs_decoder(job.item) else "score"].queue.put(job)

    def _forget(self, job: Job) -> None:
        """Out of the books: it has a result, or nobody wants one."""
        del self._live[job.key]
        self._load = max(0.0, self._load - job.seconds) if self._live else 0.0
        job.sound = None

    def _release(self, job: Job) -> None:
        job.waiters -= 1
        if job.waiters == 0 and job.wanted:
            for pool in self.pools.values():
                pool.queue.discard(job)
            job.future.cancel()
            self._forget(job)

    def _retry_after(self, new: float) -> int:
        """Seconds until that much speech will have been worked off, at the pace of the last items."""
        pace = 10.0
        if len(self._finished) > 1:
            pace = sum(s for _, s in self._finished) / max(0.1, time.monotonic() - self._finished[0][0])
        return math.ceil(min(30.0, max(1.0, (self._load + new - self.config.queue_seconds) / max(pace, 0.1))))

    # -- what workers report ------------------------------------------------------------------------------------

    async def _admit_worker(self, kind: str, worker: WorkerProcess, hello: dict[str, Any]) -> None:
        """Let a started worker work, or raise WorkerDied: another scorer than before, or a wrong canary."""
        changed = [name for name, value in hello["parts"].items() if self.parts.get(name, value) != value]
        if changed:
            raise WorkerDied(f"{', '.join(changed)}: not what this service began with; restart it as a whole")
        canary = self.canary
        if kind == "decode":
            canary.spec = canary.spec or default_canary(hello["speakers"][0], self.codec)
            job = self._canary_job()
            fault = canary.check_sound(*await worker.ask(*decode_question([job]), self.config.worker_timeout))
            self.speakers = hello["speakers"]
        else:
            await canary.decoded.wait()
            job = self._canary_job()
            job.sound = canary.sound
            header, _ = await worker.ask(*score_question([job]), self.config.worker_timeout)
            fault = canary.check_score(header)
        if fault:
            raise WorkerDied(f"the canary: {fault}")
        self.parts |= hello["parts"]

    def _canary_job(self) -> Job:
        assert self.canary.spec is not None
        return Job("canary", self.canary.spec.item, 0.0, asyncio.get_running_loop().create_future())

    def _decoded(self, job: Job, fault: dict[str, Any], sound: bytes) -> None:
        if fault:
            self._finish(job, failed(job.item.id, **fault))
        elif job.wanted:
            job.sound, job.attempts = sound, 0
            self.pools["score"].queue.put(job)

    def _scored(self, job: Job, result: dict[str, Any], _: bytes) -> None:
        self._finished.append((time.monotonic(), job.seconds))
        self.metrics.speech_seconds.inc(job.seconds)
        self._finish(job, result | {"timings": {name: round(s, 6) for name, s in job.timings.items()}})

    def _lost(self, kind: str, jobs: list[Job], why: str) -> None:
        """Jobs of a worker that died: each once more, alone, so that a poisoned one takes none along."""
        for job in reversed(jobs):
            job.attempts += 1
            if job.attempts >= _MOST_DEATHS:
                message = f"the {kind} worker died over it twice; last: {why}"
                self._finish(job, failed(job.item.id, "worker_died", message, retryable=True))
            elif job.wanted:
                self.pools[kind].queue.put(job, first=True)

    def _finish(self, job: Job, result: dict[str, Any]) -> None:
        if not job.wanted:
            return  # nobody waits any more
        if result["status"] == "ok" or not result["error"]["retryable"]:
            self._cache[job.key] = result
            while len(self._cache) > self.config.cache_items:
                self._cache.popitem(last=False)
        job.future.set_result(self._count(result))
        self._forget(job)

    def _count(self, result: dict[str, Any]) -> dict[str, Any]:
        self.metrics.items.labels("ok" if result["status"] == "ok" else result["error"]["code"]).inc()
        return result


def refusal(item: Item, codec: Codec, max_seconds: float) -> dict[str, Any] | None:
    """The failure of an item that no worker needs to see, or None."""
    if item.codes is None:
        return None
    if item.codec not in (None, codec.name):
        return failed(item.id, "other_codec", f"codes of {item.codec}; this service decodes {codec.name}",
                      retryable=False)
    bad = codec.invalid(item.codes)
    if bad is not None:
        return failed(item.id, "invalid_code", f"{bad} is no code: 0 to {max(codec.sizes) - 1}", retryable=False)
    if len(item.codes) % codec.groups:
        return failed(item.id, "invalid_code", f"{len(item.codes)} codes are no whole frames of {codec.groups}",
                      retryable=False)
    if codec.seconds(item.codes) > max_seconds:
        return failed(item.id, "too_long", f"{count(len(item.codes), 'code')}; {max_seconds:g} s are "
                                           f"taken", retryable=False)
    return None


def needs_decoder(item: Item) -> bool:
    """As in the scoring stage: sequences that cannot be decoded go to the scorer without a sound, which says why."""
    return bool(item.codes) and item.end_reason != "invalid_code"


def speech_seconds(item: Item, codec: Codec, max_seconds: float) -> float:
    """Duration of an item: what admission counts."""
    if item.audio is None:
        return max(_LEAST_SECONDS, codec.seconds_of(len(item.codes or ()) // codec.groups))
    seconds = len(item.audio) / _BYTES_A_SECOND.get(item.audio[:4], 48_000)
    return min(max_seconds, max(_LEAST_SECONDS, seconds))


def decode_question(jobs: list[Job]) -> frames.Frame:
    """What a decoder is asked."""
    rows = [job.item.model_dump(include={"codes", "speaker", "seed"}) for job in jobs]
    return {"items": rows}, []


def score_question(jobs: list[Job]) -> frames.Frame:
    """What a recognizer is asked: the fields of `ScoreItem`, and one sound an item."""
    rows, sounds = [], []
    for job in jobs:
        item = job.item
        kind = "pcm" if job.sound is not None else "file" if item.audio is not None else "none"
        rows.append(
            item.model_dump(include={"id", "text", "lang", "codes", "codec", "end_reason", "reference_seconds",
                                     "prompt_id"})
            | {"speaker": item.speaker or "", "seed": item.sample_seed, "sound": kind}
        )
        sounds.append(job.sound or item.audio or b"")
    return {"items": rows}, sounds
