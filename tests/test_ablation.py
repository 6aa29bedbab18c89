"""The ablation's statistics against rows with planted errors and planted drift."""

from __future__ import annotations

import numpy as np
import pytest

from talker_rl.base.errors import DataError
from talker_rl.evaluation.ablation import Trained, arm_table, claims, notes, pareto

Row = dict
PROMPTS = 60


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
    return arm_table("biased", rows(0.3, 1.0, noise=0.0), found, baseline, resamples=800)


def pick(found: list[Row], variant: str, seed: int | None) -> Row:
    return next(r for r in found if (r["variant"], r["seed"]) == (variant, seed))


def says(found: list[Row], variant: str, claim: str) -> Row:
    return next(c for c in found if (c["variant"], c["claim"]) == (variant, claim))


@pytest.fixture(scope="module")
def known() -> list[Row]:
    """dpo lengthens by 10 %, `cure` by 2 %, `short` shortens by 10 %, `fickle` drifts little with one seed only."""
    return table(*(trained("dpo", s, 0.2, 1.10) for s in (0, 1)), *(trained("cure", s, 0.2, 1.02) for s in (0, 1)),
                 *(trained("short", s, 0.05, 0.90) for s in (0, 1)), trained("fickle", 0, 0.5, 1.02),
                 trained("fickle", 1, 0.5, 1.10))


def test_a_row_for_base_every_seed_and_every_pooled_variant(known: list[Row]) -> None:
    assert [(r["variant"], r["seed"]) for r in known] == [
        ("base", None), *((v, s) for v in ("dpo", "cure", "short", "fickle") for s in (0, 1, None))]
    one, both = pick(known, "cure", 1), pick(known, "cure", None)
    assert (one["n"], one["prompts"], both["n"], both["prompts"]) == (PROMPTS, PROMPTS, 2 * PROMPTS, PROMPTS)
    assert (one["steps"], one["loss"], one["train_seconds"], both["train_seconds"]) == (90, {"type": "cure"}, 12, 24)
    base = pick(known, "base", None)
    assert (base["duration_ratio"], base["drift"], base["wer_diff_base"], base["steps"]) == (1, 0, None, None)


def test_planted_drift_is_found_and_its_interval_covers_it(known: list[Row]) -> None:
    for variant, planted in (("dpo", 0.10), ("cure", 0.02), ("short", -0.10)):
        for seed in (0, 1, None):
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
    one, pooled = pick(twice, "dpo", 0), pick(twice, "dpo", None)
    for name in ("wer_ci95", "wer_diff_base_ci95", "duration_ratio_ci95"):
        assert pooled[name] == pytest.approx(one[name], abs=1e-9)


def test_a_claim_needs_every_seed(known: list[Row]) -> None:
    found = claims(known, "dpo")
    assert says(found, "cure", "drifts less than dpo")["holds"]
    assert says(found, "cure", "drifts less than dpo")["seeds"] == [0, 1]
    fickle = says(found, "fickle", "drifts less than dpo")
    assert not fickle["holds"] and "seed 0" in fickle["why"] and "below 0; seed 1" in fickle["why"]
    assert pick(known, "fickle", 0)["drift_vs_baseline_ci95"][1] < 0, "one seed alone would have claimed it"
    assert says(found, "short", "lower wer than dpo")["holds"]
    assert not says(found, "cure", "lower wer than dpo")["holds"]
    not_worse = says(found, "cure", "wer not worse than dpo")
    assert not_worse["holds"] and "includes 0" in not_worse["why"]
    assert not says(found, "fickle", "wer not worse than dpo")["holds"]
    assert says(found, "short", "speaks shorter than base")["holds"]
    assert says(found, "dpo", "speaks longer than base")["holds"]
    assert not any(c["variant"] == "dpo" and "dpo" in c["claim"] for c in found)


def test_the_front_and_the_answer_in_words(known: list[Row]) -> None:
    front = {p["variant"]: p["front"] for p in pareto(known)}
    # base never drifts, cure trades a little drift for WER, short is best in WER; dpo and fickle lose to cure
    assert front == {"base": True, "dpo": False, "cure": True, "short": True, "fickle": False}
    said = notes(known, claims(known, "dpo"), "dpo")
    assert len(said) == 2 and "seed 0 +10" in said[0] and said[1].endswith("worse: cure")


def test_failed_utterances_leave_the_pairs_and_one_prompt_has_no_interval() -> None:
    broken = rows(0.2, 1.1)
    broken[0] = {"prompt_id": "p0", "seed": 7, "status": "failed"}
    one = table(trained("dpo", 0, 0.2, 1.1), Trained("x", 0, broken, 1, {}, 0.0))
    whole = table(trained("dpo", 0, 0.2, 1.1), Trained("x", 0, rows(0.2, 1.1), 1, {}, 0.0))
    assert pick(one, "x", 0)["n"] == PROMPTS - 1
    assert pick(one, "x", 0)["duration_ratio"] == pytest.approx(pick(whole, "x", 0)["duration_ratio"], abs=5e-3)
    lone = arm_table("a", rows(0.3, 1.0)[:1], [Trained("dpo", 0, rows(0.2, 1.1)[:1], 1, {}, 0.0)], "dpo")
    assert pick(lone, "dpo", 0)["wer_ci95"] is None
    assert "too few prompts" in says(claims(lone, "dpo"), "dpo", "lower wer than base")["why"]
    with pytest.raises(DataError, match="scored for both"):
        arm_table("a", rows(0.3, 1.0)[:30], [Trained("dpo", 0, rows(0.2, 1.1)[30:], 1, {}, 0.0)], "dpo")
