"""Jobs and their queue: batches of alike lengths, the longest-waiting job always among them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from talker_rl.reward.service.protocol import Item


@dataclass(eq=False)
class Job:
    """One item on its way. Several requests may wait for the same one."""

    key: str
    """Hash of the item, its id included."""
    item: Item
    seconds: float
    """Of speech; an estimate where the item is a sound file."""
    future: asyncio.Future[dict[str, Any]]
    """Becomes the item's result; canceled when nobody waits for it any more."""
    waiters: int = 0
    sound: bytes | None = None
    """What the decoder made: float32, at the codec's rate."""
    attempts: int = 0
    """Workers that died over it."""
    since: float = field(default_factory=time.monotonic)
    """When it came into the queue it is in."""
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def wanted(self) -> bool:
        return not self.future.done()


class JobQueue:
    """Waiting jobs of one kind of worker.

    Args:
        max_items, max_seconds: bounds of a batch; a single job may exceed the second.
        max_wait: seconds that a batch which is not full waits for more jobs, counted from its oldest.
    """

    def __init__(self, max_items: int, max_seconds: float, max_wait: float) -> None:
        self.max_items, self.max_seconds, self.max_wait = max_items, max_seconds, max_wait
        self._jobs: list[Job] = []
        self._came = asyncio.Event()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job, *, first: bool = False) -> None:
        """Add a job; ``first``: before all others (it was in a worker that died)."""
        job.since = time.monotonic()
        self._jobs.insert(0 if first else len(self._jobs), job)
        self._came.set()

    def discard(self, job: Job) -> None:
        """Take a job out, if it is here."""
        if job in self._jobs:
            self._jobs.remove(job)

    async def get(self) -> list[Job]:
        """The next batch, as soon as there is one."""
        while True:
            while not self._jobs:
                self._came.clear()
                await self._came.wait()
            oldest = self._jobs[0]
            patience = oldest.since + self.max_wait - time.monotonic()
            if oldest.attempts or len(self._jobs) >= self.max_items or patience <= 0:
                return self._take(oldest)
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), patience)
            except TimeoutError:
                pass

    def _take(self, oldest: Job) -> list[Job]:
        """The oldest job and those nearest to it in length. One that a worker died over goes alone."""
        batch, total = [oldest], oldest.seconds
        if not oldest.attempts:
            others = [job for job in self._jobs if job is not oldest and not job.attempts]
            for job in sorted(others, key=lambda job: abs(job.seconds - oldest.seconds)):
                if len(batch) == self.max_items or total + job.seconds > self.max_seconds:
                    break
                batch.append(job)
                total += job.seconds
        taken = set(map(id, batch))
        self._jobs = [job for job in self._jobs if id(job) not in taken]
        return batch
