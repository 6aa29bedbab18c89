"""Worker processes end with what started them, even in the middle of a long task."""

from __future__ import annotations

import os
import platform
import time

import pytest

from talker_rl.base.processes import WorkerPool


@pytest.fixture
def plain_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the caller's says how memory is kept."""
    for name in [n for n in os.environ if n.startswith(("GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD"))]:
        monkeypatch.delenv(name)


def _report(task: tuple[str, float]) -> int:
    """Leave this process's id in a file, then work for a while."""
    file, seconds = task
    with open(file, "a") as log:
        log.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    with open(file + ".done", "a") as log:
        log.write(f"{seconds}\n")
    return os.getpid()


def _variable(name: str) -> str | None:
    return os.environ.get(name)


def _resident(seconds: float = 0) -> float:
    """MiB of this process; where it takes a while, every worker gets such a task."""
    time.sleep(seconds)
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS:")) / 1024


def _take(size: int) -> float:
    """Hold so many MiB in arrays for a while, and a small one between them that stays."""
    held = [bytes([1]) * 2**20 for _ in range(size)]
    _stay.append(held[-1])
    return _resident()


_stay: list[bytes] = []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.usefixtures("plain_allocator")
def test_what_a_worker_keeps_is_given_back_before_other_work() -> None:
    with WorkerPool(2) as pool:
        before = max(found for _, found in pool.imap(_resident, [0.5] * 4))
        high = [pool.submit(_take, 300).result() for _ in range(4)]
        after = max(found for _, found in pool.imap(_resident, [0.5] * 4))
    assert min(high) > before + 250 and after < before + 50


@pytest.mark.usefixtures("plain_allocator")
def test_workers_keep_freed_memory_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen() -> dict[int, str | None]:
        with WorkerPool(2) as pool:
            return dict(pool.imap(_variable, ["GLIBC_TUNABLES", "OMP_NUM_THREADS"]))

    assert "trim_threshold=8589934592" in (seen()[0] or "") and os.environ.get("GLIBC_TUNABLES") is None
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert seen() == {0: None, 1: "1"}


def test_an_interruption_ends_running_tasks(tmp_path: os.PathLike[str]) -> None:
    file = f"{tmp_path}/pids"
    with pytest.raises(KeyboardInterrupt), WorkerPool(2) as pool:
        for _ in pool.imap(_report, [(file, 0.0), (file, 600.0), (file, 600.0)]):
            raise KeyboardInterrupt
    assert set(open(f"{file}.done")) == {"0.0\n"}, "the long ones were waited for"
    for pid in {int(line) for line in open(file).read().split()}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
