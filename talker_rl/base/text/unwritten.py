"""What a text holds that recognizers do not write as it stands, so that a perfect reading counts as wrong.

Recognizers write words and simplified characters: "one hundred and twenty dollars" for "$120", 学习 for 學習, "doctor"
for "Dr.". Here such places are found and counted; spelling them out is the user's (or a later normalizer's) work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import regex

from talker_rl.base.text.abbreviations import is_abbreviated
from talker_rl.base.text.marks import is_cjk
from talker_rl.base.text.tokens import scan

Kind = Literal["figures", "symbols", "abbreviations", "addresses", "traditional", "latin"]

WHAT: dict[Kind, str] = {
    "figures": "figures or Roman numbers (a recognizer writes number words)",
    "symbols": "symbols that are spoken ($, %, &, +)",
    "abbreviations": "abbreviations that are read out (Dr., No.)",
    "addresses": "addresses or file names (the dot is spoken)",
    "traditional": "traditional characters (recognizers write simplified ones)",
    "latin": "Latin words inside Chinese (name a recognizer of both languages, for `mixed`)",
}
FIX = ("write them as they are spoken (\"one hundred and twenty dollars\", 一百二十, 学习, \"Doctor Lee\"); "
       "pairs whose order hangs on them are not made unless pairs.unwritten is true")

_SPOKEN = regex.compile(r"[\p{Sc}%‰&@#§°+=×÷±√∞≈≠≤≥<>℃℉№]")
_DOTTED = regex.compile(r"[\p{L}\d_]+(?:[.@]|://)[\p{L}\d_]{2,}")
_ROMAN = regex.compile(r"(?=[IVXLC]{2})C{0,3}(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
_READ_OUT = frozenset("dr mr mrs ltd km kg cm mm ml mph kph".split())
"""Abbreviations that are read out where they have no full stop either."""


@dataclass(frozen=True)
class Unwritten:
    """Per token, why it is not written as it stands (None where it is); per boundary, whether something is spoken that
    is no token."""

    tokens: list[Kind | None]
    before: list[bool]
    """``before[i]``: a symbol or a spoken dot stands before token i; one entry more, for behind the last."""

    @property
    def count(self) -> int:
        """Such words and symbols, Latin words inside Chinese not counted."""
        return sum(kind not in (None, "latin") for kind in self.tokens) + sum(self.before)

    @property
    def any(self) -> bool:
        """Whether the error rate of a perfect reading may not be 0. Latin words inside Chinese do not count."""
        return self.count > 0


def find_unwritten(text: str) -> Unwritten:
    """The places of a text that a recognizer writes otherwise."""
    return _places(*scan(text))


def _places(form: str, spans: list[tuple[int, int]]) -> Unwritten:
    if not spans:
        return Unwritten([], [False])
    chinese = any(is_cjk(c) for c in form)
    kinds = [_kind(form, start, end, chinese) for start, end in spans]
    gaps = [form[: spans[0][0]], *(form[a[1] : b[0]] for a, b in zip(spans, spans[1:], strict=False)),
            form[spans[-1][1] :]]
    spoken = [_SPOKEN.search(gap) is not None for gap in gaps]
    for i, (a, b) in enumerate(zip(spans, spans[1:], strict=False)):
        spoken[i + 1] |= _DOTTED.fullmatch(form, a[0], b[1]) is not None
    return Unwritten(kinds, spoken)


def kinds_of(text: str) -> dict[Kind, str]:
    """The kinds that occur in a text, each with its first example."""
    form, spans = scan(text)
    found = _places(form, spans)
    kinds: dict[Kind, str] = {}
    for (start, end), kind in zip(spans, found.tokens, strict=True):
        if kind is not None:
            kinds.setdefault(kind, form[start:end])
    for i, is_spoken in enumerate(found.before):
        if is_spoken:
            start = spans[i - 1][0] if i else 0
            end = spans[i][1] if i < len(spans) else len(form)
            part = form[start:end].strip()
            kinds.setdefault("symbols" if _SPOKEN.search(part) else "addresses", part)
    return kinds


def count_unwritten(texts: Iterable[str]) -> dict[Kind, tuple[int, str]]:
    """Kind -> number of texts that hold it, and an example; the most frequent first."""
    counts: Counter[Kind] = Counter()
    example: dict[Kind, str] = {}
    for text in texts:
        for kind, part in kinds_of(text).items():
            counts[kind] += 1
            example.setdefault(kind, part)
    return {kind: (count, example[kind]) for kind, count in counts.most_common()}


def describe_unwritten(texts: Iterable[str], of: str) -> list[str]:
    """A line for each kind that occurs, and one with the fix; none where nothing does.

    Args:
        texts: the texts of one set.
        of: its name, for the lines.
    """
    listed = list(texts)
    found = count_unwritten(listed)
    lines = [f"{count} of {len(listed)} texts of {of} hold {WHAT[kind]}, for instance {example!r}"
             for kind, (count, example) in found.items()]
    if set(found) - {"latin"}:
        lines.append(f"even a perfect reading of these counts as wrong; {FIX}")
    return lines


def _kind(form: str, start: int, end: int, chinese: bool) -> Kind | None:
    token = form[start:end]
    if any(c.isdigit() for c in token) or (_ROMAN.fullmatch(token) and not form.isupper()):
        return "figures"
    if is_cjk(token[0]):
        return "traditional" if is_traditional(token[0]) else None
    stopped = form[end : end + 1] == "." and not form[end + 1 : end + 2].isalnum()
    if token.lower() in _READ_OUT:
        return "abbreviations"
    if stopped and len(token) > 1 and is_abbreviated(form[:end], form[end + 1 :]):
        return "abbreviations"
    return "latin" if chinese else None


@cache
def is_traditional(char: str) -> bool:
    """Whether a Chinese character has another, simplified form (OpenCC's table)."""
    return bool(_simplifier().convert(char) != char)


@cache
def _simplifier() -> Any:
    from opencc import OpenCC

    return OpenCC("t2s")
