"""Long texts are split at sentence ends, then at commas, then between words; never inside a word or a number.

A sentence ends at 。！？；… or at ! ? . ; (and quotes and brackets that close behind it) before a space or a Chinese
character; behind several dots or a closing quote no small letter may follow. So neither 3.5 nor ``"Stop!" he said``
ends one; a full stop alone that belongs to an abbreviation (Mr.), an initial (J. Smith), dotted letters (U.S.) or a
list's number does not either (:mod:`talker_rl.base.text.abbreviations`, as for the pause score's marks). A line break
always ends one. Sentences are joined up to the limit; one that is longer by itself is split at its commas, colons and
dashes, but at none that stands alone between figures (10：30, 1990—2000), and joined again; a clause that is still
longer at its spaces. What has none of these stays whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import regex

from talker_rl.base.text.abbreviations import is_abbreviated, is_list_number
from talker_rl.base.text.marks import is_cjk
from talker_rl.base.text.tokens import tokens_of

_CLOSING = "\"'”’」』）)】》]"
_ENDS = r"(?V1)[[\p{Sentence_Terminal}…⋯；]--[.!?]]"
_SENTENCE = regex.compile(rf"(?:{_ENDS}+|[!?;]+|\.+)(?:{_ENDS}|[!?.])*[{re.escape(_CLOSING)}]*|\n+")
_END = regex.compile(_ENDS)
_CLAUSE = re.compile(rf"(?:——|(?<!\d)[，：—]|[，：—](?!\d)|、|[,:](?=\s)|–(?=\s))[{re.escape(_CLOSING)}]*")
_SPACE = re.compile(r"\s+")


def split_text(text: str, *, max_chars: int | None = None, max_words: int | None = None) -> list[str]:
    """Pieces of a text within the limits, in order; the text itself where it is within them.

    Args:
        text: what is to be spoken.
        max_chars: characters a piece.
        max_words: words a piece, each Chinese character one (as the error rate counts them).
    """

    def fits(piece: str) -> bool:
        if max_chars is not None and len(piece) > max_chars:
            return False
        return max_words is None or _words(piece) <= max_words

    return _split(text.strip(), fits, [_sentence_ends, _clause_ends, _word_ends])


def _words(text: str) -> int:
    return len(tokens_of(text))


def _split(text: str, fits: Callable[[str], bool], levels: list[Callable[[str], list[int]]]) -> list[str]:
    """Cut at the first level's places and join again what fits; a part that does not is cut at the next level's."""
    if not levels or fits(text):
        return [text]
    cuts = [0, *levels[0](text), len(text)]
    pieces: list[str] = []
    start, end = 0, 0
    for cut in cuts[1:]:
        if end > start and not fits(text[start:cut].strip()):
            pieces.append(text[start:end].strip())
            start = end
        end = cut
    pieces.append(text[start:end].strip())
    return [small for piece in pieces if _speakable(piece) for small in _split(piece, fits, levels[1:])]


def _speakable(piece: str) -> bool:
    """Marks alone, cut off by a limit too small for them, are dropped."""
    return any(c.isalnum() for c in piece)


def _sentence_ends(text: str) -> list[int]:
    """Places behind each sentence but the last."""
    return [m.end() for m in _SENTENCE.finditer(text) if m.end() < len(text) and _ends_sentence(text, m)]


def _ends_sentence(text: str, match: regex.Match[str]) -> bool:
    mark, rest = match.group(), text[match.end() :]
    if _END.match(mark) or mark[0] == "\n" or "\n" in rest[: len(rest) - len(rest.lstrip())]:
        return True
    before = text[: match.start()]
    if mark.rstrip(_CLOSING) == "." and (is_abbreviated(before, rest) or is_list_number(before)):
        return False
    following = rest.lstrip()
    if following == rest:  # 3.5, a.b, but 好!好
        return is_cjk(rest[0])
    if mark[0] == ";":
        return True
    return not (following[0].islower() and (mark[-1] in _CLOSING or mark.startswith("..")))  # "Stop!" he said


def _clause_ends(text: str) -> list[int]:
    return [m.end() for m in _CLAUSE.finditer(text) if m.end() < len(text)]


def _word_ends(text: str) -> list[int]:
    return [m.end() for m in _SPACE.finditer(text)]
