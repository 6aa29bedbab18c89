"""Draws that both languages make alike."""

from __future__ import annotations

from datetime import date
from random import Random

_FIRST, _LAST = date(1801, 1, 1).toordinal(), date(2024, 12, 31).toordinal()


def past_day(rng: Random) -> date:
    """A day of 1801 to 2024: the sentences about it are in the past tense."""
    return date.fromordinal(rng.randint(_FIRST, _LAST))


def time_of_day(rng: Random, parts: dict[str, tuple[int, ...]]) -> tuple[str, int, int]:
    """A part of the day, an hour that is said with it, and a minute."""
    part, hours = rng.choice(list(parts.items()))
    return part, rng.choice(hours), rng.randrange(60)
