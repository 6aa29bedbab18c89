"""Characters: line breaks, those that nobody sees or says, and the one form in which everything else compares texts."""

from __future__ import annotations

import unicodedata

import regex

_BREAK = regex.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_INVISIBLE = regex.compile(r"[\p{Cf}\p{Default_Ignorable_Code_Point}]")
_APOSTROPHES = "’‘ʼ`´′ʹ‛＇"
_ELLIPSES = "⋯⋮⋰⋱᠁"
"""Ellipses to which NFKC has no three dots."""
_BEFORE_NFKC = str.maketrans({**dict.fromkeys(_APOSTROPHES, "'"), **dict.fromkeys(_ELLIPSES, "…"), "∶": ":"})
_LATIN = r"[\p{Latin}\d]"
_WIDE = regex.compile(
    r"(?V1)[[[\p{EA=F}\p{EA=W}\p{EA=H}]&&\p{Terminal_Punctuation}]--[．：]]"  # ，。！？ separate whatever follows
    rf"|(?<!{_LATIN})．|．(?!{_LATIN})|(?<!\d)：|：(?!\d)")  # ３．５, ｗｗｗ．ａ．ｃｏｍ and 10：30 are one word
_RAISED = regex.compile(r"(?<=[\d\p{L}.!?。！？])(?=[¼-¾⅐-⅞²³¹⁰⁴-⁹])")
_MANY_DOTS = regex.compile("[·・‧•]{3,}")


def plain_breaks(text: str) -> str:
    """The text with every kind of line break (CRLF, form feed, U+2028, ...) as one newline, which ends a sentence."""
    return _BREAK.sub("\n", text)


def visible(text: str) -> str:
    """The text without format characters and ignorable ones: soft hyphens, zero-width spaces, byte order marks,
    direction marks, variation selectors. None of them is seen or said, or separates words."""
    return text if text.isascii() else _INVISIBLE.sub("", text)


def clean_text(text: str) -> str:
    """A text as prompts keep it: visible, newlines for line breaks, no space around it. Every reader applies it."""
    return visible(plain_breaks(text)).strip()


def normal_form(text: str) -> str:
    """What tokens and marks are read from: visible, NFKC, one apostrophe, one ellipsis (three dots), case kept.

    A wide mark (！, ，) gets a space behind it: it separates as a Latin one with its space does, which NFKC alone would
    lose (100，200 is no 100,200); not so in 10：30 and ３．５. A fraction or a raised figure is no part of the number
    before it (1½, 10²).
    """
    text = visible(plain_breaks(text))
    if not text.isascii():
        text = _WIDE.sub(lambda m: m.group() + " ", text)
        text = _MANY_DOTS.sub("…", _RAISED.sub(" ", text))
    return unicodedata.normalize("NFKC", text.translate(_BEFORE_NFKC))
