"""Credit: on which steps of a candidate an advantage falls.

A sequence's advantage on every step says "more of all of this". Where the recognizer tells which words went wrong, it
can fall on these alone, in this candidate or, of words that others of the group got wrong, in the one that got them
right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from talker_rl.records.slots import Place, Slot

PARTS = {"word": 2.0, "between": 2.0, "pause": 1.0}
"""How much the places of a kind count together in :func:`of_words`: as the reward's terms, about."""

Slots = Mapping[Place, Slot]


def of_sequences(advantages: Sequence[float], steps: Sequence[int]) -> list[np.ndarray]:
    """Each advantage on all steps of its candidate."""
    return [np.full(n, a, dtype=np.float32) for a, n in zip(advantages, steps, strict=True)]


def of_what_differs(
    advantages: Sequence[float], steps: Sequence[int], group: Sequence[Slots]
) -> list[np.ndarray]:
    """Each advantage on the steps of what went wrong: of a candidate below the group's mean where it is wrong
    itself, of one above where it is right and another of the group is wrong; 0 elsewhere.

    Args:
        advantages, steps: of each candidate.
        group: places of each candidate, empty where nothing is known (its advantage then falls on nothing).
    """
    found = []
    for number, (mine, advantage, n) in enumerate(zip(group, advantages, steps, strict=True)):
        out = np.zeros(n, dtype=np.float32)
        wrong = np.zeros(n, dtype=bool)
        for place, slot in mine.items():
            for first, behind in slot.ranges:
                wrong[first:behind] |= not slot.right
            elsewhere = any(not other[place].right for other in _others(group, number) if place in other)
            if (advantage < 0 and not slot.right) or (advantage > 0 and slot.right and elsewhere):
                for first, behind in slot.ranges:
                    out[first:behind] = advantage
        # Ranges reach into their neighbours, and what went wrong is not pushed up, however good all the rest is.
        found.append(np.where(wrong & (out > 0), np.float32(0), out))
    return found


def of_words(
    advantages: Sequence[float], steps: Sequence[int], group: Sequence[Slots], sequence_share: float = 0.0
) -> list[np.ndarray]:
    """An advantage of its own for each place, right (1) or wrong (0) against the mean of the others that have it.

    Args:
        sequence_share: of the sequence's advantage, added on all steps.
    """
    sizes = {kind: max(1, len({place for mine in group for place in mine if place[0] == kind})) for kind in PARTS}
    found = []
    for number, (mine, advantage, n) in enumerate(zip(group, advantages, steps, strict=True)):
        out = np.full(n, sequence_share * advantage, dtype=np.float32)
        for place, slot in mine.items():
            others = [float(other[place].right) for other in _others(group, number) if place in other]
            if others:
                value = PARTS[place[0]] / sizes[place[0]] * (float(slot.right) - float(np.mean(others)))
                for first, behind in slot.ranges:
                    out[first:behind] += value
        found.append(out)
    return found


def _others(group: Sequence[Slots], number: int) -> list[Slots]:
    return [*group[:number], *group[number + 1 :]]
