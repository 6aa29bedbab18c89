"""Can speakers be told apart by their sound? A classifier that never hears the text it judges, with its interval.

Every speaker says the same texts, so that nothing but who speaks differs. An utterance goes to the speaker with the
nearest mean, in units of the spread within speakers (linear discriminant analysis with a diagonal covariance); means
and spreads are of all other texts (leave one text out).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from talker_rl.evaluation.bootstrap import bootstrap_ci, ratio_of_sums


def leave_one_text_out(features_TSF: np.ndarray) -> np.ndarray:
    """Index of the speaker that each utterance is taken for, (T, S).

    Args:
        features_TSF: (T texts, S speakers, F features).
    """
    texts, speakers, _ = features_TSF.shape
    total, squares = features_TSF.sum(0), np.square(features_TSF).sum(0)
    taken_for = np.empty((texts, speakers), dtype=int)
    for t in range(texts):
        n = texts - 1
        mean_SF = (total - features_TSF[t]) / n
        spread_SF = (squares - np.square(features_TSF[t])) / n - np.square(mean_SF)
        variance_F = np.maximum(spread_SF.mean(0), 1e-9)
        distance_SS = (np.square(features_TSF[t][:, None] - mean_SF[None]) / variance_F).sum(-1)
        taken_for[t] = distance_SS.argmin(1)
    return taken_for


def told_apart(taken_for_TS: np.ndarray, speaker: int, resamples: int = 10_000) -> dict[str, Any]:
    """Shares of utterances that are taken for the right speaker, with 95 % intervals over texts.

    Returns:
        ``accuracy``: of all speakers (chance 1 / S). ``found``: of the speaker's own utterances, those taken for it.
        ``mistaken``: of the others' utterances, those taken for it. ``balanced``: mean of found and not mistaken
        (chance 0.5). Each with ``_ci95``. ``confusion``: (S, S) counts, rows who spoke, columns who was heard.
    """
    texts, speakers = taken_for_TS.shape
    out: dict[str, Any] = {"texts": texts, "speakers": speakers}
    for name, values in per_text(taken_for_TS, speaker).items():
        ones = np.ones(texts)
        out[name] = float(values.mean())
        out[f"{name}_ci95"] = bootstrap_ci((values, ones), ratio_of_sums, resamples=resamples)
    out["confusion"] = [[int((taken_for_TS[:, a] == b).sum()) for b in range(speakers)] for a in range(speakers)]
    return out


def per_text(taken_for_TS: np.ndarray, speaker: int) -> dict[str, np.ndarray]:
    """The shares of :func:`told_apart` of each text, (T,)."""
    others = [s for s in range(taken_for_TS.shape[1]) if s != speaker]
    found = (taken_for_TS[:, speaker] == speaker).astype(float)
    mistaken = (taken_for_TS[:, others] == speaker).mean(1)
    return {
        "accuracy": (taken_for_TS == np.arange(taken_for_TS.shape[1])).mean(1),
        "found": found,
        "mistaken": mistaken,
        "balanced": (found + 1 - mistaken) / 2,
    }


def difference(before_TS: np.ndarray, after_TS: np.ndarray, speaker: int, resamples: int = 10_000) -> dict[str, Any]:
    """After minus before for each share, with its paired 95 % interval over texts (both of the same texts)."""
    before, after = per_text(before_TS, speaker), per_text(after_TS, speaker)
    out: dict[str, Any] = {}
    for name in before:
        change = after[name] - before[name]
        out[name] = float(change.mean())
        out[f"{name}_ci95"] = bootstrap_ci((change, np.ones(len(change))), ratio_of_sums, resamples=resamples)
    return out
