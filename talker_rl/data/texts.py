"""Which texts can be spoken, and why the others cannot. What a text is made of: :mod:`talker_rl.base.text`."""

from __future__ import annotations

import unicodedata
from typing import Any

from talker_rl.base.errors import PromptError
from talker_rl.base.text.characters import clean_text
from talker_rl.base.text.identity import spoken_key, text_key
from talker_rl.base.text.language import detect_lang, is_other_script
from talker_rl.base.text.tokens import tokens_of

__all__ = ["REASONS", "check_text", "clean_text", "detect_lang", "is_other_script", "spoken_key", "text_key",
           "unspeakable_reason"]

REASONS: dict[str, str] = {
    "empty": "the text is empty",
    "no_text": "the row has no field `text`",
    "not_text": "the text is not a string",
    "not_json": "the line is not JSON",
    "not_utf8": "the line is not UTF-8: save the file as UTF-8",
    "control": "the text holds control characters, or half a character (a lone surrogate)",
    "unspeakable": "the text has no word: only marks or symbols",
    "other_script": "no recognizer here hears its language; set lang (prompts.lang, or the prompt's) if one does",
    "duplicate": "the same text, speaker and context came before",
}
"""Why a line of a prompt file was skipped."""

def unspeakable_reason(text: Any) -> str | None:
    """A key of ``REASONS`` if nothing of ``text`` can be spoken, else None. Line breaks of any kind are no fault."""
    if not isinstance(text, str):
        return "not_text"
    text = clean_text(text)
    if not text:
        return "empty"
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in text):
        return "control"
    return None if tokens_of(text) else "unspeakable"


def check_text(text: Any) -> str:
    """The text of a single prompt, or a PromptError that says what is wrong with it."""
    reason = unspeakable_reason(text)
    if reason:
        raise PromptError(f"This prompt cannot be spoken: {REASONS[reason]}", where=repr(text)[:80],
                          fix="give a text with at least one word")
    return clean_text(text)
