"""Losses where they have moved as far: by hand on curves of a few texts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from talker_rl.evaluation.curves import CurveRow, curve_rows
from talker_rl.evaluation.equal_drift import corrected, curves, frontiers, furthest, left_out, table
from talker_rl.report.equal_drift import sections, text_table
from talker_rl.report.equal_drift import table as page_table

BASE = CurveRow("biased", "base", -1, 0, "p0", 0, "a b", "en", 1, 2, 1.0, 0.5, 0.4, False, 0.1, 10, 0.0, 10, 0.0, 0.9)
TEXTS = [("p0", "a b", 2), ("p1", "c d e", 3), ("p2", "f", 1)]


def spoken(
    variant: str, seed: int, step: int, kl: float, errors: tuple[int, ...], seconds: tuple[float, ...] = (1, 1, 1)
) -> list[CurveRow]:
    """One checkpoint, whose KL a token is the same on all texts."""
    return [replace(BASE, variant=variant, train_seed=seed, step=step, prompt_id=p, text=text, ref_words=words,
                    errors=e, duration=d, kl=kl * 10, kl_on_base=2 * kl * 10)
            for (p, text, words), e, d in zip(TEXTS, errors, seconds, strict=True)]


def base() -> list[CurveRow]:
    return [replace(row, variant="base", train_seed=-1, kl=0.0, kl_on_base=0.0)
            for row in spoken("base", -1, 0, 0.0, (1, 1, 1))]


def two() -> list[CurveRow]:
    """dpo reaches .04 and then .09 nats, other .09 at once."""
    return [*base(), *spoken("dpo", 0, 10, 0.04, (1, 0, 1), (1, 2, 1)),
            *spoken("dpo", 0, 20, 0.09, (0, 0, 0), (2, 2, 2)), *spoken("other", 0, 20, 0.09, (1, 1, 0))]


def test_figures_are_interpolated_in_the_root_of_kl() -> None:
    found = curves(two())["biased"]
    dpo, other = found["dpo", 0], found["other", 0]
    every = np.ones((1, 3))
    assert dpo.moved(every)[0] == pytest.approx([0, 0.04, 0.09]) and dpo.furthest == pytest.approx(0.09)
    assert furthest(found.values()) == pytest.approx(0.09)
    # WER 3/6 -> 2/6 at root .2 -> 0 at root .3
    for kl, wer in ((0.0, 3 / 6), (0.01, (3 / 6 + 2 / 6) / 2), (0.04, 2 / 6), (0.0625, 1 / 6), (0.09, 0.0)):
        assert dpo.at("wer", kl, every)[0] == pytest.approx(wer), kl
    assert dpo.at("duration_ratio", 0.04, every)[0] == pytest.approx(4 / 3)
    assert dpo.at("step", 0.0625, every)[0] == pytest.approx(15)
    assert other.at("wer", 0.0225, every)[0] == pytest.approx((3 / 6 + 2 / 6) / 2)  # halfway to root .3
    assert math.isnan(dpo.at("wer", 0.5, every)[0])  # it never came so far


def test_a_resample_is_weighed_whole_with_its_own_kl() -> None:
    rows = two()
    far = [replace(r, kl=r.kl * 4 if r.prompt_id == "p0" and r.kl else r.kl) for r in rows]
    dpo = curves(far)["biased"]["dpo", 0]
    counts = np.array([[3.0, 0, 0], [0, 3.0, 0]])
    assert dpo.moved(counts) == pytest.approx(np.array([[0, 0.16, 0.36], [0, 0.04, 0.09]]))
    # of p0 alone: WER 1/2 at KL .16 as at 0; of p1 alone 0 from .04 on
    assert dpo.at("wer", 0.04, counts) == pytest.approx([1 / 2, 0.0])


def test_axes() -> None:
    rows = two()
    assert curves(rows, "code_on_base")["biased"]["dpo", 0].furthest == pytest.approx(0.18)
    assert curves(rows, "utterance")["biased"]["dpo", 0].furthest == pytest.approx(0.9)
    longer = [replace(r, tokens=20) if r.step == 20 else r for r in rows]
    assert curves(longer)["biased"]["other", 0].furthest == pytest.approx(0.045)


def test_only_what_all_have_said_counts_and_texts_of_several_speakers_are_one() -> None:
    wide = [replace(r, prompt_id=f"{r.prompt_id}-{i}", text=f"{r.text} {i}") for r in two() for i in range(10)]
    rows = [r for r in wide if not (r.variant == "other" and r.prompt_id == "p1-0")]
    dpo = curves(rows)["biased"]["dpo", 0]
    assert dpo.kl[0].shape == (3, 29) and dpo.at("wer", 0.09, np.ones((1, 29)))[0] == pytest.approx(0)
    assert dpo.at("wer", 0.0, np.ones((1, 29)))[0] == pytest.approx(29 / 57)
    again = [replace(r, prompt_id=r.prompt_id + "-other") for r in two()]
    assert curves([*two(), *again])["biased"]["dpo", 0].kl[0].shape == (3, 3)
    # full weights have no exact KL, and so no place here
    without = [replace(r, kl=None) if r.variant == "other" else r for r in two()]
    assert list(curves(without)["biased"]) == [("dpo", 0)]


def test_the_table_compares_where_both_have_come() -> None:
    rng = np.random.default_rng(0)
    rows = []
    texts = [(f"p{i}", f"text {i}", 10) for i in range(60)]

    def many(variant: str, seed: int, step: int, kl: float, rate: float, seconds: float) -> list[CurveRow]:
        return [replace(BASE, variant=variant, train_seed=seed, step=step, prompt_id=p, text=t, ref_words=w,
                        errors=int(rng.binomial(w, rate)), duration=seconds, kl=10 * kl) for p, t, w in texts]

    rows += many("base", -1, 0, 0.0, 0.3, 1.0)
    for seed in (0, 1, 2):
        rows += many("dpo", seed, 10, 0.01, 0.25, 1.1) + many("dpo", seed, 20, 0.04, 0.2, 1.4)
        rows += many("slow", seed, 20, 0.01, 0.1, 1.0)
    rows += many("stray", 9, 20, 0.02, 0.2, 1.0)  # of a seed that the baseline has not
    found = curves(rows)
    made = {(r["variant"], r["target"]): r for r in corrected(table(found, "dpo", resamples=500))}
    assert set(made) == {("dpo", "arm"), ("slow", "arm"), ("slow", "pair")}
    slow, dpo = made["slow", "arm"], made["dpo", "arm"]
    assert slow["kl"] == dpo["kl"] == pytest.approx(0.01) and (slow["seeds"], slow["texts"]) == (3, 60)
    assert dpo["step"] == pytest.approx(10) and slow["step"] == pytest.approx(20)
    assert dpo["duration_ratio"] == pytest.approx(1.1) and slow["drift_diff_baseline"] == pytest.approx(-0.1)
    assert dpo["wer_diff_baseline"] is None and dpo["wer_diff_base_p"] is not None
    low, high = slow["wer_diff_baseline_ci95"]
    assert low < slow["wer"] - dpo["wer"] < high < 0 and slow["wer_diff_baseline_p"] < 0.05
    assert slow["wer_diff_baseline_p_holm"] == pytest.approx(slow["wer_diff_baseline_p"])  # one comparison of its kind
    assert slow["wer_diff_base_p_holm"] == pytest.approx(min(1, 2 * slow["wer_diff_base_p"]))
    # a target that one of them never reached
    assert {r["variant"] for r in table(found, "dpo", at_kl=[0.03], resamples=100) if r["target"] == "arm"} == {"dpo"}
    lines = {row["variant"]: row for row in frontiers(found, points=3, resamples=100)}
    line = lines["dpo"]
    assert line["kl"] == pytest.approx([0, 0.01, 0.04])
    assert line["duration_ratio"]["value"] == pytest.approx([1, 1.1, 1.4])
    measured = [(seed, step) for seed in (0, 1, 2) for step in (10, 20)]
    assert [(p["seed"], p["step"]) for p in line["checkpoints"]] == measured
    assert all(lo < v < hi for lo, v, hi in zip(*(line["wer"][k][1:] for k in ("low", "value", "high")), strict=True))


def test_rows_take_their_drift_by_candidate() -> None:
    said = {"status": "ok", "prompt_id": "p", "seed": 7, "candidate_id": "mine", "text": "a", "lang": "en",
            "substitutions": 1, "deletions": 0, "insertions": 1, "ref_words": 2, "duration": 1.5, "cap_hit": 0.0}
    drift = [{"of": "own", "candidate_id": "mine", "tokens": 5, "kl": 0.2},
             {"of": "base", "candidate_id": "theirs", "tokens": 4, "kl": 0.1, "ended": True, "p_stop_last": [0.1, 0.7]}]
    (row,) = curve_rows("arm", "dpo", 3, 10, [said, said | {"status": "failed"}], drift, {("p", 7): "theirs"})
    assert (row.errors, row.kl, row.tokens, row.kl_on_base, row.base_tokens, row.p_stop_at_base_stop) == (
        2, 0.2, 5, 0.1, 4, 0.7)
    (row,) = curve_rows("arm", "base", -1, 0, [said], (), {})
    assert (row.kl, row.kl_on_base, row.p_stop_at_base_stop) == (0.0, 0.0, None)


def test_a_kl_that_falls_again_is_gone_beyond_from_its_furthest_point() -> None:
    """Steps 10, 20 and 30 at KL .04, .09 and .01; in half of the resamples the furthest is short of .09."""
    rows = [*base(), *spoken("dpo", 0, 10, 0.04, (1, 0, 1)), *spoken("dpo", 0, 20, 0.09, (0, 0, 0)),
            *spoken("dpo", 0, 30, 0.01, (1, 1, 1))]
    rows = [replace(r, kl=r.kl * {"p0": 1.1, "p1": 1.0, "p2": 0.9}[r.prompt_id]) for r in rows]
    dpo = curves(rows)["biased"]["dpo", 0]
    counts = np.array([[1.0, 1, 1], [0, 1, 2], [2, 1, 0]])
    at = dpo.at("step", dpo.furthest, counts)
    assert at[0] == pytest.approx(20) and 20 < at[1] < 22 and 18 < at[2] < 20
    (row,) = [r for r in table({"biased": {("dpo", 0): dpo}}, "dpo", resamples=200) if r["target"] == "arm"]
    assert row["step"] == pytest.approx(20) and row["wer_ci95"] is not None


def test_what_cannot_be_compared_is_told() -> None:
    rows = two()
    still = [replace(r, variant="still", kl=0.0, kl_on_base=0.0) for r in rows if r.variant == "other"]
    full = [replace(r, variant="full", kl=None) for r in rows if r.variant == "other"]
    mute = [replace(r, variant="mute") for r in rows if r.variant == "other"][:1]
    rows = [*rows, *still, *full, *mute]
    found = curves(rows)
    assert list(found["biased"]) == [("dpo", 0), ("other", 0)] and found["biased"]["dpo", 0].kl[0].shape[1] == 3
    made = table(found, "dpo", at_kl=[0.01, 5.0], resamples=100)
    assert {row["kl"] for row in made if row["target"] == "arm"} == {0.01}
    assert left_out(rows, found, made, [0.01, 5.0]) == [
        "biased: at equal drift still, seed 0, is left out: it has not moved",
        "biased: at equal drift full, seed 0, is left out: its KL is not known (full weights)",
        "biased: at equal drift mute, seed 0, is left out: of step 20 only 1 of 3 utterances were scored",
        "biased: at equal drift of 5 nats dpo, other cannot be compared: not every training of it and of the baseline "
        "came so far"]
    assert not [row for row in made + frontiers(found, points=3, resamples=100) if "nan" in str(row)]


def test_texts_that_some_checkpoint_has_not_said_are_counted() -> None:
    wide = [replace(r, prompt_id=f"{r.prompt_id}-{i}", text=f"{r.text} {i}") for r in two() for i in range(10)]
    gone = {("dpo", "p0-0"), ("other", "p1-1")}
    rows = [r for r in wide if (r.variant, r.prompt_id) not in gone]
    assert left_out(rows, curves(rows), [])[0] == (
        "biased: at equal drift 28 of 30 texts count, those that every checkpoint has said")
    assert left_out(wide, curves(wide), []) == []


def test_a_figure_that_no_text_has_is_none() -> None:
    rows = [replace(r, pause_error=None) for r in two()]
    made = table(curves(rows), "dpo", resamples=100)
    assert all(row["pause_error"] is None and row["pause_error_diff_baseline_ci95"] is None for row in made)
    assert {*frontiers(curves(rows), points=3, resamples=100)[0]["pause_error"]["value"]} == {None}
    found = {"baseline": "dpo", "axis": "code", "equal_kl": corrected(made)}
    assert "nan" not in text_table(found) and "nan" not in str(page_table(found))


def test_the_page_draws_figures_on_a_scale_of_the_root_of_kl() -> None:
    found = curves(two())
    made = {"baseline": "dpo", "axis": "code", "frontiers": frontiers(found, points=3, resamples=50),
            "equal_kl": corrected(table(found, "dpo", resamples=50))}
    drift, tables = sections(made, {"dpo": "#112233", "other": "#445566"})
    figure = drift.items[0].views[""]  # type: ignore[union-attr]
    lines = {trace.name: trace for trace in figure.data}
    assert list(lines["dpo"].x) == pytest.approx([0.0, 0.15, 0.3]) and lines["dpo"].y[-1] == 0.0
    assert list(lines["dpo, checkpoints"].x) == pytest.approx([0.2, 0.3])
    assert "step 20<br>KL 0.0900" in lines["dpo, checkpoints"].text[-1]
    assert [float(text) for text in figure.layout.xaxis.ticktext] == pytest.approx(
        [value**2 for value in figure.layout.xaxis.tickvals])
    rows = tables.items[0].rows  # type: ignore[union-attr]
    assert [row[1].text for row in rows] == ["dpo", "other", "other"]
    assert sections({"frontiers": []}, {}) == []
    assert "at equal drift" in text_table(made) and text_table({}) == ""


def test_a_slow_baseline_is_compared_where_it_came_and_not_left_out_without_a_word() -> None:
    quick = [replace(row, variant=f"quick{i}", kl=row.kl * 2 if row.kl else row.kl)
             for i in range(6) for row in two() if row.variant == "dpo"]
    slow = [replace(row, kl=row.kl / 9 if row.kl else row.kl) for row in two() if row.variant in ("base", "dpo")]
    found = curves([*slow, *quick])
    made = [row for row in table(found, "dpo", resamples=100) if row["target"] == "arm"]
    assert [row["kl"] for row in made] == pytest.approx([0.01] * 7)
    assert left_out([*slow, *quick], found, made) == []


def test_resamples_that_came_less_far_are_counted_and_told() -> None:
    """Two of ten texts carry all of the KL, and the last piece is short: a resample without them falls behind it."""
    def at(step: int, kl: float) -> list[CurveRow]:
        wide = [replace(row, prompt_id=f"{row.prompt_id}-{i}", text=f"{row.text} {i}")
                for i in range(4) for row in spoken("dpo", 0, step, kl, (1, 0, 1))]
        return [row if row.prompt_id in ("p0-0", "p1-1") else replace(row, kl=0.0) for row in wide]

    start = [replace(row, variant="base", train_seed=-1, kl=0.0) for row in at(0, 0.0)]
    rows = [*start, *at(10, 0.95), *at(20, 1.0)]
    found = curves(rows)
    made = table(found, "dpo", resamples=400)
    assert 0.3 < made[0]["lost"] < 0.7
    (told,) = left_out(rows, found, made)
    assert f"dpo {made[0]['lost']:.0%} have none" in told
    assert {row["lost"] for row in table(curves(two()), "other", resamples=100)} == {0.0}


def test_a_first_checkpoint_that_has_not_moved_keeps_the_figures_of_the_base() -> None:
    still = [replace(row, step=1, kl=0.0) for row in two() if row.variant == "dpo" and row.step == 10]
    found = curves([*two(), *still])["biased"]["dpo", 0]
    assert found.at("wer", 0.0, np.ones((1, 3)))[0] == pytest.approx(3 / 6)
