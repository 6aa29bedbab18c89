"""Whether what losses push on before any training told what they did to durations: predictions against a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from talker_rl.base.figures import span, written
from talker_rl.diagnostics.fits import Row

PREDICTORS = {"stop": "net push on the stop", "stop_seconds": "its first moment"}
"""Key of a prediction -> what it is: ``stop_share`` and ``stop_seconds_share`` of
:class:`talker_rl.diagnostics.anatomy.Anatomy`."""
FEWEST = 4
"""Variants below which ranks are not correlated: three stand in order by chance in one case of six."""
_DIGITS = 9
"""Predictions that differ by rounding alone are equal."""


def prediction(variants: Sequence[Row], *, resamples: int = 10_000) -> Row:
    """Predictions and measurements of an arm's variants, and how well the ones rank the others.

    Args:
        variants: ``variant, stop`` (in units of each loss's own mean push on a token), ``stop_seconds`` (likewise,
            times seconds) and ``duration_ratio`` (over the base's).
        resamples: of the bootstrap over variants.

    Returns: ``variants`` as they are, and for each of :data:`PREDICTORS` ``rho`` (Spearman's; ranks of ties are
        shared), ``ci95``, ``n`` and ``note`` (why there is no figure; else None).
    """
    measured = [row["duration_ratio"] for row in variants]
    return {"variants": list(variants),
            **{key: _rank_correlation([row[key] for row in variants], measured, resamples) for key in PREDICTORS}}


def told(found: Mapping[str, Row]) -> list[str]:
    """A line for each arm: its correlations, or why there are none."""
    return [f"{arm}: what was predicted before training against the duration: " + (why_none(one) or (
        f"Spearman's rho over {len(one['variants'])} variants: " + ", ".join(
            f"{name} {correlation(one[key])}" for key, name in PREDICTORS.items())))
            for arm, one in found.items()]


def why_none(one: Row) -> str | None:
    """Why an arm has no correlation at all; None where it has one."""
    if "note" in one:
        return str(one["note"])
    return one["stop"]["note"] if len(one["variants"]) < FEWEST else None


def correlation(one: Row) -> str:
    """``-0.93 [-1.00, -0.71]``; or why there is none."""
    return f"{written(one['rho'], '{:+.2f}')} {span(one['ci95'], '{:+.2f}')}".rstrip() + (
        f" ({one['note']})" if one["note"] else "")


def _rank_correlation(predicted: Sequence[float], measured: Sequence[float], resamples: int) -> Row:
    n = len(predicted)
    x, y = np.round(np.array(predicted, dtype=float), _DIGITS), np.array(measured, dtype=float)
    none: Row = {"rho": None, "ci95": None, "n": n}
    if n < FEWEST:
        return none | {"note": f"fewer than {FEWEST} variants"}
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return none | {"note": "all variants have the same"}
    drawn = np.random.default_rng(0).integers(n, size=(resamples, n))
    rhos = _spearman(x[drawn], y[drawn])
    low, high = np.percentile(rhos[~np.isnan(rhos)], [2.5, 97.5])  # nan: a draw in which all have the same
    return {"rho": float(_spearman(x[None], y[None])[0]), "ci95": [float(low), float(high)], "n": n, "note": None}


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(R,) correlations of the ranks in (R, n) each; nan where one side has one value only."""
    from scipy import stats  # slow to import

    a, b = (stats.rankdata(side, axis=1) - (side.shape[1] + 1) / 2 for side in (x, y))
    with np.errstate(invalid="ignore"):
        found: np.ndarray = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return found
