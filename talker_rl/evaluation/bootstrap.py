"""Paired bootstrap over texts (Bisani & Ney 2004, "Bootstrap estimates for confidence intervals in ASR")."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def ratio_of_sums(numerator: np.ndarray, denominator: np.ndarray, axis: int = -1) -> np.ndarray:
    """Pooled ratio, e.g. errors over reference words; nan where the denominator is 0."""
    top, bottom = np.sum(numerator, axis=axis), np.sum(denominator, axis=axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


def bootstrap_ci(
    data: tuple[np.ndarray, ...],
    statistic: Callable[..., np.ndarray],
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile interval of ``statistic`` with all arrays resampled by the same indices.

    Args:
        data: arrays of shape (P,), one entry per text (the unit that is resampled).
        statistic: takes the arrays and ``axis``; vectorized.
        resamples: bootstrap resamples.
        confidence: coverage.
        seed: of the resampling.

    Returns:
        (low, high), or None with fewer than 2 texts, where no interval exists.
    """
    if len(data[0]) < 2:
        return None
    from scipy import stats  # slow to import, and a plan needs none

    result = stats.bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        batch=max(1, 2_000_000 // len(data[0])),
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return float(low), float(high)


def diff_of_ratios(
    num_a: np.ndarray, den_a: np.ndarray, num_b: np.ndarray, den_b: np.ndarray, axis: int = -1
) -> np.ndarray:
    """b's pooled ratio minus a's: with a = base and b = trained, below zero is better for an error rate."""
    return ratio_of_sums(num_b, den_b, axis) - ratio_of_sums(num_a, den_a, axis)
