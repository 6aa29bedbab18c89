"""Diagnostics on hand-made records with known answers, and against scipy and statsmodels where they say the same."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from talker_rl.diagnostics.length_bias import heatmap, implicit_reward, margin_curves, within_pairs
from talker_rl.diagnostics.noise import icc1, noise_margin, reward_noise
from talker_rl.diagnostics.stability import drift, limits, runaway
from talker_rl.diagnostics.summary import summarize, text_lines
from talker_rl.diagnostics.win_rate import preferences, win_rate

Row = dict[str, Any]


def pair(chosen: int, rejected: int, reward_w: float, reward_l: float, **more: Any) -> Row:
    """A pair row whose log-ratios are given; reference log-probs are -10 per code."""
    row: Row = {"step": 1, "held_out": False, "chosen_codes": chosen, "rejected_codes": rejected}
    for side, codes, ratio in (("chosen", chosen, reward_w), ("rejected", rejected, reward_l)):
        row |= {f"{side}_seconds": codes / 50, f"ref_{side}_logp": -10.0 * codes,
                f"policy_{side}_logp": -10.0 * codes + ratio}
    return row | {"margin_raw": reward_w - reward_l, "margin_common": 0.0} | more


def sample(seconds: float, ratio: float = 0.0, **more: Any) -> Row:
    return {"prompt_id": "p", "candidate_id": "p-0", "step": 1, "seconds": seconds, "codes": round(seconds * 50),
            "units": 4, "end_reason": "eos", "policy_logp": ratio - 5.0, "ref_logp": -5.0, "reward": 0.5, "wer": 0.0,
            "p_eos_last": [0.1] * 9 + [0.9], "p_eos_early": 0.0} | more


# -- 1 implicit reward ------------------------------------------------------------------------------------------------


def test_a_planted_slope_is_found_on_each_group() -> None:
    """Log-ratio 3 per second on held-out pairs, -2 on trained ones, 0.5 on samples; beta 0.1."""
    def rows(slope: float, held_out: bool) -> list[Row]:
        return [pair(w, v, 1 + slope * w / 50, 1 + slope * v / 50, held_out=held_out)
                for w, v in ((50, 100), (150, 75), (200, 25))]

    notes: list[str] = []
    found = implicit_reward([*rows(3.0, True), *rows(-2.0, False)],
                            [sample(s, 0.5 * s) for s in (1.0, 2.0, 4.0)], 0.1, notes)
    slopes = {name: fit and (fit["slope_per_second"], fit["pearson"], fit["spearman"], fit["r2"], fit["n"])
              for name, fit in found.items()}
    assert slopes["held_out"] == pytest.approx((0.3, 1.0, 1.0, 1.0, 6))
    assert slopes["train"] == pytest.approx((-0.2, -1.0, -1.0, 1.0, 6))
    assert slopes["samples"] == pytest.approx((0.05, 1.0, 1.0, 1.0, 3))
    assert found["held_out"] and found["held_out"]["intercept"] == pytest.approx(0.1)
    assert notes == []


def test_the_fit_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(0)
    seconds, ratio = rng.uniform(1, 5, 40), rng.normal(0, 2, 40)
    ratio += 0.7 * seconds
    found = implicit_reward([], [sample(s, r) for s, r in zip(seconds, ratio, strict=True)], 1.0, [])["samples"]
    ols = sm.OLS(ratio, sm.add_constant(seconds)).fit()
    assert found is not None
    assert (found["intercept"], found["slope_per_second"], found["r2"]) == pytest.approx((*ols.params, ols.rsquared))
    assert found["spearman"] == pytest.approx(stats.spearmanr(seconds, ratio).statistic)
    assert found["pearson"] == pytest.approx(np.corrcoef(seconds, ratio)[0, 1])


# -- 2 within pairs ---------------------------------------------------------------------------------------------------


def test_a_policy_that_prefers_the_longer_is_seen_within_pairs() -> None:
    """Its reward is the length: right on 3 pairs whose chosen is longer, wrong on 1 where it is shorter, 1 tie."""
    rows = [pair(w, v, w / 50, v / 50) for w, v in ((100, 50), (120, 100), (90, 60), (50, 100), (70, 70))]
    found = within_pairs(rows, [])["train"]
    assert found is not None
    assert found == pytest.approx({
        "n": 5, "reward_length_corr": 1.0, "sign_agreement": 1.0, "n_lengths_differ": 4, "accuracy": 3.5 / 5,
        "accuracy_chosen_longer": 1.0, "accuracy_chosen_shorter": 0.0, "n_chosen_longer": 3, "n_chosen_shorter": 1,
        "pick_shorter_accuracy": 1.5 / 5, "pick_longer_accuracy": 3.5 / 5,
    })


def test_a_policy_that_ignores_length_is_told_apart() -> None:
    """Right on every pair, whichever is longer: the split is even, and sign agreement is the share of longer chosen."""
    found = within_pairs([pair(w, v, 1.0, 0.0) for w, v in ((60, 50), (50, 60), (80, 40), (40, 80))], [])["train"]
    assert found is not None
    assert (found["accuracy_chosen_longer"], found["accuracy_chosen_shorter"], found["sign_agreement"]) == (1, 1, 0.5)
    assert found["reward_length_corr"] is None  # all margins are the same


# -- 3 heat map -------------------------------------------------------------------------------------------------------


def test_the_heat_map_holds_each_pair_in_its_bin() -> None:
    """Four pairs, two bins of 1 s to 2 s to 3 s an axis."""
    rows = [pair(50, 50, 0.0, 0.0), pair(50, 150, 1.0, 0.0), pair(60, 140, 0.0, 4.0), pair(150, 50, 2.0, 7.0)]
    found = heatmap(rows, [])
    assert found is not None
    assert found["chosen_edges"] == found["rejected_edges"] == pytest.approx([1.0, 2.0, 3.0])
    assert found["count"] == [[1, 2], [1, 0]]
    # log pi(rejected) - log pi(chosen): the reference gives -10 per code, the ratios come on top
    assert found["mean"][0] == pytest.approx([0.0, ((-1500 + 500 - 1) + (-1400 + 4 + 600)) / 2])
    assert found["mean"][1][0] == pytest.approx(-500 + 7 + 1500 - 2) and found["mean"][1][1] is None
    one = heatmap(rows[:1], [])
    assert one is not None and one["count"] == [[1]] and one["mean"] == [[0.0]]


# -- 4 margin curves --------------------------------------------------------------------------------------------------


def test_margin_curves_are_means_over_fixed_subsets() -> None:
    rows = [pair(w, v, raw, 0.0, step=step, margin_common=common)
            for step, raw, common in ((0, 0.0, 0.0), (5, 4.0, 1.0)) for w, v in ((60, 50), (70, 50), (50, 60))]
    rows[3] |= {"margin_raw": 8.0}
    notes: list[str] = []
    curves = {(c["step"], c["subset"]): (c["raw"], c["common"], c["n"]) for c in margin_curves(rows, notes)}
    assert curves[5, "chosen_longer"] == (6.0, 1.0, 2)
    assert curves[5, "chosen_shorter"] == (4.0, 1.0, 1)
    assert curves[5, "all"] == pytest.approx((16 / 3, 1.0, 3))
    assert curves[0, "all"] == (0.0, 0.0, 3) and len(curves) == 6 and notes == []
    without = [c for c in margin_curves(rows[:2], notes) if c["subset"] == "chosen_shorter"]
    assert without == [{"step": 0, "subset": "chosen_shorter", "raw": None, "common": None, "n": 0}] and notes


# -- 5 win rate -------------------------------------------------------------------------------------------------------


def test_the_length_controlled_fit_is_that_of_statsmodels() -> None:
    """Ties included: statsmodels takes fractions, the implementation splits them."""
    rng = np.random.default_rng(1)
    longer = rng.normal(0.3, 0.6, 300)
    x = np.tanh(longer / longer.std())
    wins = (rng.uniform(size=300) < 1 / (1 + np.exp(-(0.2 + 1.5 * x)))).astype(float)
    wins[::10] = 0.5
    found = win_rate(wins, longer, [])
    fit = sm.GLM(wins, sm.add_constant(x), family=sm.families.Binomial()).fit(tol=1e-12)
    assert found is not None
    assert (found["theta"], found["coef_length"]) == pytest.approx(tuple(fit.params), abs=1e-4)
    assert found["length_controlled"] == pytest.approx(1 / (1 + math.exp(-fit.params[0])), abs=1e-4)
    assert found["raw"] == pytest.approx(wins.mean()) and found["n"] == 300


def test_a_win_rate_that_length_alone_makes_is_controlled_away() -> None:
    """Wins by length only, and longer more often than not: far above half raw, near half at equal length."""
    rng = np.random.default_rng(2)
    longer = rng.normal(0.5, 0.5, 4000)
    wins = (rng.uniform(size=4000) < 1 / (1 + np.exp(-3 * np.tanh(longer / longer.std())))).astype(float)
    found = win_rate(wins, longer, [])
    assert found is not None and found["raw"] > 0.7 and abs(found["length_controlled"] - 0.5) < 0.06


@pytest.mark.parametrize(
    ("wins", "longer", "why"),
    [
        ([1, 1, 1], [0.1, 0.2, -0.1], "one side always wins"),
        ([1, 0, 1], [0.2, 0.2, 0.2], "does not vary"),
        ([1, 1, 0, 0], [0.4, 0.1, -0.1, -0.3], "separates"),
        ([0, 0.5, 1], [0.4, 0.1, -0.1], "separates"),
    ],
)
def test_a_fit_that_does_not_exist_is_null_with_a_note(wins: list[float], longer: list[float], why: str) -> None:
    notes: list[str] = []
    found = win_rate(np.array(wins, dtype=float), np.array(longer), notes)
    assert found is not None and found["raw"] == np.mean(wins)
    assert found["length_controlled"] is None and found["theta"] is None and why in notes[0]


def test_equal_lengths_leave_the_raw_rate() -> None:
    found = win_rate(np.array([1.0, 0.0, 1.0, 1.0]), np.zeros(4), [])
    assert found == {"raw": 0.75, "length_controlled": 0.75, "theta": pytest.approx(math.log(3)), "coef_length": None,
                     "n": 4}


def test_preference_is_by_wer_then_reward_and_failures_do_not_vote() -> None:
    def row(seed: int, wer: float, reward: float | None, duration: float, status: str = "ok") -> Row:
        return {"prompt_id": "p", "seed": seed, "status": status, "wer": wer, "reward": reward, "duration": duration}

    base = [row(0, 0.2, 0.5, 1.0), row(1, 0.0, 0.5, 1.0), row(2, 0.0, 0.5, 1.0), row(3, 0, 0, 0, "failed"),
            row(4, 0.0, None, 2.0)]
    trained = [row(4, 0.0, 0.9, 1.5), row(0, 0.0, 0.1, 1.2), row(1, 0.0, 0.4, 1.1), row(2, 0.0, 0.5, 0.8),
               row(3, 0.0, 0.5, 1.0), row(9, 0.0, 0.5, 1.0)]
    wins, longer = preferences(base, trained)
    assert wins.tolist() == [0.5, 1.0, 0.0, 0.5]
    assert longer == pytest.approx([-0.5, 0.2, 0.1, -0.2])


def test_silence_loses_against_a_text_said_twice_over() -> None:
    """Its WER of 1 is less than 2, and it said nothing."""
    counts = {"ref_words": 1.0, "substitutions": 0.0}
    base = [{"prompt_id": "p", "seed": 0, "status": "ok", "wer": 2.0, "reward": 0.3, "duration": 1.0, **counts,
             "deletions": 0.0, "insertions": 2.0}]
    silent = [base[0] | {"wer": 1.0, "reward": 0.0, "deletions": 1.0, "insertions": 0.0}]
    assert preferences(base, silent)[0].tolist() == [0.0]
    assert preferences(silent, base)[0].tolist() == [1.0]
    assert preferences(silent, silent)[0].tolist() == [0.5]


# -- 6 drift ----------------------------------------------------------------------------------------------------------


def dev(step: int, duration: float, errors: int = 0, status: str = "ok") -> Row:
    return {"step": step, "status": status, "duration": duration, "ref_words": 4, "substitutions": errors,
            "deletions": 0, "insertions": 0}


def test_drift_against_the_reference() -> None:
    rows = [*(dev(0, s) for s in (1.0, 2.0, 3.0)), *(dev(5, s, 1) for s in (1.5, 3.0, 4.5)), dev(5, 99.0, 0, "failed")]
    start, later = drift(rows, {0: {"kl_per_code": 0.0}, 5: {"kl_per_code": 0.02}}, [])
    assert later == pytest.approx({
        "step": 5, "duration_mean": 3.0, "duration_p50": 3.0, "duration_p95": np.percentile([1.5, 3.0, 4.5], 95),
        "ratio_to_reference": 1.5, "seconds_per_unit": 9 / 12, "kl_per_code": 0.02, "wer": 0.25, "n": 3,
    })
    assert (start["ratio_to_reference"], start["wer"], start["kl_per_code"]) == (1.0, 0.0, 0.0)
    notes: list[str] = []
    assert [row["ratio_to_reference"] for row in drift(rows[3:], {}, notes)] == [None] and len(notes) == 2


# -- 7, 8 run-away, collapse, limits ----------------------------------------------------------------------------------


def heard(duration: float, silence: float = 0.0, repeated: float = 0.0) -> Row:
    return {"status": "ok", "duration": duration, "lead_silence": silence, "tail_silence": 0.0,
            "max_inner_silence": 0.0, "repeated_ngram": repeated}


def test_a_planted_run_away_is_seen_on_its_side() -> None:
    """Of ten samples one was cut at 10 s and one stopped at 0.3 s, where the base takes 1.9 to 2.1 s for 4 words."""
    base = [{"prompt_id": "p", "seconds": s, "units": 4} for s in np.linspace(1.9, 2.1, 101)]
    usual = [sample(2.0) for _ in range(8)]
    away = sample(10.0, end_reason="max_tokens", p_eos_last=[0.0] * 10)
    short = sample(0.3, p_eos_last=[0.5, 0.7])
    rows = [*(heard(2.0, 0.2) for _ in range(9)), heard(10.0, 8.0, 0.5)]
    found = runaway([*usual, away, short], rows, base, [])
    assert found["cap_hit_rate"] == found["above_p99"] == found["below_p1"] == found["early_eos_rate"] == 0.1
    assert found["p_eos_last"] == pytest.approx([0.1] * 8 + [(8 * 0.1 + 0.5) / 9, (8 * 0.9 + 0.7) / 9])
    assert found["silence_share"] == pytest.approx((9 * 0.1 + 0.8) / 10)
    assert found["repetition"] == pytest.approx(0.05) and found["n"] == 10
    calm = runaway(usual, rows[:9], base, [])
    assert (calm["cap_hit_rate"], calm["above_p99"], calm["below_p1"], calm["early_eos_rate"]) == (0, 0, 0, 0)


def test_a_longer_text_is_no_run_away() -> None:
    base = [{"prompt_id": "p", "seconds": s, "units": 4} for s in (1.9, 2.0, 2.1)]
    assert runaway([sample(5.0, units=10)], [], base, [])["above_p99"] == 0.0
    assert runaway([sample(5.0, units=4)], [], base, [])["above_p99"] == 1.0


def test_limit_violations_count_prompts_with_a_limit_only() -> None:
    rows = [sample(2.0, prompt_id="a"), sample(2.5, prompt_id="a"), sample(9.0, prompt_id="b")]
    assert limits(rows, {"a": 2.0}, []) == {"n": 2, "violations": 1, "rate": 0.5}
    notes: list[str] = []
    assert limits(rows, {}, notes) is None and "max_seconds" in notes[0]


# -- reward noise -----------------------------------------------------------------------------------------------------

SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
"""Table 2 of Shrout & Fleiss (1979), whose ICC(1,1) is 0.17."""


def test_icc_is_that_of_the_paper_and_of_the_analysis_of_variance() -> None:
    found = icc1(SHROUT_FLEISS)
    assert found is not None
    icc, (low, high) = found
    assert round(icc, 2) == 0.17
    ratio = stats.f_oneway(*SHROUT_FLEISS).statistic
    assert icc == pytest.approx((ratio - 1) / (ratio + 3))
    # the interval holds those values of ICC under which the observed F is between its 2.5th and 97.5th percentile
    for bound, share in ((low, 0.975), (high, 0.025)):
        scale = 1 + 4 * bound / (1 - bound)
        assert stats.f.cdf(ratio / scale, 5, 18) == pytest.approx(share)


def test_planted_noise_is_measured() -> None:
    """Sd 0.2 between and 0.05 within candidates: ICC 0.941; two decodes differ by less than 0.139 in 95 %."""
    rng = np.random.default_rng(3)
    values = rng.normal(0, 0.2, (3000, 1)) + rng.normal(0, 0.05, (3000, 4))
    rows = [{"candidate_id": str(i), "reward": v, "wer": 0.0} for i, row in enumerate(values) for v in row]
    notes: list[str] = []
    found = reward_noise(rows, notes)
    assert found is not None
    assert found["icc"] == pytest.approx(0.941, abs=0.005) and found["sd_within"] == pytest.approx(0.05, abs=0.001)
    assert found["icc_ci95"][0] < 0.941 < found["icc_ci95"][1]
    assert found["suggested_margin"] == pytest.approx(1.96 * 0.05 * math.sqrt(2), abs=0.004)
    assert (found["n_candidates"], found["decodes"], found["wer_icc"], found["wer_sd_within"]) == (3000, 4, None, 0.0)
    assert any("wer_icc" in note for note in notes)


def test_the_margin_is_what_at_most_5_percent_exceed() -> None:
    quiet = np.zeros((95, 2))
    loud = np.column_stack([np.zeros(5), np.full(5, 0.3)])
    assert noise_margin(np.vstack([quiet, loud])) == 0.0  # 5 of 100 exceed 0
    assert noise_margin(np.vstack([quiet[:94], loud, loud[:1]])) == 0.3


def test_failed_decodes_leave_their_candidate_out() -> None:
    rows = [{"candidate_id": c, "reward": r, "wer": 0.0} for c, r in
            (("a", 0.1), ("a", 0.1), ("b", 0.5), ("b", 0.5), ("c", 0.9), ("c", None))]
    notes: list[str] = []
    found = reward_noise(rows, notes)
    assert found is not None and (found["n_candidates"], found["icc"]) == (2, 1.0)
    assert "1 candidate left out" in notes[0]
    assert reward_noise(rows[-2:], notes) is None and reward_noise([], notes) is None


# -- nothing there ----------------------------------------------------------------------------------------------------


def summary_of(pairs: list[Row], samples: list[Row], rows: list[Row], dev_rows: list[Row]) -> Row:
    return summarize(variant="v", beta=0.1, step=1, pairs=pairs, samples=samples, rows=rows, base_rows=rows,
                     base_lengths=[{"prompt_id": s["prompt_id"], "seconds": s["seconds"], "units": s["units"]}
                                   for s in samples],
                     dev_rows=dev_rows, moved={}, max_seconds={}, noise=None, pushes={},
                     more_notes=["reward_noise: no"])


SPOKEN = heard(2.0) | {"prompt_id": "p", "seed": 0, "wer": 0.0, "reward": 0.5, "text": "one two", "lang": "en",
                       "transcript": "one two", "spans": [0.1, 0.5, 0.6, 1.0], "ref_words": 2}
SCENES: dict[str, tuple[list[Row], list[Row], list[Row], list[Row]]] = {
    "empty": ([], [], [], []),
    "one": ([pair(50, 50, 0.0, 0.0)], [sample(2.0)], [SPOKEN], [dev(1, 2.0)]),
    "constant": ([pair(50, 50, 0.0, 0.0, held_out=h) for h in (True, False) for _ in range(3)],
                 [sample(2.0) for _ in range(3)], [SPOKEN | {"seed": k} for k in range(3)],
                 [dev(step, 2.0) for step in (0, 1) for _ in range(2)]),
    "flat reward": ([pair(50, 60, 1.0, 1.0), pair(70, 80, 1.0, 1.0)], [sample(1.0), sample(2.0)], [SPOKEN],
                    [dev(0, 0.0)]),
    "nothing said": ([pair(50, 60, 1.0, 0.5)],
                     [sample(0.0, policy_logp=None, ref_logp=None, end_reason="empty", p_eos_last=[], units=0)],
                     [SPOKEN | {"status": "failed"}], [dev(0, 1.0, status="failed")]),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scene", SCENES)
def test_what_cannot_be_computed_is_null_with_a_note_and_never_a_nan(scene: str) -> None:
    summary = summary_of(*SCENES[scene])
    json.dumps(summary, allow_nan=False)
    said = " ".join(summary["notes"])
    for name in ("implicit_reward", "within_pairs"):
        for group, value in summary[name].items():
            assert value is not None or f"{name}.{group}" in said
    for name in ("heatmap", "win_rate", "limits", "reward_noise"):
        assert summary[name] is not None or name in said
    for name, value in summary["runaway"].items():
        assert value is not None or name in said
    assert summary["drift"] or "drift" in said
    assert all(isinstance(line, str) for line in text_lines(summary))


def test_flat_rewards_have_slope_0_and_no_correlation() -> None:
    fit = summary_of(*SCENES["flat reward"])["implicit_reward"]["train"]
    assert fit == {"slope_per_second": 0.0, "intercept": 0.1, "r2": None, "pearson": None, "spearman": None, "n": 4}
