"""Figures as they are written: differences of rates in points, and no zero with a sign, on pages too."""

from __future__ import annotations

import re
from typing import Any

import pytest

from talker_rl.base.figures import bare, chance, changed, longer, relative, span, written
from talker_rl.evaluation.seed_tts_rows import lines
from talker_rl.report.ablation import table
from talker_rl.report.blocks import number, with_interval
from talker_rl.report.model import ReportData
from talker_rl.report.page import TABLE, headline, render, round_rows, text_table
from talker_rl.report.sweep_table import text_table as sweep_table

SIGNED_ZERO = re.compile(r"(?<![\w.\d])[+\-\u2212]0(\.0+)?(?![.\d])")


@pytest.mark.parametrize(
    ("value", "pattern", "text"),
    [
        (0.1234, "{:.2%}", "12.34%"), (-0.0000001, "{:.2%}", "0.00%"), (-0.0, "{:.3f}", "0.000"),
        (-0.071, "{:+.1%}", "-7.1 points"), (0.071, "{:+.2%}", "+7.10 points"), (-0.0004, "{:+.1%}", "0.0 points"),
        (0.0, "{:+.1%}", "0.0 points"), (-0.00001, "{:+.3f}", "0.000"), (0.0, "{:+.3f}", "0.000"),
        (-0.05, "{:+.3f}", "-0.050"), (10, "{:d}", "10"), (-20.0, "{:+.0f}", "-20"), (-0.2, "{:+.0f}", "0"),
        (None, "{:+.1%}", "–"), (float("inf"), "{:+.1f}", "+inf"),
    ],
)
def test_a_figure(value: Any, pattern: str, text: str) -> None:
    assert written(value, pattern) == text


def test_what_is_made_of_figures() -> None:
    assert changed(-0.071, (-0.09, -0.00001), "{:.1%}") == "-7.1 points [-9.0, 0.0]"
    assert changed(0.01, None, "{:.3f}") == "+0.010"
    assert span(None, "{:.1f}") == "" and span((1, 2), "{:.1f}") == "[1.0, 2.0]"
    assert (relative(0.0321), relative(-0.00001), relative(None)) == ("+3.2%", "0.0%", "–")
    assert bare(-0.071, "{:+.1%}") == "-7.1"
    assert longer(1.0124, (0.99996, 1.027)) == "longer by 1.2% [0.0, +2.7]" and longer(0.9, None) == "shorter by 10.0%"
    assert [chance(p) for p in (None, 0.0, 0.00026, 0.0021, 0.049, 0.354, 1.0)] == [
        "–", "< 0.0001", "0.0003", "0.002", "0.049", "0.35", "1.00"]
    tested = with_interval(-0.05, (-0.06, -0.04), "{:+.1%}", True, 0.07)
    assert (tested.below, tested.mark) == ("[-6.0, -4.0] p 0.070", ""), "the interval alone is not corrected"
    assert with_interval(0.05, (0.04, 0.06), "{:+.1%}", True, 0.01).mark == "worse"
    assert (number(-0.0, "{:.1%}").text, number(-0.05, "{:+.1%}").text) == ("0.0%", "-5.0 points")
    cell = with_interval(-0.05, (-0.06, -0.00001), "{:+.1%}", True)
    assert (cell.text, cell.below, cell.mark) == ("-5.0 points", "[-6.0, 0.0]", "better")


def summary(diff: float) -> dict[str, Any]:
    side = {key: 0.25 for _, key, *_ in TABLE} | {"n": 8, "failed": 0}
    ends = (diff - 1e-9, diff + 1e-9)
    return {"base": side, "trained": side | {key: 0.25 + diff for _, key, form, _ in TABLE if form != "{:d}"}, "n": 8,
            "prompts": 4, "wer_diff": diff, "wer_diff_ci95": ends, "pause_error_diff_ci95": ends,
            "rounds": [{"round": 1, "step": 3, "pairs": 2, "wer": 0.2, "wer_diff": diff, "wer_diff_ci95": ends,
                        "duration_mean": 2.0}]}


@pytest.mark.parametrize("diff", [-0.071, -1e-7, 0.0, 1e-7])
def test_no_table_and_no_page_has_a_percentage_for_a_difference_or_a_signed_zero(diff: float) -> None:
    found = summary(diff)
    row = {"arm": "a", "variant": "x", "seed": None, "n": 8, "wer": 0.2, "wer_ci95": (0.1, 0.3), "drift": diff,
           "wer_diff_baseline": diff, "wer_diff_baseline_ci95": (diff, diff),
           "wer_diff_base": diff, "wer_diff_base_ci95": (diff, diff),
           "duration_ratio": 1 + diff, "duration_ratio_ci95": (1 + diff, 1 + diff), "drift_vs_baseline": diff,
           "drift_vs_baseline_ci95": (diff, diff)}
    sweep = sweep_table({"baseline": "dpo", "rows": [row], "notes": [], "pareto": []})
    cells = [cell.text + " " + cell.below for cell in table([row], "dpo").rows[0]]
    html = render(ReportData(title="x", summary=found))
    before_after = html[html.index("Before and after"):html.index("<h2>Charts")]
    for text in (text_table(found), headline(found), before_after, str(round_rows(found)), sweep, *cells):
        assert not SIGNED_ZERO.search(text), text
    for text in (text_table(found), headline(found), before_after, cells[5]):
        assert not re.search(r"[+-][\d.]+%", text), text
    if diff == -0.071:
        assert "-7.10 points [-7.10, -7.10]" in text_table(found) and "-7.10 points" in before_after
        assert "(difference -7.1 points, 95 % interval -7.1 to -7.1)" in headline(found)
        assert "-7.1%" in sweep.splitlines()[1] and "points" in sweep.splitlines()[0]  # drift is a share; WER is not


def test_a_headline_without_an_interval_claims_nothing() -> None:
    found = summary(-0.5) | {"wer_diff_ci95": None}
    assert headline(found).endswith("no interval from so few texts). No claim can be made.")
    assert "nan" not in text_table(found)


def test_the_line_of_the_protocol() -> None:
    entry = {"wer_percent": 1.0, "utterances": 2, "base": {"wer_percent": 2.0, "utterances": 2}, "paired": 2,
             "wer_diff": -0.01, "wer_diff_ci95": (-0.02, -1e-9), "evaluator": "x", "own_recognizer": True}
    (line,) = lines({"en": entry})
    assert "difference -1.000 points [-2.000, 0.000] on the 2 of both" in line
