"""Worker processes for shards: started once per run, one thread each; with one worker the work is done here.

What a task returns does not depend on where it ran, so the number of workers never changes a result.
"""

from __future__ import annotations

import contextlib
import ctypes
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

from talker_rl.base.errors import ConfigError, StageError

T = TypeVar("T")
R = TypeVar("R")

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_KEPT = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"
"""For glibc (others ignore it): what is freed stays with the process. By default arrays above 32 MiB go back to the
system at once, and each is cleared page by page when it is asked for again: a sixth of the time on CPUs
(benchmarks/freed_memory.py)."""
_OWN_ALLOCATOR = ("GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD")
"""Beginnings of the variables by which users choose for themselves."""


def sound_devices(devices: Any) -> Any:
    """The setting ``devices`` as it is kept: ``cuda`` is ``cuda:0``. Other types than those of the setting stay.

    Raises:
        ValueError: there is none, one is named twice, they are of several kinds, or it is true or false.
    """
    if isinstance(devices, bool):
        raise ValueError("give how many devices, or their names, such as [cuda:0, cuda:1]")
    if devices == [] or isinstance(devices, int) and devices < 1:
        raise ValueError("at least one device is needed")
    if not isinstance(devices, list) or not all(isinstance(name, str) for name in devices):
        return devices
    names = ["cuda:0" if name == "cuda" else name for name in devices]
    if len({name.partition(":")[0] for name in names}) > 1:
        raise ValueError("devices of one kind can share a training")
    if (twice := next((name for name in names if names.count(name) > 1), "cpu")) != "cpu":
        raise ValueError(f"{twice} is named twice: each device has one process")
    return names


def check_kind(devices: int | Sequence[str] | None, device: str) -> None:
    """Raise ValueError where ``model.device`` says something else than ``devices``."""
    named = None if devices is None or isinstance(devices, int) else devices[0].partition(":")[0]
    if devices is not None and device not in ("auto", named or device.partition(":")[0]):
        raise ValueError(f"devices says where the work is done, and model.device is {device}: leave it auto")


def device_name(setting: str) -> str:
    """``auto`` resolved: cuda where there is one."""
    if setting != "auto":
        return setting
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_list(devices: int | Sequence[str] | None, kind: str) -> list[str]:
    """Names of the devices of a run, one a process; none where it was not said.

    Args:
        devices: so many of the kind, from the first on; or their names.
        kind: ``auto``, or what begins the name of a device: ``cpu``, ``cuda``.
    """
    if devices is None:
        return []
    if not isinstance(devices, int):
        return list(devices)
    kind = device_name(kind)
    return [f"cuda:{i}" if kind.startswith("cuda") else kind for i in range(devices)]


def visible_devices(devices: Sequence[str]) -> dict[str, str]:
    """The environment of processes that see these CUDA devices and no other, so that theirs are 0, 1, ..."""
    if not devices or not devices[0].startswith("cuda"):
        return {}
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    places = [int(device.partition(":")[2] or 0) for device in devices]
    return {"CUDA_VISIBLE_DEVICES": ",".join(seen[i] if i < len(seen) else str(i) for i in places)}


def pin(device: str) -> None:
    """Make a CUDA device the one that ``cuda`` means in this process; nothing to do for a CPU.

    Raises:
        ConfigError: it is not there.
    """
    if device.startswith("cuda"):
        import torch

        number = int(device.partition(":")[2] or 0)
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if number >= there:
            raise ConfigError(f"there is no device {device!r}: {there} are there", where="devices",
                              fix="set devices=null, or name those that are there")
        torch.cuda.set_device(number)


def _start(parent: int, number: Any, devices: Sequence[str]) -> None:
    """In a worker: Ctrl-C is the parent's business, and a parent that was killed takes its workers along.

    Args:
        number: shared counter of the workers that have started.
        devices: worker i is pinned to the i-th, round and round.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    if devices:
        _pin_next(number, devices)


_last_work: list[object] = []
"""What this worker did last."""


def worked(function: Callable[[T], R], task: T) -> R:
    """In a worker: the task's result. What was freed is kept for more of the same; arrays of other work would be laid
    beside it, for their sizes are others."""
    if _last_work != [function]:
        _last_work[:] = [function]
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
    return function(task)


def _pin_next(number: Any, devices: Sequence[str]) -> None:
    """Take a number, and the device that is its turn."""
    with number.get_lock():
        mine, number.value = number.value, number.value + 1
    pin(devices[mine % len(devices)])


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


def worker_environment() -> dict[str, str]:
    """Variables that a worker process begins with: one thread, and memory that is kept unless the user says how."""
    own = any(name.startswith(_OWN_ALLOCATOR) for name in os.environ)
    return dict.fromkeys(_THREADS, "1") | ({} if own else {"GLIBC_TUNABLES": _KEPT})


class WorkerPool:
    """Runs a module-level function over tasks.

    Args:
        workers: processes; 1 works in this process.
        devices: that the workers are pinned to, round and round, and this process to the first; none: as the settings
            of what they load say. They are first asked for where there is work: a pool without any needs no device.
    """

    def __init__(self, workers: int = 1, devices: Sequence[str] = ()) -> None:
        self.workers, self._devices = workers, devices
        self._pinned = not devices
        self._executor: ProcessPoolExecutor | None = None
        self._processes: set[multiprocessing.process.BaseProcess] = set()

    elsewhere = False
    """Whether nothing is ever worked out in this process, which may have neither GPU nor memory."""

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
        return self._start().submit(worked, function, task) if self.workers > 1 else self.at_once(function, task)

    def at_once(self, function: Callable[[T], R], task: T) -> Future[R]:
        """The task's result, worked out in this process, on its device."""
        self.pin_here()
        return at_once(function, task)

    def pin_here(self) -> None:
        """Before work in this process: pin it to the first device, once."""
        if not self._pinned:
            pin(self._devices[0])
            self._pinned = True

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
            yield 0, self.at_once(function, tasks[0]).result()
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
            wanted = worker_environment()
            before: dict[str, Any] = {name: os.environ.get(name) for name in wanted}
            os.environ.update(wanted)
            try:
                context = multiprocessing.get_context("spawn")
                self._executor = ProcessPoolExecutor(
                    self.workers, mp_context=context, initializer=_start,
                    initargs=(os.getpid(), context.Value("i", 0), self._devices),
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
