"""When two texts are the same."""

from __future__ import annotations

import regex

from talker_rl.base.text.characters import normal_form
from talker_rl.base.text.tokens import tokens_of

_QUOTES = regex.compile(r"(?V1)[\p{Quotation_Mark}--']|''")
_DASHES = regex.compile("[‐‑−]")
_LONG_DASHES = regex.compile("[―⸺⸻]")


def text_key(text: str) -> str:
    """What makes two texts of one set the same: all that is seen, whatever characters write it. Case, spaces, invisible
    characters and the kind of a quote, hyphen, dash or ellipsis aside; other marks make another text."""
    form = _LONG_DASHES.sub("—", _DASHES.sub("-", _QUOTES.sub('"', normal_form(text))))
    return " ".join(form.casefold().split())


def spoken_key(text: str) -> str:
    """What makes two texts the same in speech: their words. No two prompt sets may share one."""
    return " ".join(tokens_of(text))
