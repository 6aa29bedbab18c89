"""Worker processes under supervision: started, checked by the canary, fed, killed when they hang, started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from talker_rl.base.errors import CheckpointError, TalkerRLError
from talker_rl.base.processes import worker_environment
from talker_rl.reward.service import frames
from talker_rl.reward.service.metrics import Metrics
from talker_rl.reward.service.queues import Job, JobQueue

log = logging.getLogger("talker_rl.service")

_LONGEST_PAUSE = 10.0
"""Seconds between two starts of a worker that will not start."""


class WorkerDied(Exception):
    """The process ended, hung, answered nonsense, or must not work."""


class WorkerProcess:
    """One process of `talker_rl.reward.service.worker` and the socket to it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self.pid = process.pid
        self.ended = asyncio.create_task(process.wait())
        """Becomes the exit code."""

    @classmethod
    async def start(cls) -> WorkerProcess:
        """Start the process; it waits for its specification."""
        ours, theirs = socket.socketpair()
        path = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "talker_rl.reward.service.worker", str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env=os.environ | worker_environment() | path,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the service's business
            )  # fmt: skip
        ours.setblocking(False)
        return cls(process, *await asyncio.open_connection(sock=ours))

    async def ask(self, header: dict[str, Any], blobs: Sequence[bytes], timeout: float) -> frames.Frame:
        """One question, one answer.

        Raises:
            WorkerDied: no answer, in time or at all. The worker must not be asked again, and be ended.
        """
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(frames.pack(header, blobs))
                await self._writer.drain()
                return await frames.read_async(self._reader)
        except TimeoutError:
            raise WorkerDied(f"no answer within {timeout:g} s") from None
        except (frames.FrameError, OSError):
            raise WorkerDied(await self.end()) from None

    async def next_batch(self, queue: JobQueue) -> list[Job]:
        """The queue's next batch.

        Raises:
            WorkerDied: the process ended while it was idle.
        """
        batch = asyncio.create_task(queue.get())
        try:
            await asyncio.wait((batch, self.ended), return_when=asyncio.FIRST_COMPLETED)
            if not batch.done():
                raise WorkerDied(await self.end())
            return batch.result()
        finally:
            batch.cancel()

    async def end(self) -> str:
        """End the process, even one that is stopped; returns how it ended."""
        self._writer.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        code = await asyncio.shield(self.ended)
        return f"it ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"


class Pool:
    """Workers of one kind and the queue that feeds them.

    Args:
        kind: ``decode`` or ``score``.
        specification: what each worker is told first.
        admit: coroutine (worker, hello) -> None that raises WorkerDied where a worker must not work.
        question: jobs -> (header, blobs).
        done: called with a job and its result (plus its sound, from a decoder).
        lost: called with the jobs of a worker that died.
        fatal: called with the error of a first start that no second one can mend.
    """

    def __init__(
        self,
        kind: str,
        count: int,
        specification: dict[str, Any],
        queue: JobQueue,
        *,
        admit: Callable[[WorkerProcess, dict[str, Any]], Awaitable[None]],
        question: Callable[[list[Job]], frames.Frame],
        done: Callable[[Job, dict[str, Any], bytes], None],
        lost: Callable[[list[Job], str], None],
        fatal: Callable[[TalkerRLError], None],
        metrics: Metrics,
        timeouts: tuple[float, float],
    ) -> None:
        self.kind, self.count, self.queue = kind, count, queue
        self._specification = specification
        self._admit, self._question, self._done, self._lost, self._fatal = admit, question, done, lost, fatal
        self._metrics = metrics
        self._start_timeout, self._timeout = timeouts
        self.workers: dict[int, WorkerProcess] = {}
        """Ready workers by process id."""
        self.problem: str | None = f"{kind}: loading"
        self.was_ready = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to start the workers."""
        self._tasks = [asyncio.create_task(self._keep_one()) for _ in range(self.count)]

    async def close(self) -> None:
        """Kill the workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_one(self) -> None:
        """One worker for ever, whatever happens to it."""
        pause = 0.1
        while True:
            worker = None
            try:
                worker = await WorkerProcess.start()
                await self._begin(worker)
                pause = 0.1
                while True:
                    await self._batch(worker, await worker.next_batch(self.queue))
            except WorkerDied as error:
                self._metrics.worker_deaths.labels(self.kind).inc()
                self.problem = f"{self.kind}: {error}"
                log.warning("worker died", extra={"kind": self.kind, "reason": str(error)})
            except Exception as error:  # nothing that goes wrong here may end the supervision
                self.problem = f"{self.kind}: {type(error).__name__}: {error}"
                log.exception("worker supervision", extra={"kind": self.kind})
            finally:
                if worker is not None:
                    self.workers.pop(worker.pid, None)
                    await worker.end()
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _begin(self, worker: WorkerProcess) -> None:
        header, _ = await worker.ask(self._specification, (), self._start_timeout)
        if "refused" in header:
            error = CheckpointError(**header["refused"])
            if not self.was_ready:
                self._fatal(error)
            raise WorkerDied(error.what)
        await self._admit(worker, header["hello"])
        self.was_ready, self.problem = True, None
        self.workers[worker.pid] = worker
        log.info("worker ready", extra={"kind": self.kind, "pid": worker.pid})

    async def _batch(self, worker: WorkerProcess, batch: list[Job]) -> None:
        start = time.monotonic()
        for job in batch:
            job.timings[f"wait_{self.kind}"] = start - job.since
        self._metrics.batch_items.labels(self.kind).observe(len(batch))
        try:
            header, blobs = await worker.ask(*self._question(batch), self._timeout)
            results = header["results"]
            if len(results) != len(batch):
                raise WorkerDied(f"{len(results)} results for {len(batch)} items")
        except WorkerDied as error:
            self._lost(batch, str(error))
            raise
        except BaseException:
            self._lost(batch, "the service stops")
            raise
        seconds = time.monotonic() - start
        self._metrics.batch_seconds.labels(self.kind).observe(seconds)
        for i, (job, result) in enumerate(zip(batch, results, strict=True)):
            job.timings[self.kind] = seconds
            self._done(job, result, blobs[i] if blobs else b"")
