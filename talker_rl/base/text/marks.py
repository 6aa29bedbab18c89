"""Marks: which of the characters between two words ask for a pause, which allow one, and which are part of a word.

strong: ends of sentences (``. ! ? 。``, a line break) and ellipses. weak: commas, colons, semicolons, dashes. Brackets,
quotes, tildes, slashes and list numbers ask for nothing, and a pause there is not false. Dots, colons and the like
inside a word (3.5, file.txt, https://a.b/c?d, U.S., Dr.) are none of these. See docs/PAUSES.md.
"""

from __future__ import annotations

from typing import Literal

import regex

from talker_rl.base.text.abbreviations import is_abbreviated, is_list_number

Mark = Literal["none", "weak", "strong"]

CJK = r"\p{Han}\p{Hiragana}\p{Katakana}"
_CJK = regex.compile(f"[{CJK}ー々〇]")
_ENDS = regex.compile(r"\p{Sentence_Terminal}")
_SEPARATES = regex.compile(r"(?V1)[\p{Terminal_Punctuation}--\p{Sentence_Terminal}]")
_LONG_DASH = regex.compile("[—―⸺⸻]")
_SHORT_DASH = regex.compile("[–‒]")
_HYPHEN = regex.compile("[-‐‑−]")
_ALLOWS = regex.compile(r"(?V1)[\p{Ps}\p{Pe}\p{Pi}\p{Pf}\p{Quotation_Mark}~〜∼/|·•‧・*_]")
_CHUNK = rf"[^\s{CJK}]*"
_BEFORE, _AFTER = regex.compile(f"{_CHUNK}$"), regex.compile(_CHUNK)
_LONGEST = 200
"""Characters of an address that are looked at, on each side."""
_ADDRESS = regex.compile(r"://|@|\\|^www\.|\w/\w.*[./?=]|\w\.\w.*/|[?&]\w+=|^[\"'(]*(?:[A-Za-z]:)?[./~]*/\w")
_DOMAIN = regex.compile(r"\w\.\w")


def is_cjk(char: str) -> bool:
    """Whether the character is Chinese or Japanese."""
    return _CJK.match(char) is not None


def mark_between(text: str, start: int, end: int) -> tuple[Mark, bool]:
    """The mark in ``text[start:end]``, what stands between two words, and whether a pause there is free.

    Args:
        text: normal form (`characters.normal_form`).
        start, end: end of the word before and start of the word after; neither is at an end of the text.
    """
    gap = text[start:end]
    if not gap or gap.isspace() and "\n" not in gap:
        return "none", False
    if "\n" in gap:
        return "strong", True
    before, after = text[start - 1], text[end]
    if not any(c.isspace() for c in gap) and not is_cjk(before) and not is_cjk(after):
        return _inside(text, start, end)
    found: Mark = "none"
    free = False
    for at in range(start, end):
        mark, allowed = _of_char(text, at)
        free |= allowed
        if mark == "strong" or found == "none":
            found = mark if mark != "none" else found
    return found, free or found != "none"


def _inside(text: str, start: int, end: int) -> tuple[Mark, bool]:
    """Between two words that no space separates: mostly inside an address, a number, a compound."""
    gap, figures = text[start:end], text[start - 1].isdigit() and text[end].isdigit()
    before, after = text[max(0, start - _LONGEST) : start], text[start : start + _LONGEST]
    chunk = _BEFORE.search(before).group() + _AFTER.match(after).group()  # type: ignore[union-attr]
    if _ADDRESS.search(chunk):
        return "none", False
    if ".." in gap or (_ENDS.match(gap) and len(gap) > 1 and all(_ALLOWS.match(c) for c in gap[1:])
                       and not is_abbreviated(before, after[len(gap) :])):
        return "strong", True  # an ellipsis, or an end before a bracket: "Hello."He left, left.[1]
    if any(c in "?!" or (_ENDS.match(c) and c != ".") for c in gap):
        return ("none", False) if _DOMAIN.search(chunk) or figures else ("strong", True)
    if _LONG_DASH.search(gap):
        return ("none", False) if figures else ("weak", True)
    if "--" in gap or any(c in ",;" or (_SEPARATES.match(c) and c != ":") for c in gap):
        return "weak", True
    if _SHORT_DASH.search(gap) and not figures:
        return "none", True
    return "none", any(_ALLOWS.match(c) and c not in "/_*'" for c in gap)


def _of_char(text: str, at: int) -> tuple[Mark, bool]:
    """(mark, pause free) of one character between words that a space, or a Chinese character, separates."""
    char, before, after = text[at], text[at - 1], text[at + 1]
    attached = after.isalnum() and not is_cjk(after)
    if char == ".":
        if "." in (before, after):
            return "strong", True  # an ellipsis
        if attached and not is_cjk(before):
            return "none", False  # .5, .txt
        ahead, behind = text[max(0, at - _LONGEST) : at], text[at + 1 : at + _LONGEST]
        if is_list_number(ahead):
            return "none", True
        return ("none", False) if is_abbreviated(ahead, behind) else ("strong", True)
    if _ENDS.match(char):
        return ("none", False) if attached and before.isspace() else ("strong", True)
    if _SEPARATES.match(char):
        if char == ":" and (before.isspace() and not after.isspace() or attached and before.isalnum()
                            and not is_cjk(before)):
            return "none", False  # :-), key:value
        return "weak", True
    if _LONG_DASH.match(char):
        return "weak", True
    if _SHORT_DASH.match(char) or _HYPHEN.match(char):
        if char == "-" and "-" in (before, after):
            return "weak", True  # two hyphens are a dash
        if before.isspace() and after.isspace():
            return ("none", True) if _between_figures(text, at) else ("weak", True)
        return "none", False  # -5, pre- and postwar
    return "none", _ALLOWS.match(char) is not None


def _between_figures(text: str, at: int) -> bool:
    near = slice(max(0, at - _LONGEST), at), slice(at + 1, at + _LONGEST)
    return text[near[0]].rstrip()[-1:].isdigit() and text[near[1]].lstrip()[:1].isdigit()
