"""Stages that overlap: a shard goes on to the next stage as soon as it is there, while others are still being made.

The last leg that has work goes first, and a leg rests while too many of its shards wait for the next one: what lies
between two legs stays bounded, and the slowest leg sets the pace of all.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from talker_rl.base.processes import WorkerPool, at_once
from talker_rl.base.progress import bar
from talker_rl.store.shards import ShardFolder

BACKLOG = 4
"""Shards that may wait for the next leg; so many more may be under way."""


@dataclass
class Leg:
    """One stage of a flow. Shard ``i`` of a leg needs shard ``i`` of the leg before, and nothing else."""

    stage: str
    folder: ShardFolder
    count: int
    """Shards in all."""
    task: Callable[[int], Any]
    """Asked when the shard before is stored."""
    function: Callable[[Any], Any]
    store: Callable[[ShardFolder, int, Any], None]
    here: bool = False
    """In a thread of this process, one shard at a time, because the work is done elsewhere."""
    missing: list[int] = field(init=False)
    busy: float = 0.0
    """Seconds of workers spent in ``function``."""
    rows: int = 0
    """Made by this flow."""

    def __post_init__(self) -> None:
        self.missing = self.folder.missing(self.count)


@dataclass(frozen=True)
class _Timed:
    """A function that tells how long it took; it can be sent to a worker."""

    function: Callable[[Any], Any]

    def __call__(self, task: Any) -> tuple[float, Any]:
        start = time.monotonic()
        result = self.function(task)
        return time.monotonic() - start, result


def flow(pool: WorkerPool, legs: Sequence[Leg], *, quiet: bool = False) -> float:
    """Make the missing shards of all legs; returns the seconds it took.

    Raises:
        StageError: a worker died. Whatever a leg's functions raise is raised here; finished shards are kept.
    """
    return _Flow(pool, legs, quiet).run()


class _Flow:
    def __init__(self, pool: WorkerPool, legs: Sequence[Leg], quiet: bool) -> None:
        self.pool, self.legs = pool, legs
        self.quiet = quiet
        self.ready = [deque(leg.missing) for leg in legs[:1]]
        for before, leg in zip(legs[:-1], legs[1:], strict=True):
            self.ready.append(deque(i for i in leg.missing if i not in before.missing))
        self.waiting = [set(leg.missing) for leg in legs]
        self.under: dict[Future[tuple[float, Any]], tuple[int, int]] = {}
        # no processes for a single shard, no thread where nothing goes on beside it
        self.now = {True: len(legs) == 1, False: sum(map(len, self.waiting)) == 1 and not pool.started}

    def run(self) -> float:
        start = time.monotonic()
        bars = self._bars()
        try:
            with self.pool.watched():
                while self._submit():
                    done, _ = wait(self.under, return_when=FIRST_COMPLETED)
                    for future in done:
                        at, i = self.under.pop(future)
                        self._store(at, i, *future.result())
                        self._show(bars, at, time.monotonic() - start)
        finally:
            for future in self.under:
                future.cancel()
            for shown in bars:
                shown.close()
        return time.monotonic() - start

    def _submit(self) -> bool:
        """Start what there is room for; whether anything is under way."""
        for at in reversed(range(len(self.legs))):
            leg, queue = self.legs[at], self.ready[at]
            while queue and self._room(at):
                i = queue.popleft()
                call, task = _Timed(leg.function), leg.task(i)
                now, later = (at_once, _in_thread) if leg.here else (self.pool.at_once, self.pool.submit)
                start = now if self.now[leg.here] else later
                future = start(call, task)
                self.under[future] = at, i
                if future.done():
                    return True  # it was made at once: first to the next leg with it
        return bool(self.under)

    def _room(self, at: int) -> bool:
        mine = [self.legs[k].here for k, _ in self.under.values()]
        if self.legs[at].here:
            return not any(mine)
        if at + 1 < len(self.legs) and len(self.ready[at + 1]) >= BACKLOG:
            return False
        return mine.count(False) < self.pool.slots

    def _store(self, at: int, i: int, seconds: float, result: Any) -> None:
        leg = self.legs[at]
        leg.store(leg.folder, i, result)
        leg.busy += seconds
        leg.rows += leg.folder.row_count(i)
        self.waiting[at].discard(i)
        if at + 1 < len(self.legs) and i in self.waiting[at + 1]:
            self.ready[at + 1].append(i)

    def _bars(self) -> list[Any]:
        return [bar(total=len(leg.missing), desc=leg.stage, unit="shard", position=k, disable=self.quiet)
                for k, leg in enumerate(self.legs)]

    def _show(self, bars: list[Any], at: int, seconds: float) -> None:
        """Rates of all legs, and who waits for whom."""
        bars[at].update()
        if len(self.legs) == 1:
            return
        for k, (shown, leg) in enumerate(zip(bars, self.legs, strict=True)):
            state = f"{leg.rows / seconds:.1f} rows/s"
            if self.waiting[k]:
                if k and not self.ready[k] and not any(a == k for a, _ in self.under.values()):
                    state += f", waits for {self.legs[k - 1].stage}"
                elif k + 1 < len(self.legs) and len(self.ready[k + 1]) >= BACKLOG:
                    state += f", waits for {self.legs[k + 1].stage}"
            shown.set_postfix_str(state)


def describe(legs: Sequence[Leg], seconds: float) -> str:
    """Rate and share of the work of every leg, in one line."""
    total = sum(leg.busy for leg in legs) or 1.0
    parts = [f"{leg.stage} {leg.rows / leg.busy:.1f} rows per second and worker ({leg.busy / total:.0%} of the work)"
             for leg in legs if leg.busy]
    return f"{', '.join(parts)}; {seconds:.0f} s in all"


def _in_thread(function: Callable[[Any], Any], task: Any) -> Future[Any]:
    """Unlike an executor's thread, one that does not hold up the end of the program."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(function(task))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
