"""Least squares and correlations that answer None, with a note, where there is nothing to fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
"""One record as a stage stores it: column name -> value."""

Notes = list[str]
"""Why figures are None: appended to by whoever leaves one out."""


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """(N,) float64 of one column; the rows must have it."""
    return np.array([row[name] for row in rows], dtype=np.float64)


def is_constant(values: np.ndarray) -> bool:
    """Whether values differ by no more than rounding does."""
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))


def pearson(x: np.ndarray, y: np.ndarray, label: str, notes: Notes) -> float | None:
    """Pearson's r of (N,) and (N,); None for fewer than two points or without variation."""
    problem = _problem(x) or ("the values do not vary" if is_constant(y) else None)
    if problem:
        notes.append(f"{label}: {problem}")
        return None
    from scipy import stats  # slow to import, and a plan needs none

    return float(stats.pearsonr(x, y).statistic)


def length_fit(seconds: np.ndarray, values: np.ndarray, label: str, notes: Notes) -> Row | None:
    """Least squares of values (N,) on seconds (N,).

    Returns:
        ``slope_per_second, intercept, r2, pearson, spearman, n``; None where no line is defined. Constant values have
        slope 0 and no correlation.
    """
    problem = _problem(seconds)
    if problem:
        notes.append(f"{label}: {problem}")
        return None
    if is_constant(values):
        notes.append(f"{label}: the values do not vary, so there is no correlation")
        flat = {"slope_per_second": 0.0, "intercept": float(values.mean())}
        return {**flat, "r2": None, "pearson": None, "spearman": None, "n": len(values)}
    from scipy import stats  # slow to import, and a plan needs none

    fit = stats.linregress(seconds, values)
    return {
        "slope_per_second": float(fit.slope),
        "intercept": float(fit.intercept),
        "r2": float(fit.rvalue**2),
        "pearson": float(fit.rvalue),
        "spearman": float(stats.spearmanr(seconds, values).statistic),
        "n": len(values),
    }


def _problem(x: np.ndarray) -> str | None:
    if len(x) < 2:
        return "one point is too few" if len(x) else "there is no point"
    return "all lengths are the same" if is_constant(x) else None
