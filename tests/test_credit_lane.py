"""Credit on the page: the lane's stretches, the mean advantage at each word, both by hand."""

from __future__ import annotations

import pytest

from talker_rl.report.credit import Credit, by_token, credit_of
from talker_rl.report.strip import Mark, Wave, strip_of
from talker_rl.report.transcript import alignment_of
from talker_rl.reward.config import PauseConfig

RATE = 10.0
"""Frames per second: frame 3 is 0.3 to 0.4 s."""


def mark(start: float, end: float, kind: str = "right") -> Mark:
    return start, end, kind, "", ""


def test_neighbours_of_one_advantage_are_a_stretch_and_the_stop_stands_by_itself() -> None:
    steps = [0.0, 0.0, 1.5, 1.5, 1.5, -0.5, 0.0, 0.0]
    made = credit_of(steps, 7, RATE, [], 1.5)
    assert made.stretches == [(0.0, 0.2, 0.0), (0.2, 0.5, 1.5), (0.5, 0.6, -0.5), (0.6, 0.7, 0.0), (0.7, 0.7, 0.0)]
    cut = credit_of(steps[:7], 7, RATE, [], 1.5)
    assert cut.stretches == made.stretches[:-1], "what was cut has no stop"


def test_the_lane_in_words_counts_seconds_up_and_down() -> None:
    made = credit_of([0.0, 1.0, 1.0, -0.5, 2.0, 2.0, -0.25], 6, RATE, [], 2.0)
    assert made.about == "credit: 0.40 s made likelier, 0.10 s made less likely, the stop -0.25"
    assert credit_of([0.0], 1, RATE, [], 0.0).about == "credit: 0.00 s made likelier, 0.00 s made less likely"
    assert made.data == {"stretches": made.stretches, "full": 2.0, "marks": [], "about": made.about}


@pytest.mark.parametrize(("start", "end", "mean"), [
    (0.0, 0.2, 0.5),  # frames 0 and 1: 1 and 0
    (0.16, 0.4, -0.5),  # the middle of frame 1 is 0.15: frames 2 and 3, -2 and 1
    (0.1, 0.3, -1.0),
    (0.31, 0.31, 1.0),  # of no length: the frame that holds it
    (0.36, 0.38, 1.0),  # between two middles: likewise
    (0.4, 0.4, None),  # behind the last frame
])
def test_a_mark_has_the_mean_of_the_frames_whose_middle_it_holds(start: float, end: float, mean: float | None) -> None:
    assert credit_of([1.0, 0.0, -2.0, 1.0, 9.0], 4, RATE, [mark(start, end)], 2.0).marks == [mean], "the stop is none"


def test_tokens_have_their_marks_and_what_is_left_out_that_of_its_place() -> None:
    text, heard = "oh well one, two three four five six.", ["one", "too", "three", "big", "six"]
    spans = [(0.2, 0.4), (0.6, 0.8), (0.8, 1.0), (1.0, 1.2), (1.4, 1.6)]
    strip = strip_of(Wave(1.6, "80ff"), text, heard, spans, PauseConfig())
    alignment = alignment_of(text, heard)
    kinds = [m[2] for m in strip.marks]
    assert "pause" in kinds, "a mark that is no token's"
    means = [float(i) for i in range(len(strip.marks))]
    found = by_token(alignment, strip.marks, means)
    assert len(found) == len(alignment)
    said = {token: mean for (op, _, token), mean in zip(alignment, found, strict=True) if op != "D"}
    assert said == {m[3]: mean for m, mean in zip(strip.marks, means, strict=True) if m[2] in ("right", "S", "I")}
    left_out = [(ref, mean) for (op, ref, _), mean in zip(alignment, found, strict=True) if op == "D"]
    places = {word: mean for m, mean in zip(strip.marks, means, strict=True) if m[2] == "D" for word in m[3].split()}
    assert dict(left_out) == places and len(places) == len(left_out) == 3


def test_without_times_no_token_has_one() -> None:
    assert by_token([("=", "one", "one"), ("D", "two", "")], [], []) == [None, None]
    assert Credit([], 0.0, []).about.startswith("credit: 0.00 s")
