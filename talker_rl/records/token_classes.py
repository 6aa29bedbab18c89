"""What each step of an utterance says: a right word, a wrong one, a pause, silence, the stop.

From what a score keeps (transcript and times) and the text; one class a step, so that a loss's push, a policy's
log-probs or an advantage can be summed by what they fall on.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def token_classes(
    speech: Speech, text: str, lang: str, transcript: Sequence[str], spans: Sequence[tuple[float, float]], *,
    hit_seconds: float = 0.15, spurious_seconds: float = 0.25,
) -> list[TokenClass]:
    """The class of each step of an utterance, the stop last where it was said.

    A frame belongs to the word whose time holds its middle. Times are the recognizer's: a pause is what lies between
    two words, so its length is only as good as they are (a score's pause components are measured on the sound).

    Args:
        speech: what was said.
        text, lang: what was to be said.
        transcript, spans: tokens that were heard, and the (start, end) of each in seconds.
        hit_seconds, spurious_seconds: what counts as a pause at a mark, and where there is none (``reward.pauses``).

    Returns: ``speech.steps`` classes.

    Raises:
        ValueError: a time for each token is needed, in order.
    """
    from talker_rl.base.text.tokens import normalize  # here: configurations know the classes' names

    if len(spans) != len(transcript) or any(b[0] < a[0] for a, b in zip(spans, spans[1:], strict=False)):
        raise ValueError(f"{len(spans)} times in order are needed for {len(transcript)} tokens")
    seconds = 1 / float(speech.codec.frame_rate)
    middles = [(k + 0.5) * seconds for k in range(speech.frames)]
    said = [_word(transcript, spans, middle) for middle in middles]
    wanted = normalize(text, lang)
    ops, gaps = _aligned(wanted.tokens, transcript, [mark != "none" for mark in wanted.marks], wanted.free)
    found: list[TokenClass] = []
    for middle, at in zip(middles, said, strict=True):
        if not transcript:
            found.append("unheard")
        elif at is not None:
            found.append(ops[at])
        else:
            after = next((i for i, (start, _) in enumerate(spans) if start > middle), len(spans))
            found.append("lead" if after == 0 else "tail" if after == len(spans) else _gap(
                gaps[after - 1], spans[after][0] - spans[after - 1][1], hit_seconds, spurious_seconds))
    _beside(found, spans, gaps, seconds, hit_seconds)
    return [*found, "stop"] if speech.stopped else found


def _word(transcript: Sequence[str], spans: Sequence[tuple[float, float]], middle: float) -> int | None:
    """The last token that had begun, where it has not ended."""
    begun = [i for i, (start, _) in enumerate(spans) if start <= middle]
    return begun[-1] if begun and middle < spans[begun[-1]][1] else None


def _aligned(
    wanted: Sequence[str], heard: Sequence[str], marked: Sequence[bool], free: Sequence[bool]
) -> tuple[list[TokenClass], list[str]]:
    """Class of each token that was heard, and what the text has between it and the next: ``deleted``, ``mark``,
    ``free`` (a pause is allowed) or ``none``."""
    from talker_rl.base.text.alignment import align

    ops: list[TokenClass] = []
    gaps = ["none"] * max(0, len(heard) - 1)
    at = -1  # the text's last token so far
    for op, _, _ in align(wanted, heard).columns:
        if op in "=SD":
            at += 1
        if op == "D" and 0 < len(ops) <= len(gaps):
            gaps[len(ops) - 1] = "deleted"
        elif op != "D":
            ops.append(_OPS[op])
            if len(ops) > 1 and op != "I" and gaps[len(ops) - 2] == "none" and at > 0:
                gaps[len(ops) - 2] = "mark" if marked[at - 1] else "free" if free[at - 1] else "none"
    return ops, gaps


def _gap(kind: str, length: float, hit: float, spurious: float) -> TokenClass:
    if kind == "deleted":
        return "beside_deleted"
    if kind == "mark":
        return "pause" if length >= hit else "pause_missing"
    return "pause_false" if kind == "none" and length >= spurious else "between"


def _beside(
    found: list[TokenClass], spans: Sequence[tuple[float, float]], gaps: Sequence[str], seconds: float, hit: float
) -> None:
    """Where something is missing between two words, the last frame before and the first after it show it."""
    for i, kind in enumerate(gaps):
        missing = kind == "mark" and spans[i + 1][0] - spans[i][1] < hit
        if kind != "deleted" and not missing:
            continue
        for frame in (int(spans[i][1] / seconds - 0.5), int(spans[i + 1][0] / seconds + 0.5)):
            if 0 <= frame < len(found) and found[frame] in ("right", "between"):
                found[frame] = "beside_deleted" if kind == "deleted" else "pause_missing"
