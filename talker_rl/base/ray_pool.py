"""The worker pool's work on actors of a Ray cluster: the same tasks in, the same rows out.

An actor keeps its models loaded, as a worker process does. One that is lost is started again and its task done again:
a task is plain data and hangs on nothing else, and only this process writes shards, so none is written twice. Model,
conditioning and adapters come by path, which every machine of the cluster must see. Ray sends Python objects, so
whoever can reach a cluster can run code in it: keep it to those you trust.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from talker_rl.base.errors import ConfigError, StageError
from talker_rl.base.processes import WorkerPool, worked, worker_environment

T = TypeVar("T")
R = TypeVar("R")

RETRIES = 3
"""Times that a task is done again whose actor was lost."""


class _Worker:
    """An actor."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)

    def pid(self) -> int:
        return os.getpid()

    def run(self, function: Callable[[T], R], task: T) -> R:
        return worked(function, task)


class RayPool(WorkerPool):
    """:class:`WorkerPool` on a Ray cluster; nothing is worked out in this process, which may have no GPU.

    Args:
        workers: actors.
        address: of the cluster (``auto``, ``ray://head:10001``); None starts one on this machine, for this pool.
        cpus, gpus: that an actor takes; parts of a GPU are allowed.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(self, workers: int, address: str | None = None, *, cpus: float = 1, gpus: float = 0) -> None:
        super().__init__(workers)
        try:
            import ray  # noqa: F401
        except ImportError:
            raise ConfigError("Ray is not installed", where="executor.name",
                              fix="pip install 'talker-rl[ray]'") from None
        self._address, self._takes = address, {"num_cpus": cpus, "num_gpus": gpus}
        self._actors: list[Any] = []
        self._load: Counter[int] = Counter()
        self._mine = False
        """Whether the connection is this pool's to end."""

    elsewhere = True

    @property
    def started(self) -> bool:
        return True  # a lone task is an actor's, too

    @property
    def slots(self) -> int:
        return self.workers + 1

    def submit(self, function: Callable[[T], R], task: T) -> Future[R]:
        """The task's result, some time, by the actor that has least to do."""
        with self.watched():
            self._begin()
        at = min(range(self.workers), key=lambda i: self._load[i])
        self._load[at] += 1
        future: Future[R] = self._actors[at].run.remote(function, task).future()
        future.add_done_callback(lambda _: self._load.subtract([at]))
        return future

    def at_once(self, function: Callable[[T], R], task: T) -> Future[R]:
        return self.submit(function, task)

    def pin_here(self) -> None:
        """Nothing: what is done here is done on the device that the settings name."""

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Raises what a task raised as it raised it, and turns the loss of actors into a StageError."""
        import ray

        try:
            yield
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            raise (cause if isinstance(cause, Exception) else error) from None
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise StageError(f"Ray lost a worker, or the cluster is gone: {str(error).strip().splitlines()[0]}",
                             fix="start the same command again: finished shards are kept; fewer workers need less "
                             "memory") from error

    def pids(self) -> list[int]:
        """Of the actors' processes."""
        import ray

        self._begin()
        found: list[int] = ray.get([actor.pid.remote() for actor in self._actors])
        return found

    def _begin(self) -> None:
        if self._actors:
            return
        import ray

        if not ray.is_initialized():
            # the modules that this process finds, a recognizer or a reward of the user's own among them
            paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
            cores = max(os.cpu_count() or 1, math.ceil(self.workers * self._takes["num_cpus"]))
            own: dict[str, Any] = {"include_dashboard": False, "num_cpus": cores} if self._address is None else {}
            try:  # "local": not whatever cluster happens to run here
                ray.init(address=self._address or "local", log_to_driver=False, logging_level=logging.ERROR, **own,
                         runtime_env={"env_vars": {"PYTHONPATH": paths, **worker_environment()}})
            except ConnectionError as error:
                raise ConfigError(f"No Ray cluster lets us in at {self._address or 'this machine'} ({error})",
                                  where="executor.address", fix="check that it runs; one with tokens (Ray's default) "
                                  "asks for RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN here, too") from None
            self._mine = True
        actor = ray.remote(_Worker).options(max_restarts=-1, max_task_retries=RETRIES, **self._takes)
        self._actors = [actor.remote() for _ in range(self.workers)]

    def close(self) -> None:
        """End the actors, and a cluster of this pool's own."""
        if not self._actors:
            return
        import ray

        for actor in self._actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self._actors = []
        if self._mine:
            ray.shutdown()
