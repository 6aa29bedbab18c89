"""Advantages of groups, places of a text, and on which steps credit falls: by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from said import said

from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.records.slots import slots
from talker_rl.records.token_classes import words_and_gaps
from talker_rl.train.advantages import AdvantageConfig, advantages, decoupled, says_something
from talker_rl.train.credit import of_sequences, of_what_differs, of_words
from talker_rl.train.groups import Group, Pauses, grouped, value
from talker_rl.train.online_config import OnlineConfig

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


def test_who_was_cut_is_wrong_behind_its_last_word_and_those_that_ended_are_right() -> None:
    spans = [(0.1, 0.4), (0.5, 0.8), (1.2, 1.6)]
    ended = places("one two three", spans)
    cut = slots(said([1] * 140), words_and_gaps("one two, three", "en", "one two three".split(), spans))
    assert not cut["between", 3].right and cut["between", 3].ranges == [(75, 140)]
    good, bad = of_what_differs([1.0, -1.0], [101, 140], [ended, cut])
    assert good[100] == 1.0 and not good[:75].any(), "the stop is what it did better"
    assert set(bad[75:]) == {-1.0} and not bad[:75].any()


def test_the_stop_is_not_of_a_word_that_lasts_to_the_end() -> None:
    found = places("one two three", [(0.1, 0.4), (0.5, 0.8), (1.2, 2.1)])
    assert found["word", 2].ranges == [(57, 100)] and found["between", 3].ranges[0][1] == 101


def judged(rewards: list[float | None], seconds: list[float] | None = None, code: str | None = None,
           cut: int | None = None, **settings: Any) -> Group:
    """A group of two words, all said right; where there is no reward scoring failed."""
    cfg = OnlineConfig(num_generations=len(rewards), **settings)
    prompt = Prompt("one two", "Ann")
    speech = [round(50 * (seconds or [1.0] * len(rewards))[k]) for k in range(len(rewards))]
    candidates = [Candidate(prompt.prompt_id, f"c{k}", "Ann", k, [1] * n, None if k == cut else 8294,
                            "max_tokens" if k == cut else "eos", [-1.0] * (n + (k != cut)))
                  for k, n in enumerate(speech)]
    scores = [ScoreRow(prompt.prompt_id, f"c{k}", "failed" if r is None else "ok", r, {}, ["one", "two"],
                       [(0.1, 0.3), (0.4, 0.6)], error_code=code if r is None else None) for k, r in enumerate(rewards)]
    (group,) = grouped({prompt.prompt_id: prompt}, candidates, scores, cfg)
    value([group], cfg, Pauses())
    return group


def test_who_was_cut_is_below_others_that_are_all_alike() -> None:
    assert judged([1.0, 1.0, 1.0], cut=1).rewards == [1.0, 0.0, 1.0]
    assert judged([0.6, 1.0, 0.2], cut=1).rewards == [0.6, 0.2, 0.2], "as the worst, where there is one"
    credited = judged([1.0, 1.0, 1.0], cut=1, advantages={"credit": "what_differs"})
    assert credited.teaches and credited.advantages[1][-1] < 0 and credited.advantages[0][-1] > 0


def test_what_the_machinery_failed_to_judge_says_nothing() -> None:
    for code, reward in (("recognizer_error", 0.6), ("null_component", 0.6), ("empty", 0.4), ("hallucination", 0.4)):
        group = judged([0.4, None, 0.8], code=code)
        assert group.rewards == [0.4, pytest.approx(reward), 0.8]
        assert (abs(group.values[1]) < 1e-9) == (reward == 0.6)


@pytest.mark.parametrize("credit", ["sequence", "what_differs", "words"])
def test_what_cannot_be_heard_by_its_own_doing_is_to_blame_whatever_the_credit(credit: str) -> None:
    group = judged([0.4, None, 0.8], code="hallucination", advantages={"credit": credit})
    assert group.values[1] < 0 and set(group.advantages[1]) == {np.float32(group.values[1])}


def test_no_word_is_heard_on_the_stop_though_its_time_lies_behind_the_sound() -> None:
    found = places("one two three", [(0.1, 0.4), (0.5, 0.8), (2.06, 2.2)])
    assert found["word", 2].ranges == [(99, 100)]


def test_who_drags_is_to_blame_as_a_whole() -> None:
    group = judged([0.9, 1.0, 0.8], seconds=[1.0, 3.0, 1.0], max_length_ratio=1.5,
                   advantages={"credit": "what_differs"})
    assert group.rewards[1] == 0.8 and group.values[1] < 0 and set(group.advantages[1]) == {np.float32(group.values[1])}


@pytest.mark.parametrize("wrong", [{"baseline": "running"}, {"baseline": "running", "scale_rewards": "none",
                                                             "rewards": {"reward": 1.0}}])
def test_a_running_baseline_is_not_divided_by_a_spread_of_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="baseline: running"):
        AdvantageConfig(**wrong)


def test_a_group_whose_rewards_are_alike_teaches_against_what_came_before() -> None:
    cfg = OnlineConfig(num_generations=3, advantages=AdvantageConfig(baseline="running", scale_rewards="none"))
    group = judged([0.9, 0.9, 0.9], advantages=cfg.advantages)
    assert not group.teaches, "nothing came before"
    value([group], cfg, Pauses(), running=0.5)
    assert group.teaches and group.values == pytest.approx([0.4] * 3)
    assert not judged([0.7, 0.7, 0.7]).teaches
