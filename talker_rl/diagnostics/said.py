"""What is said against what was to be said: over the time of an utterance, and words said again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from talker_rl.base.text.alignment import align
from talker_rl.base.text.tokens import normalize
from talker_rl.diagnostics.fits import Row

GRID = 20
"""Points of the time axis, from 0 to the longest of the base's utterances times 1.5."""


def words_over_time(rows: Sequence[Row], until: float) -> Row | None:
    """Words that were said by a time, over those that were to be said, mean over utterances; of all that have
    a time for each word, silent ones included.

    Args:
        rows: evaluation rows: ``status, text, lang, transcript`` (tokens with spaces) and ``spans`` (start, end, start,
            ...; seconds).
        until: end of the time axis, seconds.

    Returns: ``seconds`` (20 points), ``said`` (any words: above 1 the policy goes on talking), ``right`` (words of the
        text, at the end of the axis 1 minus substitutions and deletions), ``n``. None where no row has times.
    """
    at = np.linspace(0.0, until, GRID + 1)[1:]
    said, right = [], []
    for row in rows:
        heard = row["transcript"].split() if row["status"] == "ok" else None
        spans = list(row.get("spans") or ())
        if heard is None or len(spans) != 2 * len(heard) or not row["ref_words"]:
            continue
        ends, wanted = np.array(spans[1::2], dtype=float), normalize(row["text"], row["lang"])
        good = np.array([op == "=" for op, _, _ in align(wanted.tokens, heard).columns if op != "D"], dtype=bool)
        said.append([(ends <= t).sum() / row["ref_words"] for t in at])
        right.append([(ends[good] <= t).sum() / row["ref_words"] for t in at])
    if not said:
        return None
    return {"seconds": at.tolist(), "said": np.mean(said, axis=0).tolist(), "right": np.mean(right, axis=0).tolist(),
            "n": len(said)}


def loops(rows: Sequence[Row], n: int = 2) -> Row:
    """N-grams of words said more often than the text has them: the Talker goes round.

    Returns: ``rate`` (share of the scored utterances with one), ``words`` (mean number of such n-grams an utterance),
        and ``n`` (utterances). None where nothing was scored.
    """
    counts = []
    for row in rows:
        if row["status"] != "ok":
            continue
        heard, wanted = (Counter(_grams(tokens, n)) for tokens in (row["transcript"].split(),
                                                                   normalize(row["text"], row["lang"]).tokens))
        counts.append(sum(max(0, k - max(1, wanted[gram])) for gram, k in heard.items()))
    if not counts:
        return {"rate": None, "words": None, "n": 0}
    return {"rate": float(np.mean([c > 0 for c in counts])), "words": float(np.mean(counts)), "n": len(counts)}


def _grams(tokens: Sequence[str], n: int) -> list[tuple[Any, ...]]:
    return [tuple(tokens[i:i + n]) for i in range(len(tokens) - n + 1)]
