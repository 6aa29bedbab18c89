"""Progress of long work: a bar where standard error is a terminal, else a line now and then, as a log wants it.

Everything in talker_rl that takes a while shows it through :func:`bar`; of the libraries' own bars :func:`quiet_logs`
takes care.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

SECONDS = 30.0
"""Between two lines of the same work, at least."""


def on_terminal() -> bool:
    """Whether standard error is a terminal, where a bar can be drawn over."""
    return sys.stderr is not None and sys.stderr.isatty()


def bar(items: Iterable[Any] | None = None, *, total: int | None = None, desc: str = "", unit: str = "it",
        disable: bool = False, leave: bool = True, **more: Any) -> Any:
    """A ``tqdm`` bar, or :class:`Lines` in its place where there is no terminal.

    Args:
        leave: it stays when the work is done; without a terminal, work shorter than a line's interval is then told too.
        more: further options of ``tqdm``, which lines do without.
    """
    if disable or on_terminal():
        return tqdm(items, total=total, desc=desc, unit=unit, disable=disable, leave=leave, **more)
    return Lines(items, total=total, desc=desc, unit=unit, leave=leave)


def note(text: str) -> None:
    """A line on standard error, above bars that are there."""
    tqdm.write(text, file=sys.stderr)


def quiet_logs() -> None:
    """Where there is no terminal, no bars of the hub's libraries (transformers, datasets) either; to be called before
    they are imported."""
    if not on_terminal():
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")


class Pace:
    """Which of the lines that others make of their progress are told: all on a terminal, else one now and then."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def due(self, *, last: bool = False) -> bool:
        """Whether to tell one now; the last of the work always is."""
        now = time.monotonic()
        if not (last or on_terminal() or now - self.last >= SECONDS):
            return False
        self.last = now
        return True


class Lines:
    """What stands in for a bar in a log: how much is done, at which rate, and how long the rest takes."""

    def __init__(self, items: Iterable[Any] | None = None, *, total: int | None = None, desc: str = "",
                 unit: str = "it", leave: bool = True) -> None:
        self.items, self.desc, self.unit, self.leave = items, desc, unit, leave
        self.total = len(items) if total is None and hasattr(items, "__len__") else total  # type: ignore[arg-type]
        self.n = self.told = 0
        self.more = ""
        self.closed = False
        self.start = self.last = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        try:
            for item in self.items or ():
                yield item
                self.update()
        finally:
            self.close()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """So much more is done."""
        self.n += n
        if time.monotonic() - self.last >= SECONDS:
            self._tell()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """What the next lines end with."""
        self.more = text

    def set_postfix(self, refresh: bool = True, **values: Any) -> None:
        """Likewise, as ``name=value``."""
        self.more = ", ".join(f"{name}={value}" for name, value in values.items())

    def close(self) -> None:
        """The last line; none for what has not begun, or was just told."""
        if not self.closed and self.n != self.told and (self.leave or time.monotonic() - self.start >= SECONDS):
            self._tell()
        self.closed = True

    def _tell(self) -> None:
        self.last, self.told = time.monotonic(), self.n
        seconds = max(self.last - self.start, 1e-9)
        parts = [f"{self._amount(self.n)} of {self._count(self.total)}" if self.total else self._count(self.n)]
        if self.total:
            parts[0] += f" ({min(self.n / self.total, 1):.0%})"
        parts += [f"{self._rate(self.n / seconds)} per second", f"{tqdm.format_interval(seconds)} so far"]
        if self.total and self.n < self.total:
            parts.append(f"{tqdm.format_interval((self.total - self.n) * seconds / self.n)} left")
        parts += [self.more] if self.more else []
        print(f"{self.desc}: {', '.join(parts)}" if self.desc else ", ".join(parts), file=sys.stderr, flush=True)

    def _amount(self, n: float) -> str:
        return f"{tqdm.format_sizeof(n, divisor=1024)}iB" if self.unit == "B" else str(n)

    def _count(self, n: int | None) -> str:
        names = {"B": "", "it": ""}
        return f"{self._amount(n or 0)} {names.get(self.unit, self.unit + 's')}".rstrip()

    def _rate(self, rate: float) -> str:
        return self._amount(rate) if self.unit == "B" else f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
