"""An estimate over texts and training seeds: what would be found with other texts and with other trainings.

Every training (seed s = 1..S) is heard on the same texts (t = 1..T), a crossed design: for a statistic that is a mean
over texts, y_st = mu + seed_s + text_t + e_st. With r_s the statistic of seed s over all texts and r_sb the same over
the b-th resample of texts (one resample for all seeds: Bisani & Ney 2004, "Bootstrap estimates for confidence intervals
in ASR performance evaluation"), three things are seen:

    A = Var_b(mean_s r_sb)   estimates  text^2/T + e^2/(S T)
    B = mean_s Var_b(r_sb)   estimates  text^2/T + e^2/T,  so that  E = (B - A)/(S - 1)  estimates  e^2/(S T)
    M = s^2(r_s) / S         estimates  seed^2/S + e^2/(S T)

The mean over seeds has the variance seed^2/S + text^2/T + e^2/(S T), estimated by the moments of Searle, Casella &
McCulloch 1992, "Variance Components", ch. 4:

    V = A + max(0, M - E)

Resampling texts and seeds both would count e twice, by Owen 2007, "The pigeonhole bootstrap". The interval is that of
Student's t with Satterthwaite's degrees of freedom (1946): V^2 / sum (part^2 / df of the part).

Three seeds say little about M: 2 degrees of freedom. Two rules keep what follows honest, chosen among a dozen by the
coverage of intervals and the family-wise error after Holm's correction (``analysis/sweep_simulation.py``):

1. Where several comparisons stand in a table, their M steady each other (:func:`steady`), as moderated variances do
   (Smyth 2004, "Linear models and empirical Bayes methods"). Without this, Holm over 8 comparisons errs in 15 to 25 %
   of tables where seeds differ; with exact t of 2 degrees of freedom instead, nothing is ever found.
2. That seeds add nothing (M < E) is believed only of an M of 6 degrees of freedom or more. Otherwise V is the same, but
   the degrees of freedom are those of an M as large as E.

With one seed M and E are unknown: the interval is over texts alone and says so. It is Student's as well, which holds
the truth as often as percentiles do with 200 texts and more often with 20 (94.5 against 92 %).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""Takes ``counts`` (B, T), how often each text stands in each of B resamples; gives (B, S), the whole statistic of each
training seed, recomputed. :func:`pooled` is one."""

STEADIED = 2
"""The other comparisons count for at most so many times a comparison's own seeds: they share a baseline and the order
of the data, so that they say less than their number."""
_WILD = 4.0
"""None counts with more than so many times the median, or one training that collapsed would hide all else."""
_BELIEVED = 6
_ROUNDING = 1e-12
"""Below this nothing differs: equal figures may come by sums of another order."""


@dataclass(frozen=True)
class Measured:
    """A statistic over texts and seeds, and the parts of its variance (see above)."""

    seeds: np.ndarray
    """(S,) the statistic of each training seed, over all texts."""
    texts: int
    over_texts: float
    """A; nan with fewer than 2 texts."""
    rest: float
    """E; 0 with one seed, where it cannot be told from the texts' part."""
    lost: float = 0.0
    """Share of the resamples that have no figure, which A and E are not of."""

    @property
    def between(self) -> float:
        """M; 0 with one seed."""
        return float(self.seeds.var(ddof=1)) / len(self.seeds) if len(self.seeds) > 1 else 0.0


@dataclass(frozen=True)
class Spread:
    """M of a comparison, as it is to be used, and its degrees of freedom."""

    variance: float
    df: float


@dataclass(frozen=True)
class Estimate:
    """A mean over training seeds with its 95 % interval; in the units of the statistic."""

    value: float
    low: float | None
    """None with fewer than 2 texts, as ``high``, ``p`` and ``df``."""
    high: float | None
    p: float | None
    """Two-sided, of the value that says that nothing differs."""
    df: float | None
    of: Literal["texts and seeds", "texts"]
    """What the interval is over. ``texts``: one training, so it says nothing of other trainings."""
    texts: int
    seeds: int
    sd_text: float | None
    """Standard deviation between texts, of what all seeds share; with one seed ``sd_rest`` is in it."""
    sd_seed: float | None
    """Between training seeds; None with one."""
    sd_rest: float | None
    """Of one text under one seed, beyond both; None with one seed."""
    lost: float = 0.0
    """Share of the resamples that have no figure: the interval is of the others."""

    @property
    def ci95(self) -> tuple[float, float] | None:
        """The interval, None where there is none."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def estimate(
    statistic: Statistic, texts: int, *, resamples: int = 10_000, seed: int = 0, null: float = 0.0
) -> Estimate:
    """One comparison by itself; several of one table are made by :func:`measure`, :func:`spreads`, :func:`interval`.

    >>> estimate(lambda counts: pooled(counts, errors_TS, words_TS) - pooled(counts, errors_T1, words_T1), 200)
    """
    return interval(measure(statistic, texts, resamples=resamples, seed=seed), null=null)


def pooled(counts: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """A ratio of sums of each resample and seed, e.g. word errors over words.

    Args:
        counts: (B, T) how often each text was drawn.
        top: (T, S) sums of each text under each seed, 0 where nothing was scored; (T, 1) is shared by all seeds.
        bottom: likewise.

    Returns:
        (B, S); nan where nothing of the denominator was drawn.
    """
    over, under = counts @ top, counts @ bottom
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(under > 0, over / under, np.nan)


def measure(statistic: Statistic, texts: int, *, resamples: int = 10_000, seed: int = 0) -> Measured:
    """The statistic and the parts of its variance.

    Args:
        statistic: gives (B, S) for counts (B, T).
        texts: T.
        resamples: of texts.
        seed: of the resampling: alike for everything that is compared.
    """
    found = np.asarray(statistic(np.ones((1, texts))), dtype=float)[0]
    if texts < 2:
        return Measured(found, texts, np.nan, 0.0)
    drawn = np.concatenate([statistic(counts) for counts in _draws(texts, resamples, seed)])
    drawn = drawn[np.isfinite(drawn).all(1)]
    lost = 1 - len(drawn) / resamples
    if len(drawn) < 2 or not np.isfinite(found).all():
        return Measured(found, texts, np.nan, 0.0, lost)  # hardly a text has words: no resample has a figure
    unbiased = texts / (texts - 1)  # a resample's variance is that of T texts about their own mean
    over_texts = unbiased * float(drawn.mean(1).var(ddof=1))
    rest = 0.0
    if (seeds := len(found)) > 1:
        each = unbiased * float(drawn.var(0, ddof=1).mean())
        rest = min(max(0.0, (each - over_texts) / (seeds - 1)), over_texts)
    return Measured(found, texts, over_texts, rest, lost)


def _draws(texts: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Counts (B, T) of all resamples, in parts that fit into memory."""
    drawn = _counts(texts, resamples, seed)
    step = max(1, 4_000_000 // texts)
    for start in range(0, resamples, step):
        yield drawn[start:start + step].astype(float)


@lru_cache(maxsize=2)
def _counts(texts: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, T): kept, since the comparisons of a table share them."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(texts, np.full(texts, 1 / texts), size=resamples).astype(np.uint16)


def steady(own: np.ndarray, df: int) -> tuple[np.ndarray, np.ndarray]:
    """M of each comparison of a table, steadied by the others.

    Args:
        own: (..., n) M of n comparisons, each of ``df`` degrees of freedom.

    Returns:
        (..., n) M and (..., n) degrees of freedom: the mean of the own M (weight 1) and of the table's (weight 2, less
        in a table of 2 or of 1), with as many times the degrees of freedom. An M above that stays as it is, with half
        of what the table adds to its degrees of freedom: what is steadied is never smaller than what was seen, so that
        a loss whose trainings differ more than others' is not made to look like them.
    """
    from scipy import stats  # slow to import, and a plan needs none

    weight = min(STEADIED, own.shape[-1] - 1)
    median = np.median(own, axis=-1, keepdims=True) * df / stats.chi2.median(df)
    table = np.minimum(own, _WILD * median).mean(-1, keepdims=True)
    mixed = (own + weight * table) / (1 + weight)
    return np.maximum(own, mixed), df * np.where(own > mixed, 1.0 + weight / 2, 1.0 + weight)


def spreads(found: Sequence[Measured]) -> list[Spread]:
    """What :func:`steady` makes of the comparisons of a table; all have as many seeds. One without a figure says
    nothing of the others."""
    known = [one for one in found if not np.isnan(one.over_texts)]
    if not known or (df := len(found[0].seeds) - 1) == 0:
        return [Spread(0.0, 0.0) for _ in found]
    variances, dfs = steady(np.array([one.between for one in known]), df)
    steadied = iter([Spread(float(v), float(d)) for v, d in zip(variances, dfs, strict=True)])
    return [Spread(0.0, 0.0) if np.isnan(one.over_texts) else next(steadied) for one in found]


def combined(
    over_texts: np.ndarray, rest: np.ndarray, between: np.ndarray, between_df: np.ndarray, texts: int, seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    """V and its degrees of freedom of A, E and M (arrays of one shape); see the module's head."""
    if seeds == 1:
        return over_texts, np.full_like(over_texts, texts - 1.0)
    used = np.maximum(between, rest)
    total = over_texts - rest + used
    parts = used**2 / between_df + over_texts**2 / (texts - 1) + rest**2 / ((seeds - 1) * (texts - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(parts > 0, total**2 / parts, texts - 1.0)
    alone = (between < rest) & (between_df >= _BELIEVED)
    return total, np.where(alone, texts - 1.0, np.clip(df, min(seeds, texts) - 1.0, None))


def interval(found: Measured, spread: Spread | None = None, *, null: float = 0.0) -> Estimate:
    """The 95 % interval and the two-sided p-value.

    Args:
        spread: of :func:`spreads`, where it is one of several comparisons; else its own.
        null: the value that says that nothing differs, e.g. 1 for a ratio of durations.
    """
    from scipy import stats

    seeds, texts, value = len(found.seeds), found.texts, float(found.seeds.mean())
    of: Literal["texts and seeds", "texts"] = "texts and seeds" if seeds > 1 else "texts"
    if np.isnan(found.over_texts):
        return Estimate(value, None, None, None, None, of, texts, seeds, None, None, None, found.lost)
    spread = spread or Spread(found.between, seeds - 1)
    a, e, m, m_df = (np.array([x]) for x in (found.over_texts, found.rest, spread.variance, spread.df))
    variance, df = (float(x[0]) for x in combined(a, e, m, m_df, texts, seeds))
    sd = variance**0.5
    half = float(stats.t.ppf(0.975, df)) * sd
    p = float(2 * stats.t.sf(abs(value - null) / sd, df)) if sd > _ROUNDING else float(
        abs(value - null) <= _ROUNDING)
    return Estimate(
        value, value - half, value + half, p, df, of, texts, seeds,
        sd_text=(texts * (found.over_texts - found.rest))**0.5,
        sd_seed=max(0.0, seeds * (found.between - found.rest))**0.5 if seeds > 1 else None,
        sd_rest=(seeds * texts * found.rest)**0.5 if seeds > 1 else None, lost=found.lost)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values corrected for their number by Holm 1979, "A simple sequentially rejective multiple test procedure".

    Among those below 0.05, one or more are there by chance in at most 5 % of tables. None stays None and does not
    count.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        adjusted[i] = largest = max(largest, min(1.0, (len(known) - rank) * p))
    return adjusted
