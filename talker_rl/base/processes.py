"""Worker processes for shards: started once per run, one thread each; with one worker the work is done here.

What a task returns does not depend on where it ran, so the number of workers never changes a result.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from talker_rl.base.errors import StageError

T = TypeVar("T")
R = TypeVar("R")

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def _start(parent: int) -> None:
    """In a worker: Ctrl-C is the parent's business, and a parent that was killed takes its workers along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def at_once(function: Callable[[T], R], task: T) -> Future[R]:
    """The task's result, worked out here and now."""
    future: Future[R] = Future()
    future.set_result(function(task))
    return future


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: sums in the same order in every process, whatever the number of workers."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class WorkerPool:
    """Runs a module-level function over tasks.

    Args:
        workers: processes; 1 works in this process.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self._executor: ProcessPoolExecutor | None = None
        self._processes: set[multiprocessing.process.BaseProcess] = set()

    @property
    def started(self) -> bool:
        """Whether there are worker processes already."""
        return self._executor is not None

    @property
    def slots(self) -> int:
        """Tasks to have under way: one in reserve, so that no worker waits for this process."""
        return 1 if self.workers == 1 else self.workers + 1

    def submit(self, function: Callable[[T], R], task: T) -> Future[R]:
        """The task's result, some time; with one worker it is worked out at once, and what it raises is raised here."""
        return self._start().submit(function, task) if self.workers > 1 else at_once(function, task)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Turns the death of a worker into a StageError."""
        try:
            yield
        except BrokenProcessPool as error:
            self._executor = None
            raise StageError("A worker process died (killed, or out of memory?)", fix="start the same command again: "
                             "finished shards are kept; fewer workers need less memory") from error

    def imap(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """(index of the task, result) as they are finished.

        Raises:
            StageError: a worker died. Whatever the function raises is raised here.
        """
        if len(tasks) == 1 and not self.started:
            yield 0, function(tasks[0])
            return
        waiting: dict[Future[R], int] = {}
        queue = iter(enumerate(tasks))
        try:
            with self.watched():
                while True:
                    for index, task in itertools.islice(queue, self.slots - len(waiting)):
                        waiting[self.submit(function, task)] = index
                    if not waiting:
                        return
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield waiting.pop(future), future.result()
        finally:
            for future in waiting:
                future.cancel()

    def _start(self) -> ProcessPoolExecutor:
        if self._executor is None:
            others = set(multiprocessing.active_children())
            before: dict[str, Any] = {name: os.environ.get(name) for name in _THREADS}
            os.environ.update(dict.fromkeys(_THREADS, "1"))
            try:
                self._executor = ProcessPoolExecutor(
                    self.workers, mp_context=multiprocessing.get_context("spawn"),
                    initializer=_start, initargs=(os.getpid(),),
                )
                # processes start at the first submit; they read the environment then
                wait([self._executor.submit(os.getpid) for _ in range(self.workers)])
                self._processes = set(multiprocessing.active_children()) - others
            finally:
                for name, value in before.items():
                    os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        return self._executor

    def close(self) -> None:
        """End the workers."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # Ctrl-C, or an error: a training of minutes is not waited for, it resumes where it was
            for process in self._processes:
                process.terminate()
        self.close()
