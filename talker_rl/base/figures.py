"""How a figure is written, alike on pages and in terminals. A difference of rates is in points, since "-7.1%" reads as
a share of the rate; and zero has no sign."""

from __future__ import annotations

import re
from collections.abc import Sequence

NONE = "–"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number of things: ``1 text``, ``2 texts``.

    Args:
        plural: where it is not the noun and an s.
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def written(value: float | None, pattern: str = "{:.3f}", none: str = NONE) -> str:
    """A figure by a format; one with a sign and per cent (``{:+.1%}``) is a difference of rates: ``-7.1 points``."""
    if value is None:
        return none
    return bare(value, pattern) + (" points" if _of_rates(pattern) else "")


def bare(value: float, pattern: str) -> str:
    """Likewise without the unit of a difference of rates, as in intervals and under a heading that has it."""
    if _of_rates(pattern):
        value, pattern = 100 * value, pattern.replace("%", "f")
    return _zero(pattern.format(value))


def relative(value: float | None, digits: int = 1) -> str:
    """A change as a share of what it was: ``+3.2%``."""
    return NONE if value is None else _zero(f"{value:+.{digits}%}")


def longer(ratio: float, interval: Sequence[float] | None = None) -> str:
    """A ratio of durations as a change of the one below: ``longer by 1.2% [-0.3, +2.7]``, ends below 0 are shorter."""
    ends = "" if not interval else " [" + ", ".join(_zero(f"{100 * (end - 1):+.1f}") for end in interval) + "]"
    return f"{'longer' if ratio >= 1 else 'shorter'} by {abs(ratio - 1):.1%}{ends}"


def chance(p: float | None) -> str:
    """A p-value, with no more digits than it is worth: ``0.35``, ``0.012``, ``0.0003``, ``< 0.0001``."""
    if p is None:
        return NONE
    return "< 0.0001" if p < 1e-4 else f"{p:.1g}" if p < 1e-3 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def span(interval: Sequence[float] | None, pattern: str) -> str:
    """An interval in brackets; nothing where there is none."""
    return f"[{bare(interval[0], pattern)}, {bare(interval[1], pattern)}]" if interval else ""


def signed(pattern: str) -> str:
    """The format of a difference of what this format is for."""
    return pattern.replace("{:+", "{:").replace("{:", "{:+")


def changed(difference: float, interval: Sequence[float] | None, pattern: str) -> str:
    """A difference with its interval; ``pattern`` is that of what differs: ``-7.1 points [-9.0, -5.2]``."""
    return f"{written(difference, signed(pattern))} {span(interval, signed(pattern))}".rstrip()


def _of_rates(pattern: str) -> bool:
    return pattern.startswith("{:+") and pattern.endswith("%}")


def _zero(text: str) -> str:
    return text.lstrip("+-") if re.fullmatch(r"[+-][0.,]+%?", text) else text
