"""Label noise: what the base Talker's training data says instead of its text.

The noise is systematic (tables of the lexicon) and decided anew at each word of each sentence; the text that
conditions the Talker stays right.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from talker_rl.micro.corpus import RenderRequest, default_pauses
from talker_rl.micro.lexicon import (
    COMMA_LOST_AFTER,
    CONFUSED,
    CUT_END,
    CUT_SECONDS,
    DOUBLED,
    DROPPED,
    FALSE_PAUSE_AFTER,
    FALSE_PAUSE_SECONDS,
    LONG_TAIL,
    LONG_TAIL_SECONDS,
    TAIL_SECONDS,
    WEAK_MARKS,
    Clause,
)


@dataclass(frozen=True)
class Spoken:
    """A request that says something else than its text, and how many codes are cut off its end."""

    request: RenderRequest
    cut_seconds: float
    stumbles: int
    """Noise events of every kind."""


def spoken_words(words: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
    """Words as the noise says them: confused, doubled or dropped; at least one word stays."""
    out: list[str] = []
    for word in words:
        draw = rng.random()  # one draw a word, so that the tables' rates don't depend on each other
        if word in CONFUSED and draw < CONFUSED[word][1]:
            out.append(CONFUSED[word][0])
        elif word in DOUBLED and draw < DOUBLED[word]:
            out += [word, word]
        elif word not in DROPPED or draw >= DROPPED[word]:
            out.append(word)
    return tuple(out) if out else words


def stumble(clauses: list[Clause], speaker: str, rng: random.Random) -> Spoken:
    """Draw the noise of one sentence.

    Pauses go by the written word before the mark, as does the ragged end by the written last word: the noise of
    neighboring places is independent.
    """
    said, pauses, extra, stumbles, index = [], default_pauses(clauses), {}, 0, 0
    for number, clause in enumerate(clauses):
        words = spoken_words(clause.words, rng)
        stumbles += words != clause.words
        said.append(Clause(clause.lang, words, clause.mark))
        for word in words[:-1]:
            if rng.random() < FALSE_PAUSE_AFTER.get(word, 0.0):
                extra[index] = FALSE_PAUSE_SECONDS
                stumbles += 1
            index += 1
        index += 1
        lost = rng.random() < COMMA_LOST_AFTER.get(clause.words[-1], 0.0)
        if lost and number < len(clauses) - 1 and clause.mark == WEAK_MARKS[clause.lang]:
            pauses[number] = 0.0
            stumbles += 1
    last, draw = clauses[-1].words[-1], rng.random()
    tail = LONG_TAIL_SECONDS if draw < LONG_TAIL.get(last, 0.0) else TAIL_SECONDS
    cut = CUT_SECONDS + TAIL_SECONDS if draw < CUT_END.get(last, 0.0) else 0.0
    stumbles += tail != TAIL_SECONDS or cut > 0
    return Spoken(RenderRequest(said, speaker, pauses, extra or None, tail=tail), cut, stumbles)
