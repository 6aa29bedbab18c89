"""seed-tts-eval's own scoring: what its ``run_wer.py`` and ``average_wer.py`` print for the same transcripts.

The figures that papers quote as "seed-tts-eval WER" follow rules that differ from this project's own
(:mod:`talker_rl.base.text.tokens`), and are the mean of utterances, not the corpus rate. The rules:

- zh only: the transcript, not the reference, is converted to simplified characters (``zhconv``, zh-cn);
- every mark of :data:`PUNCTUATION` is deleted, not replaced by a space (``well-known`` is ``wellknown``); the ASCII
  apostrophe stays, the typographic one goes (``don’t`` is ``dont``); then each pair of spaces becomes one, once;
- zh: every character is a token, letters and digits too, case kept; en: lower case, words between spaces;
- WER = (S + D + I) / N by jiwer; the figure is the mean over utterances, in percent, rounded to three digits;
- the shares of S, D and I are over the pieces between single spaces of the reference, empty ones included, which is
  more than N where a Chinese reference holds spaces: upstream's way, kept because its figures are compared.

Upstream leaves out an utterance whose file is missing, so is one without a transcript here. Where this project's own
recognizers listen (``talker-rl eval``), that includes a transcript that no voice could have spoken, which upstream
scores, mostly as 100 % or more: watch how many are left out. Silence is scored, as nothing said. A reference
without a word has no rate: it is refused, where upstream's jiwer stops.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jiwer.transformations import wer_default

from talker_rl.base.errors import ConfigError, DataError
from talker_rl.base.text.alignment import Column, align

NAME = "seed-tts-eval"
LANGUAGES = ("zh", "en")

_HAN_MARKS = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    "–—‘’‛“”„‟…‧﹏﹑﹔·．！？｡。"
)
PUNCTUATION = (_HAN_MARKS + string.punctuation).replace("'", "")
"""What is deleted: the Chinese marks of the package zhon (82), the ideographic space among them, and ASCII's but '."""
_DELETED = str.maketrans("", "", PUNCTUATION)


@dataclass(frozen=True)
class Scored:
    """One utterance."""

    key: str
    reference: str
    hypothesis: str
    """As compared: converted to simplified characters, not yet stripped of marks."""
    columns: list[Column]
    """Alignment ``(op, reference, hypothesis)``, op in ``= S D I``."""
    substitutions: int
    deletions: int
    insertions: int
    length: int
    """N: tokens of the reference."""
    pieces: int
    """Pieces between single spaces of the reference: what upstream divides S, D and I by."""

    @property
    def wer(self) -> float:
        return (self.substitutions + self.deletions + self.insertions) / self.length


def score(key: str, reference: str, hypothesis: str, lang: str) -> Scored:
    """Score one utterance; ``hypothesis`` is what the recognizer wrote, marks and case included.

    Raises:
        DataError: nothing of the reference is left to compare.
        ConfigError: the language is neither zh nor en, or zhconv is not installed (zh).
    """
    if lang not in LANGUAGES:
        raise ConfigError(f"seed-tts-eval has no rules for the language {lang!r}", fix="use zh or en")
    hypothesis = simplified(hypothesis) if lang == "zh" else hypothesis
    reference = reference.rstrip().replace("\n", " ")  # no list of upstream's can hold one, and it would join two words
    truth, heard = prepare(reference, lang), prepare(hypothesis, lang)
    tokens, said = (wer_default([text])[0] for text in (truth, heard))
    if not tokens:
        raise DataError(f"The reference has no word: {reference!r:.60}", where=key,
                        fix="leave it out; an error rate needs a reference")
    found = align(tokens, said)
    c = found.counts
    return Scored(key, reference, hypothesis, found.columns, c.substitutions, c.deletions, c.insertions,
                  c.length, len(truth.split(" ")))


def prepare(text: str, lang: str) -> str:
    """The text whose pieces between spaces are compared."""
    text = text.translate(_DELETED).replace("  ", " ")
    return " ".join(text) if lang == "zh" else text.lower()


def simplified(text: str) -> str:
    """Simplified characters, by zhconv's longest match.

    Raises:
        ConfigError: zhconv is not installed.
    """
    try:
        from zhconv import convert
    except ImportError:
        raise ConfigError("seed-tts-eval's Chinese scoring needs the package zhconv", where="protocol seed-tts-eval",
                          fix="pip install 'talker-rl[seed-tts-eval]'") from None
    return str(convert(text, "zh-cn"))


def figures(scored: Sequence[Scored]) -> dict[str, Any]:
    """Upstream's figures of some utterances of one language.

    Returns:
        ``wer_percent`` as upstream prints it; ``wer`` and the three rates as fractions, means over utterances;
        ``wer_below_50`` without the utterances above 0.5 (None where none is left) and how many those are.

    Raises:
        DataError: there is no utterance.
    """
    import numpy as np

    if not scored:
        raise DataError("No utterance has a transcript", fix="look at the keys: references and transcripts share none")
    wers = [u.wer for u in scored]
    below = [w for w in wers if w <= 0.5]
    mean = np.mean(wers)
    return {
        "wer_percent": float(np.round(mean * 100, 3)),
        "wer": float(mean),
        "substitution_rate": float(np.mean([u.substitutions / u.pieces for u in scored])),
        "deletion_rate": float(np.mean([u.deletions / u.pieces for u in scored])),
        "insertion_rate": float(np.mean([u.insertions / u.pieces for u in scored])),
        "wer_below_50": float(np.mean(below)) if below else None,
        "above_50": len(wers) - len(below),
        "utterances": len(wers),
    }


def table(scored: Iterable[Scored]) -> str:
    """Upstream's result file: key, WER, reference, transcript and the shares of I, D and S, between tabs."""
    return "".join(
        f"{u.key}\t{u.wer}\t{u.reference}\t{u.hypothesis}\t{u.insertions / u.pieces}\t{u.deletions / u.pieces}\t"
        f"{u.substitutions / u.pieces}\n" for u in scored
    )
