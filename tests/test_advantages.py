"""Advantages of groups, places of a text, and on which steps credit falls: by hand."""

from __future__ import annotations

import numpy as np
import pytest
from said import said

from talker_rl.records.slots import slots
from talker_rl.records.token_classes import words_and_gaps
from talker_rl.train.advantages import AdvantageConfig, advantages, decoupled, says_something
from talker_rl.train.credit import of_sequences, of_what_differs, of_words

GROUPS = [[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]


def test_baselines_and_scales() -> None:
    plain = advantages(GROUPS, AdvantageConfig(scale_rewards="none"))
    assert [a.tolist() for a in plain] == [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    alone = advantages(GROUPS, AdvantageConfig(scale_rewards="none", baseline="leave_one_out"))
    assert alone[0].tolist() == [1 - 2.5, 2 - 2.0, 3 - 1.5]
    running = advantages(GROUPS, AdvantageConfig(scale_rewards="none", baseline="running"), running=2.5)
    assert running[1].tolist() == [2.5] * 3 and running[0].tolist() == [-1.5, -0.5, 0.5]
    by_group = advantages(GROUPS, AdvantageConfig())
    assert by_group[0] == pytest.approx([-1, 0, 1], abs=1e-3) and by_group[1].tolist() == [0.0] * 3
    by_batch = advantages(GROUPS, AdvantageConfig(scale_rewards="batch"))
    assert by_batch[0] == pytest.approx(np.array([-1, 0, 1]) / np.std([1, 2, 3, 5, 5, 5], ddof=1), abs=1e-3)
    assert says_something(GROUPS[0]) and not says_something(GROUPS[1])


def test_rewards_of_different_spread_count_alike_when_each_is_normalized() -> None:
    group = [{"words": w, "pause": p} for w, p in ((0.0, 0.5), (10.0, 0.5), (20.0, 0.6))]
    found = decoupled([group], AdvantageConfig(rewards={"words": 1.0, "pause": -2.0}))[0]
    pause = (np.array([0.5, 0.5, 0.6]) - 1.6 / 3) / (np.std([0.5, 0.5, 0.6], ddof=1) + 1e-4)
    assert found == pytest.approx(np.array([-1, 0, 1]) - 2 * pause, abs=1e-3)


def places(transcript: str, spans: list[tuple[float, float]], text: str = "one two, three", frames: int = 100):
    """Of an utterance of 50 frames a second and its stop."""
    speech = said([1] * frames + [8294])
    return slots(speech, words_and_gaps(text, "en", transcript.split(), spans))


def test_places_of_a_text() -> None:
    right = places("one two three", [(0.1, 0.4), (0.5, 0.8), (1.2, 1.6)])
    assert {place: slot.right for place, slot in right.items()} == {
        ("word", 0): True, ("word", 1): True, ("word", 2): True, ("between", 0): True, ("between", 1): True,
        ("between", 2): True, ("between", 3): True, ("pause", 0): True, ("pause", 1): True}
    assert right["word", 0].ranges == [(2, 21)]  # .1 - .06 and .4 + .02 seconds
    assert right["pause", 1].ranges == [(35, 69)]  # .8 - .1 and 1.2 + .18
    assert right["between", 3].ranges == [(75, 101)]  # behind the last word: to the end, the stop included

    wrong = places("one four four", [(0.1, 0.4), (0.5, 0.8), (0.85, 1.2)])  # no pause behind "two," either
    assert not wrong["word", 1].right and not wrong["word", 2].right and not wrong["pause", 1].right
    left_out = places("one three", [(0.1, 0.4), (0.5, 0.9)])
    assert not left_out["word", 1].right and left_out["word", 1].ranges == [(15, 34)]
    assert left_out["word", 2].right and ("pause", 1) not in left_out
    put_in = places("one oh two three", [(0.1, 0.4), (0.5, 0.6), (0.7, 0.9), (1.2, 1.5)])
    assert not put_in["between", 1].right and put_in["between", 1].ranges == [(22, 31)]
    assert ("pause", 0) not in put_in  # what is said there is no pause
    silent = places("", [])
    assert {place for place, slot in silent.items() if not slot.right} == {("word", i) for i in range(3)}


def test_credit_falls_on_what_went_wrong_here_or_elsewhere() -> None:
    good = places("one two three", [(0.1, 0.4), (0.5, 0.8), (1.2, 1.6)])
    bad = places("one four three", [(0.1, 0.4), (0.5, 0.8), (1.2, 1.6)])
    high, low = of_what_differs([1.0, -1.0], [101, 101], [good, bad])
    where = slice(*good["word", 1].ranges[0])
    assert set(high[where]) == {1.0} and set(low[where]) == {-1.0}
    for credit in (high, low):  # nothing anywhere else
        rest = credit.copy()
        rest[where] = 0
        assert not rest.any()
    # one without times is not credited, and others are not for what it did
    alone, nothing = of_what_differs([1.0, -1.0], [101, 50], [good, {}])
    assert not alone.any() and nothing.shape == (50,) and not nothing.any()


def test_what_is_wrong_is_not_pushed_up_with_the_good_beside_it() -> None:
    """The best of a group said word 2 wrong, and word 1, which others said wrong, right: its range reaches into it."""
    spans = [(0.1, 0.4), (0.5, 0.8), (0.81, 1.2)]
    best, other = (places(said, spans, text="one two three") for said in ("one two four", "one six three"))
    first, _ = of_what_differs([1.0, -1.0], [101, 101], [best, other])
    right, wrong = (best["word", at].ranges[0] for at in (1, 2))
    assert right[1] > wrong[0], "the ranges of words beside one another overlap"
    assert set(first[slice(right[0], wrong[0])]) == {1.0} and not first[slice(*wrong)].any()


def test_each_word_has_an_advantage_of_its_own() -> None:
    good = places("one two three", [(0.1, 0.4), (0.5, 0.8), (1.2, 1.6)])
    bad = places("one four three", [(0.1, 0.4), (0.5, 0.8), (1.2, 1.6)])
    found = of_words([3.0, -1.0, -2.0], [101] * 3, [good, bad, bad])
    first, behind = good["word", 1].ranges[0]
    middle = (first + behind) // 2
    assert found[0][middle] == pytest.approx(2 / 3 * (1 - 0)) and found[1][middle] == pytest.approx(2 / 3 * (0 - 0.5))
    assert found[0][100] == 0  # the stop: all ended alike
    mixed = of_words([3.0, -1.0, -2.0], [101] * 3, [good, bad, bad], sequence_share=0.1)
    assert mixed[0] - found[0] == pytest.approx(np.full(101, 0.3))


def test_whole_sequences() -> None:
    found = of_sequences([0.5, -0.5], [3, 2])
    assert [a.tolist() for a in found] == [[0.5] * 3, [-0.5] * 2]
