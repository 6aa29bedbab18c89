"""Texts that break Talkers, made from rules and a seed: for evaluation sets, and for training where the signal is.

A text depends on the seed, its rule and its place in the rule's sequence alone. Seeds whose remainders by
`SEED_CLASSES` differ share no text, whatever their counts: each class of seeds takes the texts that a hash of their
words gives it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from random import Random
from typing import Any

from talker_rl.base.errors import PromptError
from talker_rl.base.figures import count
from talker_rl.base.ids import derive_seed, stable_hash
from talker_rl.base.text.identity import spoken_key
from talker_rl.data.hard import chinese, english
from talker_rl.data.prompts import detect_lang, unspeakable_reason

VERSION = 2
"""Of the rules: raise it when any text changes."""

CATEGORIES = {
    "repetition": "the same words again and again",
    "tongue_twister": "alliteration and words that differ in one sound",
    "numbers": "cardinals, ordinals, decimals",
    "dates": "days, months, years",
    "times": "times of day",
    "money": "prices",
    "phone": "telephone numbers and codes",
    "code_switching": "English in Chinese, Chinese in English",
    "rare_names": "names that no corpus holds often",
    "punctuation": "quotes, brackets, dashes and dots wherever they fit",
    "very_short": "one to three words",
    "very_long": "one sentence of 70 words and more",
}
"""Category -> what it holds; each is a function of that name in :mod:`.english` and :mod:`.chinese`."""

FIGURES = ("numbers", "dates", "times", "money", "phone")
LANGUAGES = {"zh": chinese, "en": english}
SEED_CLASSES = 16
_PATIENCE = 3_000
"""Draws in a row that give nothing new before a rule counts as used up."""


def hard_texts(
    count: int,
    seed: int,
    languages: Sequence[str] = ("zh", "en"),
    categories: Sequence[str] = tuple(CATEGORIES),
    *,
    digits: bool = False,
    apart_from: Collection[str] = (),
) -> list[dict[str, Any]]:
    """``count`` texts, languages and categories in turn, as rows of a prompt file: text, lang, category, provenance.

    Args:
        count: how many in all.
        seed: another gives other texts; see :data:`SEED_CLASSES`.
        languages: zh, en or both.
        categories: keys of `CATEGORIES`.
        digits: numbers as figures (3.5) instead of as spoken (three point five).
        apart_from: texts whose words must not occur as a text.

    Raises:
        PromptError: no language or category or an unknown one, or fewer texts than asked for.
    """
    for what, given, known in (("language", languages, LANGUAGES), ("category", categories, CATEGORIES)):
        if not given:
            raise PromptError(f"No {what} is named", where="prompts hard", fix=f"one of {', '.join(known)}")
        if strange := [name for name in given if name not in known]:
            raise PromptError(f"Unknown {what} {strange[0]!r}", where="prompts hard", fix=f"one of {', '.join(known)}")
    seen = {spoken_key(text) for text in apart_from}
    rules = [_texts(lang, category, seed, digits, seen) for category in categories for lang in languages]
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        for rule in rules[: count - len(rows)]:
            rows.append(next(rule))
    return rows


def _texts(lang: str, category: str, seed: int, digits: bool, seen: set[str]) -> Iterator[dict[str, Any]]:
    """A rule's texts of this seed that are new."""
    make = getattr(LANGUAGES[lang], category)
    rng = Random(derive_seed("hard", VERSION, lang, category, seed))
    style = {"digits": True} if digits and category in FIGURES else {}
    index = 0
    while True:
        for _ in range(_PATIENCE):
            text = make(rng, digits)
            new = seed_class(text) == seed % SEED_CLASSES and spoken_key(text) not in seen
            if new and not unspeakable_reason(text):
                break
        else:
            raise PromptError(f"The rule {lang}.{category} has only {count(index, 'text')} for seed {seed}",
                              where="prompts hard", fix="ask for fewer, or leave the category out (--category)")
        seen.add(spoken_key(text))
        yield {
            "text": text, "lang": detect_lang(text), "category": category, "provenance": {
                "rule": f"hard.{lang}.{category}", "seed": seed, "index": index, "version": VERSION, **style},
        }  # fmt: skip
        index += 1


def seed_class(text: str) -> int:
    """Which seeds may have a text, by its words: texts that differ in marks alone are of one class."""
    return int(stable_hash(spoken_key(text).split())[:8], 16) % SEED_CLASSES
