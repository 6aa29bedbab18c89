"""Drift by step and who said it; said against demanded words; loops: by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from talker_rl.diagnostics.moved import CONDITIONS, moved
from talker_rl.diagnostics.said import GRID, loops, words_over_time

Row = dict[str, Any]


def row(step: int, of: str, tokens: int, kl: float | None, *, ended: bool = True, stops: tuple[float, ...] = (0.1, 0.8),
        k1: float = 0.0, before: float = 0.2) -> Row:
    return {"step": step, "of": of, "tokens": tokens, "kl": kl, "policy_logp": k1 - 5.0, "ref_logp": -5.0,
            "ended": ended, "p_stop_last": list(stops), "p_stop_before": before}


def test_each_figure_is_of_what_it_says() -> None:
    rows = [row(0, "own", 10, 0.0, stops=(0.1, 0.9), before=0.05),
            row(5, "own", 10, 0.4, k1=0.5), row(5, "own", 30, 0.2, k1=-0.1, stops=(0.2, 0.99)),
            row(5, "base", 20, 0.3, stops=(0.3, 0.02), before=0.4), row(5, "base", 20, 0.9, ended=False,
                                                                        stops=(0.5, 0.5), before=0.9)]
    found = moved(rows)
    later = found[5]
    assert later["kl_per_code"] == pytest.approx(0.6 / 40) and later["kl_per_utterance"] == pytest.approx(0.3)
    assert later["k1_per_code"] == pytest.approx(0.4 / 40) and later["kl_per_code_on_base"] == pytest.approx(1.2 / 40)
    # own samples stopped at .8 and .99; where the base stopped it hardly does, and what was cut has no stop
    assert later["p_stop_at_base_stops"] == 0.02 and later["p_stop_before_base_stops"] == 0.4
    assert later["hazard"] == [None] * 8 + [0.3, 0.02]
    assert found[0]["p_stop_at_base_stops"] == 0.9 and found[0]["kl_per_code"] == 0
    assert set(later) == set(CONDITIONS)


def test_what_was_not_measured_is_null() -> None:
    found = moved([row(3, "own", 10, None, k1=0.2)])
    assert found[3]["kl_per_code"] is None and found[3]["k1_per_code"] == pytest.approx(0.02)
    assert found[3]["p_stop_at_base_stops"] is None and moved([]) == {}


def said(transcript: str, spans: list[float], text: str = "one two three", status: str = "ok") -> Row:
    return {"status": status, "text": text, "lang": "en", "transcript": transcript, "spans": spans,
            "ref_words": len(text.split())}


def test_words_by_a_time_over_those_that_were_to_be_said() -> None:
    rows = [said("one two three", [0.0, 0.9, 1.0, 1.9, 2.0, 2.9]),
            said("one four two three five", [0.0, 0.9, 1.0, 1.9, 2.0, 2.9, 3.0, 3.9, 4.0, 4.9]),
            said("one", []), said("one", [0.0, 1.0], status="failed")]
    found = words_over_time(rows, until=5.0)
    assert found is not None and found["n"] == 2
    at = {round(t, 6): (s, r) for t, s, r in zip(found["seconds"], found["said"], found["right"], strict=True)}
    assert len(at) == GRID and math.isclose(max(at), 5.0)
    assert at[1.0] == pytest.approx(((1 + 1) / 6, (1 + 1) / 6))
    assert at[3.0] == pytest.approx(((3 + 3) / 6, (3 + 2) / 6))
    assert at[5.0] == pytest.approx(((3 + 5) / 6, 1.0))
    assert words_over_time([said("one", [])], 5.0) is None


def test_loops_are_what_the_text_does_not_say_again() -> None:
    again = "go on and go on"
    rows = [said(again, [], text=again), said("one two one two one two", [], text="one two three"),
            said("one two three", [], text="one two three")]
    assert loops(rows) == {"rate": pytest.approx(1 / 3), "words": pytest.approx((2 + 1) / 3), "n": 3}
    assert loops([said("a", [], status="failed")]) == {"rate": None, "words": None, "n": 0}
