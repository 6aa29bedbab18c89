"""What a text is: its line breaks, what of it can be spoken, which language it is in. Needs no file and no model."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from typing import Any

from talker_rl.errors import PromptError

REASONS: dict[str, str] = {
    "empty": "the text is empty",
    "not_text": "the text is not a string, or the line is not JSON",
    "not_utf8": "the line is not UTF-8: save the file as UTF-8",
    "control": "the text holds control characters, or half a character (a lone surrogate)",
    "unspeakable": "the text has no word: only marks or symbols",
    "other_script": "no recognizer here hears its language; set lang (prompts.lang, or the prompt's) if one does",
    "duplicate": "the same text, speaker and context came before",
}
"""Why a line of a prompt file was skipped."""

_BREAK = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_MOST_KANA = 10
"""Of so many Chinese characters and kana, more than one kana makes the text Japanese (の stands in Chinese names)."""


def plain_breaks(text: str) -> str:
    """The text with every kind of line break (CRLF, form feed, U+2028, ...) as one newline, which ends a sentence."""
    return _BREAK.sub("\n", text)


def unspeakable_reason(text: Any) -> str | None:
    """A key of ``REASONS`` if nothing of ``text`` can be spoken, else None. Line breaks of any kind are no fault."""
    from talker_rl.reward.normalize import tokens_of

    if not isinstance(text, str):
        return "not_text"
    if not text.strip():
        return "empty"
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in plain_breaks(text)):
        return "control"
    return None if tokens_of(text) else "unspeakable"


def check_text(text: Any) -> str:
    """The text of a single prompt, or a PromptError that says what is wrong with it."""
    reason = unspeakable_reason(text)
    if reason:
        raise PromptError(f"This prompt cannot be spoken: {REASONS[reason]}", where=repr(text)[:80],
                          fix="give a text with at least one word")
    return plain_breaks(text).strip()


def text_key(text: str) -> str:
    """What makes two texts the same: NFKC, case and spaces aside."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


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
