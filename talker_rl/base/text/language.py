"""Which language a text is in, by the scripts of its letters."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache

_MOST_KANA = 10
"""Of so many Chinese characters and kana, more than one kana makes the text Japanese (の stands in Chinese names)."""


def detect_lang(text: str) -> str:
    """``zh``, ``en`` or ``mixed`` by the scripts of the letters; digits alone, and other scripts, count as ``en``."""
    found = _scripts(text)
    if found["han"]:
        return "mixed" if found["latin"] else "zh"
    return "en"


def is_other_script(text: str) -> bool:
    """Whether most letters are neither Chinese nor Latin: Cyrillic, Hangul, kana and the Chinese characters among them.

    Such a text is in none of the languages that recognizers are asked for, and its error rate would mean nothing.
    """
    found = _scripts(text)
    foreign = found["kana"] + found["other"]
    if found["kana"] * _MOST_KANA > found["kana"] + found["han"]:
        foreign += found["han"]
    return 2 * foreign > found.total()


def _scripts(text: str) -> Counter[str]:
    """Letters by script; digits, marks and accents that stand by themselves are of none."""
    return Counter(_script(c) for c in unicodedata.normalize("NFKC", text) if c.isalpha())


@cache
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "")
    if "LATIN" in name:
        return "latin"
    if name.startswith(("CJK", "IDEOGRAPHIC")):
        return "han"
    return "kana" if name.startswith(("HIRAGANA", "KATAKANA")) else "other"
