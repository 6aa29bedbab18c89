"""Long texts are split at sentence ends, then at commas, then between words; never inside a word or a number.

A sentence ends at 。！？；… or at ! ? . ; (and quotes and brackets that close behind it) before a space or a Chinese
character; behind several dots or a closing quote no small letter may follow. So neither 3.5 nor ``"Stop!" he said``
ends one, and a full stop alone behind a known abbreviation (Mr.), a single capital (J. Smith) or a dotted one (U.S.)
does not either, whatever follows. A line break always ends one. Sentences are joined up to the limit; one that is
longer by itself is split at its commas, colons and dashes, but at none that stands alone between figures (10：30,
1990—2000), and joined again; a clause that is still longer at its spaces. What has none of these stays whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable

ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st jr sr rev gen col capt lt sgt vs etc no nos vol ch fig figs eq sec pp ed eds al ca cf approx "
    "dept est inc ltd co corp bros ave blvd rd mt jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed "
    "thu thur thurs fri sat sun e.g i.e a.m p.m".split()
)
"""Words, in lower case without their last full stop, after which a full stop ends no sentence."""

_CLOSING = "\"'”’」』）)】》]"
_SENTENCE = re.compile(rf"(?:[。！？；…]+|[!?;]+|\.+)(?:[。！？；…!?.])*[{re.escape(_CLOSING)}]*|\n+")
_CLAUSE = re.compile(rf"(?:——|(?<!\d)[，：—]|[，：—](?!\d)|、|[,:](?=\s)|–(?=\s))[{re.escape(_CLOSING)}]*")
_SPACE = re.compile(r"\s+")
_WORD_BEFORE = re.compile(r"[A-Za-zÀ-ÿ][A-Za-zÀ-ÿ.]*$")


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
    from talker_rl.reward.normalize import tokens_of

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


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    mark, rest = match.group(), text[match.end() :]
    if mark[0] in "。！？；…\n" or "\n" in rest[: len(rest) - len(rest.lstrip())]:
        return True
    if mark.rstrip(_CLOSING) == "." and _is_abbreviated(text[: match.start()]):
        return False
    following = rest.lstrip()
    if following == rest:  # 3.5, a.b, but 好!好
        return _is_cjk(rest[0])
    if mark[0] == ";":
        return True
    return not (following[0].islower() and (mark[-1] in _CLOSING or mark.startswith("..")))  # "Stop!" he said


def _is_abbreviated(text: str) -> bool:
    """Whether a full stop behind this text belongs to its last word."""
    before = _WORD_BEFORE.search(text)
    word = before.group() if before else ""
    is_initial = len(word) == 1 and word.isalpha() and word.isupper() and word != "I"
    is_dotted = re.fullmatch(r"(?:[A-Za-z]\.)+[A-Za-z]", word) is not None
    return is_initial or is_dotted or word.lower() in ABBREVIATIONS


def _is_cjk(char: str) -> bool:
    return "\u3040" <= char <= "\u9fff"


def _clause_ends(text: str) -> list[int]:
    return [m.end() for m in _CLAUSE.finditer(text) if m.end() < len(text)]


def _word_ends(text: str) -> list[int]:
    return [m.end() for m in _SPACE.finditer(text)]
