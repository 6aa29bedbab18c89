"""Findings of checks: a level and a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from talker_rl.base.errors import TalkerRLError, told

Finding = tuple[str, str]
"""(``ok``, ``warn`` or ``fail``; what was found, one line)."""


def one_line(error: TalkerRLError) -> str:
    """An error without line breaks: what, where and fix."""
    text = error.what + (f" ({error.where})" if error.where and error.where not in error.what else "")
    return " ".join((text + (f"; {error.fix}" if error.fix else "")).split())


def guarded(check: Callable[..., Iterator[Any]], *args: Any) -> Iterator[Any]:
    """A check's findings; an error that it raises becomes one, of whatever type: no check may end the others."""
    try:
        yield from check(*args)
    except TalkerRLError as error:
        yield "fail", one_line(error)
    except Exception as error:
        yield "fail", f"{type(error).__name__}: {told(error)}"
