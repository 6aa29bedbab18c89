"""Tokens that both reference and transcript are reduced to, and the marks between them.

NFKC, lower case, punctuation removed; one token a Han or kana character, one token a word elsewhere, so that mixed
text needs no language switch. Numbers stay one token (``3.14``, ``10:30``; ``1,000`` becomes ``1000``). Numbers are
not spelled out and traditional characters are not converted: see :mod:`talker_rl.base.text.unwritten`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import regex

from talker_rl.base.text.characters import normal_form
from talker_rl.base.text.marks import Mark, mark_between

LANGUAGES = ("zh", "en", "mixed")
_SINGLE = r"[[\p{L}\p{N}]&&[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}]--\d]"
_LETTER = rf"[[\p{{L}}\p{{Nl}}\p{{No}}]--{_SINGLE}]"
_NUMBER = r"\d+(?:[.:]\d+|,\d{3}(?!\d))*"
_TOKEN = regex.compile(
    rf"(?V1){_SINGLE}[\p{{Mn}}\p{{Mc}}]*|(?:{_NUMBER}|{_LETTER})(?:{_NUMBER}|{_LETTER}|[\p{{Mn}}\p{{Mc}}]|'(?={_LETTER}))*")
_THOUSANDS = regex.compile(r"(?<=\d),(?=\d{3})")


@dataclass(frozen=True)
class NormalizedText:
    """Tokens, and the mark at the boundary after each.

    The last mark is always "none": the end of the utterance is not a pause within it.
    """

    tokens: list[str]
    marks: list[Mark]
    free: list[bool] = field(default_factory=list)
    """Whether a pause after each token is no false one: at every mark, and at brackets, quotes and the like, which ask
    for none."""


def normalize(text: str, lang: str = "mixed") -> NormalizedText:
    """Tokens and marks of a text.

    Args:
        text: any Unicode text; what is neither letter nor digit is dropped.
        lang: zh, en or mixed; checked, but the rules are the same (the script decides).

    Raises:
        ValueError: an unknown language.
    """
    if lang not in LANGUAGES:
        raise ValueError(f"unknown language {lang!r}: use one of {', '.join(LANGUAGES)}")
    form, spans = scan(text)
    found = [mark_between(form, a[1], b[0]) for a, b in zip(spans, spans[1:], strict=False)]
    end: list[tuple[Mark, bool]] = [("none", False)] if spans else []
    return NormalizedText([_token(form, *span) for span in spans], [m for m, _ in found + end],
                          [free for _, free in found + end])


def tokens_of(text: str) -> list[str]:
    """Tokens alone, e.g. of a transcript."""
    form, spans = scan(text)
    return [_token(form, *span) for span in spans]


def scan(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The normal form of a text, and where its tokens stand in it."""
    form = normal_form(text)
    return form, [m.span() for m in _TOKEN.finditer(form)]


def characters_of(tokens: list[str]) -> list[str]:
    """Characters of all tokens, without spaces: what the CER counts."""
    return [c for token in tokens for c in token]


def _token(form: str, start: int, end: int) -> str:
    return _THOUSANDS.sub("", form[start:end]).lower()
