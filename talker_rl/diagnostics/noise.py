"""Reward noise: the same codes decoded several times and judged each time. How much of a score is decoder's luck?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations

import numpy as np

from talker_rl.base.figures import count
from talker_rl.diagnostics.fits import Notes, Row, is_constant


def icc1(values: np.ndarray, confidence: float = 0.95) -> tuple[float, tuple[float, float]] | None:
    """ICC(1), one-way random effects, with its F-based interval (Shrout & Fleiss 1979; McGraw & Wong 1996).

    Args:
        values: (n, k), a row per candidate, a column per decode; n, k >= 2.
        confidence: of the interval.

    Returns: the share of variance that lies between candidates, and its interval; None where nothing varies.
    """
    n, k = values.shape
    if n < 2 or k < 2 or is_constant(values):
        return None
    means = values.mean(axis=1)
    between = k * float(means.var(ddof=1))
    within = float(((values - means[:, None]) ** 2).sum()) / (n * (k - 1))
    if within <= 1e-12 * between:
        return 1.0, (1.0, 1.0)
    ratio, tail = between / within, 1 - (1 - confidence) / 2
    from scipy import stats  # slow to import, and a plan needs none

    low = ratio / stats.f.ppf(tail, n - 1, n * (k - 1))
    high = ratio * stats.f.ppf(tail, n * (k - 1), n - 1)
    icc, lower, upper = ((float(f) - 1) / (float(f) + k - 1) for f in (ratio, low, high))
    return icc, (lower, upper)


def noise_margin(values: np.ndarray, share: float = 0.05) -> float:
    """The smallest margin that two decodes of the same codes exceed in at most this share of cases.

    Taken from the observed differences, not from a normal law: most candidates are heard alike every time, and some
    lose a word now and then, so the noise has heavy tails.

    Args:
        values: (n, k), a row per candidate; k >= 2.
    """
    differences = [np.abs(values[:, i] - values[:, j]) for i, j in combinations(range(values.shape[1]), 2)]
    return float(np.quantile(np.concatenate(differences), 1 - share, method="inverted_cdf"))


def reward_noise(rows: Iterable[Row], notes: Notes) -> Row | None:
    """Figures of the noise.

    Args:
        rows: one a (candidate, decode): ``candidate_id``, ``reward`` (what ranks candidates; None if failed), ``wer``.

    Returns: ``icc`` with ``icc_ci95`` and ``sd_within`` of the reward, the same of WER under ``wer_*``,
        ``n_candidates``, ``decodes``, and ``suggested_margin`` for ``pairs.margin``: what noise alone exceeds in at
        most 5 % of pairs. None where fewer than two candidates were scored in every decode.
    """
    by_candidate: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_candidate[row["candidate_id"]].append(row)
    decodes = max((len(found) for found in by_candidate.values()), default=0)
    complete = [found for found in by_candidate.values()
                if len(found) == decodes and all(row["reward"] is not None for row in found)]
    if len(complete) < len(by_candidate):
        notes.append(f"reward_noise: {count(len(by_candidate) - len(complete), 'candidate')} left out: not scored "
                     f"every time")
    if len(complete) < 2 or decodes < 2:
        notes.append("reward_noise: it needs two candidates that are scored in two decodes")
        return None
    result: Row = {}
    for name, prefix in (("reward", ""), ("wer", "wer_")):
        values = np.array([[row[name] for row in found] for found in complete], dtype=np.float64)
        icc = icc1(values)
        if icc is None:
            notes.append(f"reward_noise.{prefix}icc: the values do not vary")
        result[f"{prefix}icc"], result[f"{prefix}icc_ci95"] = icc or (None, None)
        result[f"{prefix}sd_within"] = math.sqrt(float(values.var(axis=1, ddof=1).mean()))
    margin = noise_margin(np.array([[row["reward"] for row in found] for found in complete], dtype=np.float64))
    return result | {"n_candidates": len(complete), "decodes": decodes, "suggested_margin": margin}
