"""What each step of an utterance says: a right word, a wrong one, a pause, silence, the stop.

From what a score keeps (transcript and times) and the text. Every word that was heard and every gap between two, by
time; and one class a step, so that a loss's push, a policy's log-probs or an advantage can be summed by what they fall
on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from talker_rl.records.speech import Speech

TokenClass = Literal["lead", "right", "substituted", "inserted", "beside_deleted", "pause", "pause_missing",
                     "pause_false", "between", "tail", "unheard", "stop"]
CLASSES: tuple[TokenClass, ...] = get_args(TokenClass)
MEANING: dict[TokenClass, str] = {
    "lead": "silence before the first word",
    "right": "a word of the text",
    "substituted": "another word in the place of the text's",
    "inserted": "a word that the text has not",
    "beside_deleted": "where words of the text were left out",
    "pause": "a pause where the text has a mark",
    "pause_missing": "around a mark without a pause",
    "pause_false": "a pause where the text has none",
    "between": "between words, too short for a pause",
    "tail": "silence after the last word",
    "unheard": "all of an utterance in which nothing was recognized",
    "stop": "the token that ends speech",
}
WRONG: tuple[TokenClass, ...] = ("substituted", "inserted", "beside_deleted", "pause_missing", "pause_false")
"""Where something is to be mended."""

_OPS: dict[str, TokenClass] = {"=": "right", "S": "substituted", "I": "inserted"}


@dataclass(frozen=True)
class Word:
    """A token that was heard."""

    start: float
    end: float
    """Seconds."""
    kind: TokenClass
    """right, substituted or inserted."""
    heard: str
    wanted: str
    """The text's token in its place; empty where the text has none."""


@dataclass(frozen=True)
class Gap:
    """What lies between a word that was heard and the next."""

    start: float
    end: float
    """Seconds; ``end`` is the earlier one where the times of the two words overlap."""
    kind: TokenClass
    """pause, pause_missing, pause_false, between or beside_deleted."""


@dataclass(frozen=True)
class Heard:
    """An utterance by what was heard in it, in order of time."""

    words: list[Word]
    gaps: list[Gap]
    """One between each word and the next."""
    left_out: list[list[str]]
    """Tokens of the text that are missing before each word, and those after the last: one list more than words."""


def timestamp_fault(spans: Sequence[tuple[float, float]], tokens: int, duration: float, tolerance: float) -> str | None:
    """Why these (start, end) times cannot be used, or None."""
    if len(spans) != tokens:
        return f"{len(spans)} times for {tokens} tokens"
    previous = -math.inf
    for k, (start, end) in enumerate(spans):
        if not (math.isfinite(start) and math.isfinite(end)):
            return f"time of token {k} is not finite"
        if end < start:
            return f"token {k} ends before it starts"
        if start < previous:
            return f"token {k} starts before the one before it"
        if start < -tolerance or end > duration + tolerance:
            return f"time of token {k} lies outside the audio"
        previous = start
    return None


def words_and_gaps(
    text: str, lang: str, transcript: Sequence[str], spans: Sequence[tuple[float, float]], *,
    hit_seconds: float = 0.15, spurious_seconds: float = 0.25, seconds: float = math.inf, tolerance: float = 0.25,
) -> Heard:
    """What each token that was heard is to the text, and what lies between two.

    Times are the recognizer's: a pause is what lies between two words, so its length is only as good as they are (a
    score's pause components are measured on the sound).

    Args:
        text, lang: what was to be said.
        transcript, spans: tokens that were heard, and the (start, end) of each in seconds.
        hit_seconds, spurious_seconds: what counts as a pause at a mark, and where there is none (``reward.pauses``).
        seconds: how long it sounds; times may lie outside by the ``tolerance``.

    Raises:
        ValueError: the times cannot be used (:func:`timestamp_fault`).
    """
    from talker_rl.base.text.alignment import align  # here: configurations know the classes' names
    from talker_rl.base.text.tokens import normalize

    if (fault := timestamp_fault(spans, len(transcript), seconds, tolerance)) is not None:
        raise ValueError(fault)
    wanted = normalize(text, lang)
    words: list[Word] = []
    kinds = ["none"] * max(0, len(transcript) - 1)
    left_out: list[list[str]] = [[]]
    at = -1  # the text's last token so far
    for op, said, token in align(wanted.tokens, transcript).columns:
        if op in "=SD":
            at += 1
        if op == "D":
            left_out[-1].append(said)
            if 0 < len(words) <= len(kinds):
                kinds[len(words) - 1] = "deleted"
            continue
        words.append(Word(*spans[len(words)], _OPS[op], token, said))
        left_out.append([])
        if len(words) > 1 and op != "I" and kinds[len(words) - 2] == "none" and at > 0:
            before = at - 1
            kinds[len(words) - 2] = ("mark" if wanted.marks[before] != "none" else "free" if wanted.free[before]
                                     else "none")
    gaps = [Gap(a.end, b.start, _gap(kind, b.start - a.end, hit_seconds, spurious_seconds))
            for kind, a, b in zip(kinds, words, words[1:], strict=False)]
    return Heard(words, gaps, left_out)


def token_classes(
    speech: Speech, text: str, lang: str, transcript: Sequence[str], spans: Sequence[tuple[float, float]], *,
    hit_seconds: float = 0.15, spurious_seconds: float = 0.25, tolerance: float = 0.25,
) -> list[TokenClass]:
    """The class of each step of an utterance, the stop last where it was said.

    A frame belongs to the word whose time holds its middle; otherwise the arguments and what is raised are those of
    :func:`words_and_gaps`.

    Args:
        speech: what was said.

    Returns: ``speech.steps`` classes.
    """
    said = words_and_gaps(text, lang, transcript, spans, hit_seconds=hit_seconds, spurious_seconds=spurious_seconds,
                          seconds=speech.seconds, tolerance=tolerance)
    seconds = 1 / float(speech.codec.frame_rate)
    found = [_at(said, (k + 0.5) * seconds) for k in range(speech.frames)]
    _beside(found, said, seconds)
    return [*found, "stop"] if speech.stopped else found


def _at(said: Heard, middle: float) -> TokenClass:
    """What is heard at a time: the last word that had begun, where it has not ended, else what lies there."""
    if not said.words:
        return "unheard"
    begun = sum(word.start <= middle for word in said.words)
    if begun and middle < said.words[begun - 1].end:
        return said.words[begun - 1].kind
    return "lead" if begun == 0 else "tail" if begun == len(said.words) else said.gaps[begun - 1].kind


def _gap(kind: str, length: float, hit: float, spurious: float) -> TokenClass:
    """The class of a gap; kind is what the text has there: deleted, mark, free (a pause is allowed) or none."""
    if kind == "deleted":
        return "beside_deleted"
    if kind == "mark":
        return "pause" if length >= hit else "pause_missing"
    return "pause_false" if kind == "none" and length >= spurious else "between"


def _beside(found: list[TokenClass], said: Heard, seconds: float) -> None:
    """Where something is missing between two words, before the first or after the last, the last frame before and the
    first after it show it."""
    places = [gap for gap in said.gaps if gap.kind in ("beside_deleted", "pause_missing")]
    if said.words:
        ends = ((said.words[0].start, said.left_out[0]), (said.words[-1].end, said.left_out[-1]))
        places += [Gap(at, at, "beside_deleted") for at, missing in ends if missing]
    for place in places:
        for frame in (int(place.start / seconds - 0.5), int(place.end / seconds + 0.5)):
            if 0 <= frame < len(found) and found[frame] in ("right", "between", "lead", "tail"):
                found[frame] = place.kind
