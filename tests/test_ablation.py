"""The ablation's statistics against rows with planted errors and planted drift."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from talker_rl.base.errors import DataError
from talker_rl.evaluation.ablation import (
    Trained,
    arm_table,
    claims,
    corrected,
    notes,
    of_failures,
    of_intervals,
    of_trainings,
    pareto,
)
from talker_rl.evaluation.nested import holm, interval, measure, pooled, spreads

Row = dict
PROMPTS = 60
SEEDS = (0, 1, 2)


def rows(errors: float, stretch: float, seed: int = 0, noise: float = 0.02) -> list[Row]:
    """Utterances of 10 words with a planted error rate and a planted factor on base's durations."""
    texts = np.random.default_rng(0)
    rng = np.random.default_rng((seed, round(errors * 1000), round(stretch * 1000)))
    out = []
    for i in range(PROMPTS):
        seconds = texts.uniform(2, 4)
        wrong = int(rng.binomial(10, errors))
        out.append({
            "prompt_id": f"p{i}", "seed": 7, "status": "ok", "substitutions": wrong, "deletions": 0, "insertions": 0,
            "ref_words": 10, "wer": wrong / 10, "pause_error": 0.1, "pause_error_scorable": 0.1,
            "pause_scorable_share": 1.0, "duration": seconds * stretch * (1 + noise * rng.normal()),
            "reference_seconds": None, "cap_hit": False, "reward_errors": wrong,
        })  # fmt: skip
    return out


def trained(variant: str, seed: int, errors: float, stretch: float) -> Trained:
    return Trained(variant, seed, rows(errors, stretch, seed), 90, {"type": variant}, 12.0)


def table(*found: Trained, baseline: str = "dpo") -> list[Row]:
    return corrected(arm_table("biased", rows(0.3, 1.0, noise=0.0), found, baseline, resamples=800))


def pick(found: list[Row], variant: str, seed: int | None) -> Row:
    return next(r for r in found if (r["variant"], r["seed"]) == (variant, seed))


def says(found: list[Row], variant: str, claim: str) -> Row:
    return next(c for c in found if (c["variant"], c["claim"]) == (variant, claim))


@pytest.fixture(scope="module")
def known() -> list[Row]:
    """dpo lengthens by 10 %, `cure` by 2 %, `short` shortens by 10 %, `fickle` drifts little with one seed only."""
    return table(*(trained("dpo", s, 0.2, 1.10) for s in SEEDS), *(trained("cure", s, 0.2, 1.02) for s in SEEDS),
                 *(trained("short", s, 0.05, 0.90) for s in SEEDS), trained("fickle", 0, 0.5, 1.0),
                 trained("fickle", 1, 0.5, 1.12), trained("fickle", 2, 0.5, 1.12))


def test_a_row_for_base_every_seed_and_every_pooled_variant(known: list[Row]) -> None:
    assert [(r["variant"], r["seed"]) for r in known] == [
        ("base", None), *((v, s) for v in ("dpo", "cure", "short", "fickle") for s in (*SEEDS, None))]
    one, both = pick(known, "cure", 1), pick(known, "cure", None)
    assert (one["n"], one["prompts"], both["n"], both["prompts"]) == (PROMPTS, PROMPTS, 3 * PROMPTS, PROMPTS)
    assert (one["steps"], one["loss"], one["train_seconds"], both["train_seconds"]) == (90, {"type": "cure"}, 12, 36)
    base = pick(known, "base", None)
    assert (base["duration_ratio"], base["drift"], base["wer_diff_base"], base["steps"]) == (1, 0, None, None)


def test_planted_drift_is_found_and_its_interval_covers_it(known: list[Row]) -> None:
    for variant, planted in (("dpo", 0.10), ("cure", 0.02), ("short", -0.10)):
        for seed in (*SEEDS, None):
            row = pick(known, variant, seed)
            low, high = row["duration_ratio_ci95"]
            assert row["drift"] == pytest.approx(row["duration_ratio"] - 1) == pytest.approx(planted, abs=0.01)
            assert low - 0.003 < 1 + planted < high + 0.003 and high - low < 0.02
    cure = pick(known, "cure", 0)
    assert cure["drift_vs_baseline"] == pytest.approx(cure["drift"] - pick(known, "dpo", 0)["drift"])
    assert cure["drift_vs_baseline"] == pytest.approx(-0.08, abs=0.01) and cure["drift_vs_baseline_ci95"][1] < -0.06
    # shortening is drift as well: |-0.1| is no less than |+0.1|
    low, high = pick(known, "short", None)["drift_vs_baseline_ci95"]
    assert low < 0.004 and high > -0.004
    assert pick(known, "dpo", 0)["drift_vs_baseline"] is None is pick(known, "dpo", None)["wer_diff_baseline_ci95"]


def test_pooling_weighs_seeds_alike_and_does_not_count_a_prompt_twice() -> None:
    both = table(trained("dpo", 0, 0.2, 1.1), trained("dpo", 1, 0.2, 1.1),
                 trained("x", 0, 0.2, 1.0), trained("x", 1, 0.4, 1.2))
    wers = [pick(both, "x", seed)["wer"] for seed in (0, 1)]
    assert pick(both, "x", None)["wer"] == pytest.approx(np.mean(wers))
    assert pick(both, "x", None)["duration_ratio"] == pytest.approx(
        np.mean([pick(both, "x", seed)["duration_ratio"] for seed in (0, 1)]))
    same = rows(0.2, 1.1)  # the same speech under two training seeds carries no more information than under one
    twice = table(Trained("dpo", 0, same, 1, {}, 0), Trained("dpo", 1, same, 1, {}, 0))
    one, both = pick(twice, "dpo", 0), pick(twice, "dpo", None)
    for name in ("wer_ci95", "wer_diff_base_ci95", "duration_ratio_ci95"):
        (low, high), (low_one, high_one) = both[name], one[name]
        assert high - low == pytest.approx(high_one - low_one, rel=0.08)  # by Student's t, and by percentiles


def test_a_variants_row_is_over_texts_and_seeds_and_one_trainings_over_texts(known: list[Row]) -> None:
    assert {row["seed"]: row["intervals"] for row in known if row["variant"] == "cure"} == {
        0: "texts", 1: "texts", 2: "texts", None: "texts and seeds"}
    fickle = pick(known, "fickle", None)
    ends = [pick(known, "fickle", seed)["duration_ratio_ci95"] for seed in SEEDS]
    low, high = fickle["duration_ratio_ci95"]
    assert low < min(end[0] for end in ends) and high > max(end[1] for end in ends), "seeds that differ say little"
    ratios = [pick(known, "fickle", seed)["duration_ratio"] for seed in SEEDS]
    assert fickle["duration_ratio"] == pytest.approx(np.mean(ratios))
    assert pick(known, "cure", 0)["wer_diff_base_p"] is None is pick(known, "dpo", None)["wer_diff_baseline_p"]
    parts = fickle["wer_diff_baseline_sd"]
    assert set(parts) == {"text", "seed", "rest"} and parts["rest"] > 0
    one = pick(table(trained("dpo", 0, 0.2, 1.1)), "dpo", None)
    assert one["intervals"] == "texts" and 0 < one["wer_diff_base_p"] < 0.05


def test_the_rows_figures_are_those_of_nested_estimates() -> None:
    """What the table does with rows is what analysis/sweep_simulation.py has tried on sums."""
    found = [trained("dpo", s, 0.2, 1.1) for s in SEEDS] + [trained("x", s, 0.15, 1.0) for s in SEEDS] + [
        trained("y", s, 0.25, 1.0) for s in SEEDS]
    errors = {v: np.array([[r["substitutions"] for r in sorted(t.rows, key=lambda r: r["prompt_id"])]
                           for t in found if t.variant == v], dtype=float).T for v in ("dpo", "x", "y")}
    words = np.full((PROMPTS, 1), 10.0)
    both = [measure(lambda counts, mine=errors[v]: pooled(counts, mine, words) - pooled(counts, errors["dpo"], words),
                    PROMPTS, resamples=800) for v in ("x", "y")]
    by_hand = [interval(one, spread) for one, spread in zip(both, spreads(both), strict=True)]
    for variant, e in zip(("x", "y"), by_hand, strict=True):
        row = pick(table(*found), variant, None)
        assert row["wer_diff_baseline"] == pytest.approx(e.value)
        assert row["wer_diff_baseline_ci95"] == pytest.approx(e.ci95)
        assert row["wer_diff_baseline_p"] == pytest.approx(e.p)


def test_p_values_are_corrected_over_all_arms() -> None:
    arms = []
    for arm, errors in (("a", 0.25), ("b", 0.22), ("c", 0.2)):
        arms += arm_table(arm, rows(0.3, 1.0), [trained("dpo", s, 0.2, 1.1) for s in SEEDS]
                          + [trained("x", s, errors, 1.0) for s in SEEDS], "dpo", resamples=300)
    whole = corrected(arms)
    for kind, compared in (("wer_diff_baseline", 3), ("wer_diff_base", 6)):
        p = [row[f"{kind}_p"] for row in whole if row[f"{kind}_p"] is not None]
        assert len(p) == compared
        assert [row[f"{kind}_p_holm"] for row in whole if row[f"{kind}_p"] is not None] == holm(p)
    assert all(row["wer_diff_base_p_holm"] is None for row in arms), "not before all arms are there"


def test_a_claim_is_of_the_variants_row_after_the_correction(known: list[Row]) -> None:
    found = claims(known, "dpo")
    cure = says(found, "cure", "drifts less than dpo")
    assert cure["holds"] and cure["seeds"] == [0, 1, 2]
    assert re.fullmatch(r"-[78]\.\d points \[-[78]\.\d, -[78]\.\d\], p (< )?0\.0\d+, after Holm (< )?0\.0\d+, "
                        r"60 texts x 3 seeds", cure["why"]), cure["why"]
    fickle = says(found, "fickle", "drifts less than dpo")
    assert not fickle["holds"]
    assert pick(known, "fickle", 0)["drift_vs_baseline_ci95"][1] < 0, "one seed alone would have claimed it"
    assert says(found, "short", "lower wer than dpo")["holds"]
    assert not says(found, "cure", "lower wer than dpo")["holds"]
    assert says(found, "cure", "wer not worse than dpo")["holds"]
    assert not says(found, "fickle", "wer not worse than dpo")["holds"]
    assert says(found, "short", "speaks shorter than base")["holds"]
    assert not says(found, "short", "speaks longer than base")["holds"]
    longer = says(found, "dpo", "speaks longer than base")
    assert longer["holds"] and longer["why"].startswith("longer by 10.")
    assert not any(c["variant"] == "dpo" and "dpo" in c["claim"] for c in found)
    uncorrected = [{**row, "drift_vs_baseline_p_holm": 0.06} for row in known]
    assert not says(claims(uncorrected, "dpo"), "cure", "drifts less than dpo")["holds"]
    one = table(trained("dpo", 0, 0.2, 1.1), trained("x", 0, 0.05, 1.0))
    assert says(claims(one, "dpo"), "x", "lower wer than dpo")["why"].endswith(
        "60 texts x 1 seed, which says nothing of other trainings")


def test_three_speakers_of_a_text_are_one_text() -> None:
    """What several speakers say of a text is resampled together, so that they narrow no interval."""
    one = [dict(r, text=f"text {r['prompt_id']}", lang="en") for r in rows(0.2, 1.1)]
    three = [dict(r, prompt_id=f"{r['prompt_id']}-{speaker}") for r in one for speaker in "abc"]
    base = [dict(r, text=f"text {r['prompt_id']}", lang="en") for r in rows(0.3, 1.0)]
    base3 = [dict(r, prompt_id=f"{r['prompt_id']}-{speaker}") for r in base for speaker in "abc"]
    narrow, wide = (
        pick(arm_table("a", before, [Trained("dpo", s, after, 1, {}, 0) for s in SEEDS], "dpo", resamples=2000),
             "dpo", None)
        for before, after in ((base, one), (base3, three)))
    assert (wide["prompts"], wide["n"]) == (PROMPTS, 9 * PROMPTS)
    for name in ("wer_ci95", "wer_diff_base_ci95", "duration_ratio_ci95"):
        assert np.diff(wide[name]) == pytest.approx(np.diff(narrow[name]), rel=0.05), name


def test_the_front_and_the_answer_in_words(known: list[Row]) -> None:
    front = {p["variant"]: p["front"] for p in pareto(known)}
    # base never drifts, cure trades a little drift for WER, short is best in WER; dpo and fickle lose to cure
    assert front == {"base": True, "dpo": False, "cure": True, "short": True, "fickle": False}
    said = notes(known, claims(known, "dpo"), "dpo")
    assert "seed 0 +10" in said[0] and said[1].endswith("worse: cure")
    assert "over texts and 3 training seeds" in of_intervals(known) and "the 3 comparisons" in of_intervals(known)
    one = table(trained("dpo", 0, 0.2, 1.1), trained("x", 0, 0.2, 1.1))
    assert "nothing of other trainings" in of_intervals(one)


def test_trainings_that_ended_after_different_numbers_of_steps_are_told_of() -> None:
    short = replace(trained("x", 1, 0.2, 1.1), steps=40)
    mixed = table(trained("dpo", 0, 0.2, 1.1), trained("dpo", 1, 0.2, 1.1), trained("x", 0, 0.2, 1.1), short)
    assert pick(mixed, "x", None)["steps"] is None and pick(mixed, "dpo", None)["steps"] == 90
    assert of_trainings(mixed) == [
        "biased: trainings ended after different numbers of steps (dpo 90, x 40 or 90), so that the table is not at "
        "equal steps"]
    assert of_trainings(table(trained("dpo", 0, 0.2, 1.1), trained("x", 0, 0.2, 1.1))) == []


def test_failed_utterances_leave_the_pairs_and_one_prompt_has_no_interval() -> None:
    broken = rows(0.2, 1.1)
    broken[0] = {"prompt_id": "p0", "seed": 7, "status": "failed"}
    one = table(trained("dpo", 0, 0.2, 1.1), Trained("x", 0, broken, 1, {}, 0.0))
    whole = table(trained("dpo", 0, 0.2, 1.1), Trained("x", 0, rows(0.2, 1.1), 1, {}, 0.0))
    assert pick(one, "x", 0)["n"] == PROMPTS - 1
    assert pick(one, "x", 0)["duration_ratio"] == pytest.approx(pick(whole, "x", 0)["duration_ratio"], abs=5e-3)
    lone = arm_table("a", rows(0.3, 1.0)[:1], [Trained("dpo", 0, rows(0.2, 1.1)[:1], 1, {}, 0.0)], "dpo")
    assert pick(lone, "dpo", 0)["wer_ci95"] is None
    assert "1 text: too few for an interval" in says(claims(lone, "dpo"), "dpo", "lower wer than base")["why"]
    with pytest.raises(DataError, match="scored for both"):
        arm_table("a", rows(0.3, 1.0)[:30], [Trained("dpo", 0, rows(0.2, 1.1)[30:], 1, {}, 0.0)], "dpo")


def test_no_claim_is_made_of_a_variant_of_which_too_little_was_scored() -> None:
    """What fails is not just any: here all utterances with errors are gone, and WER looks like 0."""
    def deaf(seed: int) -> Trained:
        one = trained("deaf", seed, 0.2, 1.0)
        return replace(one, rows=[row | {"status": "ok" if row["substitutions"] == 0 or row["prompt_id"] in ("p0", "p1")
                                         else "failed"} for row in one.rows])

    found = table(*(trained("dpo", s, 0.2, 1.10) for s in SEEDS), *(deaf(s) for s in SEEDS))
    assert pick(found, "deaf", None)["wer"] < 0.15
    for claim in ("lower wer than base", "wer not worse than dpo", "drifts less than dpo"):
        told = says(claims(found, "dpo"), "deaf", claim)
        assert not told["holds"] and "of too few utterances" in told["why"]
    assert of_failures(found)[0].startswith("biased: of deaf, seed 0, only ") and len(of_failures(found)) == 3
    assert says(claims(found, "dpo"), "dpo", "lower wer than base")["holds"]
    against = table(*(trained("dpo", s, 0.2, 1.10) for s in SEEDS), *(deaf(s) for s in SEEDS), baseline="deaf")
    assert not says(claims(against, "deaf"), "dpo", "wer not worse than deaf")["holds"]
