"""How small a difference between two losses a sweep finds, before it is run.

By the rules of :mod:`talker_rl.evaluation.nested`, to the letter: the spread between training seeds is drawn from its
chi-square distribution for every comparison of an arm, steadied, made into an interval's half width, and the share of
sweeps whose difference lies outside is averaged. With one comparison of many seeds that is the noncentral t; steadied
spreads have no distribution with a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from talker_rl.evaluation.nested import combined, steady

_DRAWS = 4_000
"""Sweeps that are imagined: the power is known to within about half a point."""
_OUTLYING = 4.0


@dataclass(frozen=True)
class Components:
    """Standard deviations of a difference between two trainings on the same texts; a rate, so 0.01 is a point."""

    text: float
    """Between texts, of what all seeds share: one loss suits a text better than the other."""
    seed: float
    """Between training seeds."""
    rest: float
    """Of one text under one seed, beyond both: it is spoken anew every time."""

    def variance(self, texts: int, seeds: int) -> float:
        """Of the mean over texts and seeds; of one training only over texts, for of others it says nothing."""
        over_texts = self.text**2 / texts + self.rest**2 / (texts * seeds)
        return over_texts if seeds == 1 else over_texts + self.seed**2 / seeds


TYPICAL = Components(text=0.19, seed=0.010, rest=0.16)
"""WER of one variant minus another's on the micro model, one utterance of about 10 words a text: medians over ten
variants against DPO, three training seeds, 200 texts (``analysis/data/grid-biased-2026-11-30.parquet``, docs/LOG.md).
"""


def power(
    difference: float, components: Components, texts: int, seeds: int, *, comparisons: int = 1, beside: int = 1
) -> float:
    """The share of sweeps that find a difference of this size.

    Args:
        difference: true one, in the units of the components.
        comparisons: of the table, all of which Holm's correction counts. Counted as its first step does, alpha over
            their number, so that with others found the share is larger.
        beside: comparisons of the same arm, which steady each other's spread between seeds.
    """
    from scipy import stats

    sd = components.variance(texts, seeds)**0.5
    if sd == 0:
        return float(difference != 0)
    half = _half_widths(components, texts, seeds, 0.05 / comparisons, beside)
    return float(np.mean(stats.norm.sf((half - difference) / sd) + stats.norm.cdf((-half - difference) / sd)))


def smallest(
    components: Components, texts: int, seeds: int, *, comparisons: int = 1, beside: int = 1, share: float = 0.8
) -> float:
    """The smallest difference that this share of sweeps finds; see :func:`power`."""
    from scipy import optimize

    sd = components.variance(texts, seeds)**0.5
    if sd == 0:
        return 0.0
    half = _half_widths(components, texts, seeds, 0.05 / comparisons, beside)
    return float(optimize.brentq(
        lambda x: power(x, components, texts, seeds, comparisons=comparisons, beside=beside) - share,
        0.0, float(half.max()) + 10 * sd))


def _half_widths(components: Components, texts: int, seeds: int, alpha: float, beside: int) -> np.ndarray:
    """(draws,) half widths of the intervals at this alpha."""
    from scipy import stats

    rng = np.random.default_rng(0)
    rest = components.rest**2 / (texts * seeds)
    over_texts = (components.text**2 / texts + rest) * rng.chisquare(texts - 1, _DRAWS) / (texts - 1)
    if seeds == 1:
        return np.asarray(stats.t.ppf(1 - alpha / 2, texts - 1) * np.sqrt(over_texts))
    between = (components.seed**2 / seeds + rest) * rng.chisquare(seeds - 1, (_DRAWS, beside)) / (seeds - 1)
    steadied, df = (values[:, 0] for values in steady(between, seeds - 1))
    variance, df = combined(over_texts, np.minimum(rest, over_texts), steadied, df, texts, seeds)
    return np.asarray(stats.t.ppf(1 - alpha / 2, df) * np.sqrt(variance))


def measured(rows: Sequence[dict[str, Any]]) -> Components | None:
    """The components of the WER differences in a finished table, None where it has none of several seeds.

    Args:
        rows: of ``ablation.json``; ``wer_diff_baseline_sd`` of the variants' rows is read.

    Returns:
        Root mean squares. Comparisons far wider than most, of trainings that collapsed, are left out.
    """
    found = [row["wer_diff_baseline_sd"] for row in rows if row.get("wer_diff_baseline_sd")]
    squares = np.array([[sd["text"], sd["seed"], sd["rest"]] for sd in found if sd["seed"] is not None])**2
    if not len(squares):
        return None
    wide = squares[:, 1]
    text, seed, rest = squares[wide <= _OUTLYING * np.median(wide)].mean(0) if np.median(wide) > 0 else squares.mean(0)
    return Components(float(text)**0.5, float(seed)**0.5, float(rest)**0.5)
