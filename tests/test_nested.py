"""Estimates over texts and training seeds: parts of the variance by hand, Holm, and sweeps whose truth is known."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from talker_rl.evaluation.nested import Measured, Spread, estimate, holm, interval, measure, pooled, spreads, steady
from talker_rl.evaluation.power import Components, measured, power, smallest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sweep_simulation", ROOT / "analysis" / "sweep_simulation.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def mean_of(y: np.ndarray) -> Any:
    """The mean over texts of y (T, S), as a ratio of sums."""
    return lambda counts: pooled(counts, y, np.ones_like(y))


def test_the_parts_of_the_variance_are_those_of_the_two_way_table() -> None:
    """A, E and M against the mean squares of a crossed design (Searle et al.): texts, seeds, what is left."""
    rng = np.random.default_rng(1)
    t, s = 50, 4
    y = 0.3 * rng.standard_normal((t, 1)) + 0.2 * rng.standard_normal((1, s)) + 0.5 * rng.standard_normal((t, s))
    found = measure(mean_of(y), t, resamples=60_000)
    grand, texts, seeds = y.mean(), y.mean(1, keepdims=True), y.mean(0, keepdims=True)
    ms_text = s * ((texts - grand)**2).sum() / (t - 1)
    ms_rest = ((y - texts - seeds + grand)**2).sum() / ((t - 1) * (s - 1))
    ms_seed = t * ((seeds - grand)**2).sum() / (s - 1)
    assert found.seeds == pytest.approx(y.mean(0))
    assert found.over_texts == pytest.approx(ms_text / (s * t), rel=0.02)
    assert found.rest == pytest.approx(ms_rest / (s * t), rel=0.02)
    assert found.between == pytest.approx(ms_seed / (s * t))
    e = interval(found)
    assert ms_seed > ms_rest, "else the formula below is another"
    variance = (ms_text + ms_seed - ms_rest) / (s * t)
    df = variance**2 * (s * t)**2 / (
        ms_seed**2 / (s - 1) + ms_text**2 / (t - 1) + ms_rest**2 / ((s - 1) * (t - 1)))
    assert e.df == pytest.approx(df, rel=0.02) and e.value == pytest.approx(grand)
    half = stats.t.ppf(0.975, df) * variance**0.5
    assert (e.low, e.high) == pytest.approx((grand - half, grand + half), abs=0.02 * half)
    assert e.p == pytest.approx(2 * stats.t.sf(abs(grand) / variance**0.5, df), rel=0.05)
    assert e.sd_text == pytest.approx(((ms_text - ms_rest) / s)**0.5, rel=0.02)
    assert e.sd_rest == pytest.approx(ms_rest**0.5, rel=0.02)
    assert e.sd_seed == pytest.approx(((ms_seed - ms_rest) / t)**0.5, rel=0.02)


def test_one_seed_says_that_it_is_over_texts_and_is_students_interval() -> None:
    y = np.random.default_rng(2).standard_normal((80, 1)) + 0.2
    e = estimate(mean_of(y), 80, resamples=40_000)
    test = stats.ttest_1samp(y[:, 0], 0.0)
    assert (e.of, e.seeds, e.sd_seed, e.sd_rest, e.df) == ("texts", 1, None, None, 79)
    assert e.p == pytest.approx(test.pvalue, rel=0.05)
    assert e.ci95 == pytest.approx(tuple(test.confidence_interval()), abs=0.005)
    two = estimate(mean_of(np.hstack([y, y + 0.1])), 80, resamples=2_000)
    assert (two.of, two.seeds) == ("texts and seeds", 2)


def test_the_same_speech_under_every_seed_is_worth_no_more_than_once() -> None:
    y = np.random.default_rng(3).standard_normal((60, 1))
    one, three = (estimate(mean_of(values), 60, resamples=3_000) for values in (y, np.repeat(y, 3, axis=1)))
    assert three.ci95 == pytest.approx(one.ci95) and three.p == pytest.approx(one.p) and three.sd_seed == 0


def test_the_statistic_is_recomputed_whole_and_texts_without_words_do_no_harm() -> None:
    rng = np.random.default_rng(4)
    words = rng.integers(1, 9, (40, 2)).astype(float)
    errors = rng.binomial(words.astype(int), 0.3).astype(float)
    errors[:2], words[:2] = 0.0, 0.0
    ratio = estimate(lambda counts: pooled(counts, errors, words), 40, resamples=4_000)
    assert ratio.value == pytest.approx((errors.sum(0) / words.sum(0)).mean())
    curved = estimate(lambda counts: np.abs(pooled(counts, errors, words) - 0.3), 40, resamples=4_000)
    assert curved.value == pytest.approx(np.abs(errors.sum(0) / words.sum(0) - 0.3).mean())
    no_words = estimate(lambda counts: pooled(counts, errors[:2], words[:2]), 2, resamples=50)
    assert (no_words.ci95, no_words.p, no_words.df) == (None, None, None)
    lone = estimate(lambda counts: pooled(counts, errors[3:4], words[3:4]), 1)
    assert lone.low is None and lone.p is None and lone.value == pytest.approx((errors[3] / words[3]).mean())


def test_what_never_differs_has_no_width() -> None:
    same = np.full((30, 3), 0.5)
    e = estimate(mean_of(same), 30, resamples=200, null=0.5)
    assert (e.ci95, e.p) == ((0.5, 0.5), 1.0)
    assert estimate(mean_of(same), 30, resamples=200).p == 0.0


def test_a_spread_is_steadied_by_the_table_and_never_made_smaller() -> None:
    variances, dfs = steady(np.array([1.0, 2.0, 3.0]), 2)
    # median 2, over the chi-square's 1.386 / 2; none above 4 times that; mean 2; (own + 2 * 2) / 3, 3 stays
    assert variances == pytest.approx([5 / 3, 2.0, 3.0]) and list(dfs) == [6.0, 6.0, 4.0]
    wild, _ = steady(np.array([1.0, 1.0, 1.0, 1000.0]), 2)
    assert wild[0] < 3 and wild[3] == 1000.0  # and not (1 + 2 * 251) / 3
    assert [list(x) for x in steady(np.array([5.0]), 2)] == [[5.0], [2.0]]
    (alone,) = spreads([Measured(np.array([0.1, 0.2, 0.3]), 9, 0.1, 0.0)])
    assert alone == Spread(pytest.approx(0.01 / 3), 2.0)
    assert spreads([Measured(np.array([0.1]), 9, 0.1, 0.0)] * 2) == [Spread(0.0, 0.0)] * 2


def test_that_seeds_add_nothing_is_believed_of_many_of_them_only() -> None:
    found = Measured(np.array([0.1, 0.1, 0.1]), 200, over_texts=4.0, rest=2.0)
    few, many = (interval(found, Spread(0.5, df)) for df in (2.0, 6.0))
    assert few.sd_seed == 0 and many.df == 199 and few.df is not None
    assert few.df == pytest.approx(16 / (4 / 2 + 16 / 199 + 4 / (2 * 199)))
    assert few.high is not None and many.high is not None and few.high > many.high > 0.1 + 1.97 * 2


def test_holm_by_hand_and_by_statsmodels() -> None:
    # 4 x 0.01, 3 x 0.02 = 0.06, then 2 x 0.025 = 0.05, which may not be smaller, and 0.9
    assert holm([0.9, 0.01, 0.025, 0.02]) == pytest.approx([0.9, 0.04, 0.06, 0.06])
    assert holm([None, 0.03, None]) == [None, 0.03, None] and holm([]) == [] and holm([0.6, 0.7]) == [1.0, 1.0]
    p = list(np.random.default_rng(5).uniform(size=25)**3)
    assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))


# -- power ----------------------------------------------------------------------------------------------------------


def test_power_of_one_seed_is_the_noncentral_t() -> None:
    parts = Components(text=0.3, seed=0.5, rest=0.4)  # seeds do not count: of other trainings it says nothing
    sd = (0.25 / 30)**0.5
    for difference in (0.1, 0.2, 0.35):
        t = stats.t.ppf(0.975, 29)
        expected = stats.nct.sf(t, 29, difference / sd) + stats.nct.cdf(-t, 29, difference / sd)
        assert power(difference, parts, 30, 1) == pytest.approx(expected, abs=0.01)
    assert power(0.0, parts, 200, 1) == pytest.approx(0.05, abs=0.003)


def test_power_where_only_seeds_differ_is_the_noncentral_t_of_their_number() -> None:
    parts, t = Components(text=0.0, seed=0.02, rest=0.0), stats.t.ppf(0.975, 3)
    for difference in (0.03, 0.06):
        shift = difference / (0.02 / 2)
        expected = stats.nct.sf(t, 3, shift) + stats.nct.cdf(-t, 3, shift)
        assert power(difference, parts, 200, 4) == pytest.approx(expected, abs=0.02)


def test_the_smallest_difference_has_its_power_and_grows_with_luck_and_comparisons() -> None:
    parts = Components(0.15, 0.01, 0.25)
    found = smallest(parts, 200, 3, comparisons=9, beside=9)
    assert power(found, parts, 200, 3, comparisons=9, beside=9) == pytest.approx(0.8, abs=1e-6)
    assert power(-found, parts, 200, 3, comparisons=9, beside=9) == pytest.approx(0.8, abs=1e-6)
    assert found > smallest(parts, 200, 3, beside=9) > smallest(parts, 200, 5, beside=9) > 0
    assert smallest(replace(parts, seed=0.03), 200, 3) > smallest(parts, 200, 3) > smallest(parts, 800, 3)
    assert smallest(Components(0.0, 0.0, 0.0), 200, 3) == 0.0


def test_luck_is_read_from_a_finished_table() -> None:
    def row(text: float, seed: float | None, rest: float | None) -> dict[str, Any]:
        return {"wer_diff_baseline_sd": {"text": text, "seed": seed, "rest": rest}}

    found = measured([row(0.1, 0.01, 0.2), row(0.1, 0.02, 0.2), row(0.1, 0.02, 0.2), row(0.5, 0.5, 0.9),
                      {"wer_diff_baseline_sd": None}, {}])
    assert found is not None and (found.text, found.rest) == pytest.approx((0.1, 0.2))  # without the collapsed one
    assert found.seed == pytest.approx((9e-4 / 3)**0.5)
    assert measured([row(0.1, None, None), {}]) is None


# -- sweeps whose truth is known ------------------------------------------------------------------------------------

SWEEPS, RESAMPLES = 60, 400


def test_intervals_hold_the_truth_where_the_naive_ones_do_not(simulation: ModuleType) -> None:
    """Seeds that differ by 2.5 points, and three speakers a text: both are luck that pooled utterances do not see."""
    world = simulation.World(texts=100, speakers=3, seed_sd=(0.025,),
                             differences=(-0.05, 0.05, 0.03, -0.03, 0, 0, 0, 0))
    shares, naive = ({kind: share for kind, share in simulation.coverage(
        list(simulation.sweeps(world, SWEEPS, RESAMPLES, 1, how)), world).items()}
        for how in (simulation.analyse, simulation.analyse_naively))
    # 480 intervals of a kind; those against one baseline share its luck, so that they count as about 60 to 100
    lowest = 0.95 - 2.6 * (0.95 * 0.05 / 80)**0.5
    assert all(share > lowest for share in shares.values()), shares
    assert naive["WER - base"] < 0.8 and naive["WER - baseline"] < 0.75, naive


def test_intervals_are_no_wider_than_they_must_be(simulation: ModuleType) -> None:
    """Where seeds do not differ, 95 % intervals hold the truth in hardly more than 97 %."""
    world = simulation.World()
    shares = simulation.coverage(list(simulation.sweeps(world, SWEEPS, RESAMPLES, 2)), world)
    assert all(0.92 < share < 0.985 for share in shares.values()), shares


@pytest.mark.parametrize("seed_sd", [0.0, 0.02])
def test_few_tables_claim_what_is_not_so(simulation: ModuleType, seed_sd: float) -> None:
    """Of tables without any difference, one is found in 5 %: of so few tables by chance in up to 12 %."""
    world, null = simulation.World(seed_sd=(seed_sd,)), np.full(8, True)
    found = list(simulation.sweeps(world, SWEEPS, RESAMPLES, 3))
    wrong = simulation.family_error(found, "WER - base", null)
    assert wrong <= stats.binom.ppf(0.99, SWEEPS, 0.05) / SWEEPS
    if seed_sd:
        naive = list(simulation.sweeps(world, SWEEPS, RESAMPLES, 3, simulation.analyse_naively))
        assert simulation.family_error(naive, "WER - base", null) > 0.25


def test_the_promised_power_is_met(simulation: ModuleType) -> None:
    world = simulation.World(seed_sd=(0.01,))
    parts = simulation.components(world, 15, RESAMPLES)
    d = smallest(parts, 200, 3, beside=8)
    e = smallest(parts, 200, 3, comparisons=8, beside=8)
    mixed = replace(world, differences=(d, -d, e, -e, 0, 0, 0, 0))
    found = list(simulation.sweeps(mixed, SWEEPS, RESAMPLES, 4))
    tolerance = 0.05 + 2 * (0.8 * 0.2 / (2 * SWEEPS))**0.5
    assert simulation.found_share(found, slice(0, 2), 0.05) == pytest.approx(0.8, abs=tolerance)
    assert simulation.found_share(found, slice(2, 4), 0.05 / 8) == pytest.approx(0.8, abs=tolerance)


def test_one_comparison_without_a_figure_says_nothing_of_the_others() -> None:
    rng = np.random.default_rng(0)
    good = [measure(mean_of(rng.normal(size=(40, 3)) + 0.2), 40, resamples=500) for _ in range(3)]
    nothing = measure(lambda counts: np.full((len(counts), 3), np.nan), 40, resamples=500)
    assert nothing.lost == 1.0 and interval(nothing).p is None
    mixed = spreads([good[0], nothing, *good[1:]])
    assert [mixed[0], *mixed[2:]] == spreads(good)
    found = interval(good[0], mixed[0])
    assert found.p is not None and 0 < found.p < 1 and found.ci95 is not None
    assert interval(nothing, mixed[1]).ci95 is None
