"""Text normalization: tokens that both reference and transcript are reduced to, and the marks between them.

NFKC, lower case, punctuation removed; one token a Han or kana character, one token a word elsewhere, so that mixed
text needs no language switch. Numbers stay one token (``3.14``, ``10:30``; ``1,000`` becomes ``1000``). Numbers are
not spelled out and traditional characters are not converted: texts that need it should be written as spoken.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Mark = Literal["none", "weak", "strong"]

LANGUAGES = ("zh", "en", "mixed")
_SINGLE = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"[^\W\d_{_SINGLE}]|[\u0300-\u036f]"
_NUMBER = r"\d+(?:[.:]\d+|,\d{3}(?!\d))*"
_TOKEN = re.compile(rf"[{_SINGLE}]|(?:{_NUMBER}|{_LETTER})(?:{_NUMBER}|{_LETTER}|'(?={_LETTER}))*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'"})

WEAK = frozenset(",、;:—–―‒")
STRONG = frozenset(".。?!")
_DASHES = "—–―‒-"


@dataclass(frozen=True)
class NormalizedText:
    """Tokens, and the mark at the boundary after each.

    The last mark is always "none": the end of the utterance is not a pause within it.
    """

    tokens: list[str]
    marks: list[Mark]


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
    clean = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).lower()
    matches = list(_TOKEN.finditer(clean))
    tokens = [_THOUSANDS.sub("", m.group()) for m in matches]
    marks: list[Mark] = []
    for m, following in zip(matches, matches[1:], strict=False):
        marks.append(_mark(clean[m.end() : following.start()], clean[m.end() - 1], clean[following.start()]))
    if matches:
        marks.append("none")
    return NormalizedText(tokens, marks)


def tokens_of(text: str) -> list[str]:
    """Tokens alone, e.g. of a transcript."""
    return normalize(text).tokens


def characters_of(tokens: list[str]) -> list[str]:
    """Characters of all tokens, without spaces: what the CER counts."""
    return [c for token in tokens for c in token]


def _mark(gap: str, before: str, after: str) -> Mark:
    """The strongest mark in the text between two tokens."""
    if any(c in STRONG for c in gap):
        return "strong"
    if len(gap) == 1 and gap in _DASHES and before.isdigit() and after.isdigit():
        return "none"  # a range, 10-20 or 10–20: inside a number
    if any(c in WEAK for c in gap) or "--" in gap:
        return "weak"
    if "-" in gap and gap != "-" and any(c.isspace() for c in gap):
        return "weak"  # a spaced hyphen is a dash; well-known has none
    return "none"
