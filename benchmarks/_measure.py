"""Paired timing: ours against upstream's way, in one process, on the same inputs, by turns."""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One line of a table. ``ratio`` is theirs / ours: above 1, ours is faster."""

    name: str
    case: str
    """Sizes, and which baseline it is measured against."""
    ours_s: float
    theirs_s: float
    ratio: float
    ours_peak_mib: float
    """Most memory during one call, above the level before it."""
    theirs_peak_mib: float
    max_abs_diff: float | None
    """Of what both computed; None where they draw differently."""
    n: int
    """Timed calls of each side; the times are their medians."""


def compare(
    name: str,
    case: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    difference: Callable[[Any, Any], float] | None = None,
    *,
    repeats: int = 5,
) -> Row:
    """Time two callables by turns, after one warm-up call of each, which measures memory and the difference.

    Each side's result must not depend on how often it was called before.
    """
    ours_result, ours_peak = peak_of(ours)
    theirs_result, theirs_peak = peak_of(theirs)
    gap = None if difference is None else float(difference(ours_result, theirs_result))
    del ours_result, theirs_result
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(repeats):
        sides = [("ours", ours), ("theirs", theirs)]
        for side, call in sides if turn % 2 == 0 else sides[::-1]:
            times[side].append(seconds_of(call))
            say(f"{name}: {side} {times[side][-1]:.3f} s ({turn + 1}/{repeats})")
    mine, other = statistics.median(times["ours"]), statistics.median(times["theirs"])
    return Row(name, case, mine, other, other / mine, ours_peak, theirs_peak, gap, repeats)


def noted(row: Row, *notes: str) -> Row:
    """The row with these added to its case; empty ones are left out."""
    return replace(row, case="; ".join([row.case, *filter(None, notes)]))


def seconds_of(call: Callable[[], Any]) -> float:
    """Wall time of one call, the device's work included."""
    gc.collect()
    _wait()
    start = time.perf_counter()
    result = call()
    _wait()
    seconds = time.perf_counter() - start
    del result
    return seconds


def peak_of(call: Callable[[], Any]) -> tuple[Any, float]:
    """(result, MiB): the most memory held during the call above the level before it.

    On a GPU what torch allocated; on a CPU the process's resident memory, whose high-water mark Linux lets us reset.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # by the models: they are on it
        _wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        _wait()
        return result, (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is taken now
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return call(), float("nan")
    before = _status("VmRSS")
    result = call()
    return result, (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A field of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def say(line: str) -> None:
    """Progress, to standard error."""
    print(line, file=sys.stderr, flush=True)


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    head = ("name", "case", "ours s", "theirs s", "ratio", "ours MiB", "theirs MiB", "max diff", "n")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        gap = "–" if row.max_abs_diff is None else f"{row.max_abs_diff:.1e}"
        cells = (row.name, row.case, f"{row.ours_s:.3f}", f"{row.theirs_s:.3f}", f"{row.ratio:.2f}",
                 f"{row.ours_peak_mib:.0f}", f"{row.theirs_peak_mib:.0f}", gap, str(row.n))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_json(rows: Sequence[Row], path: str | Path) -> None:
    """Rows as a JSON list; NaN (memory that this system does not tell) as null."""
    plain = [{k: None if v != v else v for k, v in asdict(row).items()} for row in rows]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n")
