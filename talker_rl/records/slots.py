"""What an utterance did at each place of its text: said the word, put another in before it, paused after it.

Places are the text's, so the candidates of one prompt can be compared place by place: this one said word 3, that one
did not. Credit for a reward is given by them (:mod:`talker_rl.train.credit`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from talker_rl.records.speech import Speech
from talker_rl.records.token_classes import Heard

Place = tuple[Literal["word", "between", "pause"], int]
"""``word i``: the text's token i. ``between i``: what is said before token i and behind token i - 1 (the last one:
behind all of them). ``pause i``: the boundary behind token i."""

BEFORE, AFTER = 0.06, 0.02
"""Seconds around a recognizer's time of a word that belong to it: it is late at onsets."""
TURN = 0.1, 0.18
"""Seconds before the end of one word and into the next in which it is decided what comes next."""


@dataclass
class Slot:
    """What happened at a place."""

    right: bool
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """Steps (first, behind the last) in which it happened."""


def slots(speech: Speech, heard: Heard) -> dict[Place, Slot]:
    """Every place of an utterance about which something can be said.

    What is left out has no time: it lies where the word before ends and the next begins, or the speech ends. So does
    what was not put in between two words (which is right). The stop belongs to what comes behind the last word.
    """
    found: dict[Place, Slot] = {}
    rate = float(speech.codec.frame_rate)
    steps, words = speech.steps, heard.words

    def put(place: Place, right: bool, start: float | None, end: float | None) -> None:
        limit = steps if end is None else speech.frames
        first = 0 if start is None else max(0, min(round(start * rate), limit - 1))
        behind = limit if end is None else max(first + 1, min(round(end * rate), limit))
        slot = found.setdefault(place, Slot(right))
        slot.right = slot.right and right
        slot.ranges.append((first, behind))

    def turn(number: int) -> tuple[float | None, float | None]:
        """Around the place before a word that was heard, by its number."""
        return (words[number - 1].end - TURN[0] if number else None,
                words[number].start + TURN[1] if number < len(words) else None)

    at, boundary_known = 0, False
    for number in range(len(words) + 1):
        for _ in heard.left_out[number]:
            put(("word", at), False, *turn(number))
            at, boundary_known = at + 1, False
        if number == len(words):
            break
        word = words[number]
        said = word.start - BEFORE, word.end + AFTER
        if not word.wanted:
            put(("between", at), False, *said)
            boundary_known = False
            continue
        if number == 0 or words[number - 1].wanted:  # nothing was put in before it
            put(("between", at), True, *turn(number))
        if boundary_known and (kind := heard.gaps[number - 1].kind) in ("pause", "between", "pause_missing",
                                                                       "pause_false"):
            put(("pause", at - 1), kind in ("pause", "between"), *turn(number))
        put(("word", at), word.kind == "right", *said)
        at, boundary_known = at + 1, True
    if not words or words[-1].wanted:  # who was cut had not come to an end behind its last word, though all were right
        put(("between", at), speech.stopped, *turn(len(words)))
    return found
