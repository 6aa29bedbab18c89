"""The report of an online training: every figure that is computed, by hand; and what the page of one holds."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.report.credit import credit_of
from talker_rl.report.model import Clip, Comparison, ReportData
from talker_rl.report.online import (
    Alarm,
    Online,
    Point,
    Sampling,
    check_ups,
    curve,
    kl_by_decodes,
    shares_of_time,
    times_by_decodes,
    told_alarms,
    told_difference,
    window_of,
)
from talker_rl.report.online_charts import section
from talker_rl.report.page import render
from talker_rl.report.strip import Strip, Wave
from talker_rl.stages.online_report import comparison
from talker_rl.stages.report import _fit
from talker_rl.train.groups import Group


def row(text: str, reward: float, errors: int = 0, words: int = 1) -> dict[str, Any]:
    return {"prompt_id": text, "text": text, "lang": "en", "reward": reward, "errors": errors, "words": words}


def sampling(before: int, *rows: dict[str, Any], **metrics: float) -> Sampling:
    named = {f"online/{name}": value for name, value in metrics.items()}
    return Sampling(before, before + len(rows), named | {"frac_reward_zero_std": 0.25}, list(rows))


def test_a_point_is_a_mean_over_candidates_with_an_interval_over_texts() -> None:
    one = sampling(0, row("a", 0.0), row("a", 0.2), row("b", 0.8), row("b", 1.0))
    (point,) = curve([one], "reward", None, 1, 2000)
    assert point.x == 0 and point.value == pytest.approx(0.5)
    # two texts drawn twice: a and a (0.1), a and b, b and b (0.9); candidates drawn by themselves would reach 0 and 1
    assert point.interval == pytest.approx((0.1, 0.9))
    (alone,) = curve([sampling(0, row("a", 0.0), row("a", 1.0))], "reward", None, 1, 2000)
    assert alone.value == 0.5 and alone.interval is None


def test_word_errors_are_over_words_and_a_text_without_a_score_says_nothing() -> None:
    one = sampling(8, row("a", 0.0, 1, 4), row("b", 0.0, 1, 1))
    (point,) = curve([one], "errors", "words", 1, 2000)
    assert (point.x, point.value) == (8, pytest.approx(2 / 5)) and point.interval == pytest.approx((0.25, 1.0))
    (some,) = curve([sampling(8, row("a", 0.0, 1, 4), row("c", 0.0, 0, 0))], "errors", "words", 1, 2000)
    assert some.value == 0.25 and some.interval is None, "one text is left"
    assert curve([sampling(8, row("c", 0.0, 0, 0))], "errors", "words", 1, 2000) == []


def test_a_window_pools_the_samplings_before() -> None:
    samplings = [sampling(2 * i, row("a", float(i)), row(f"b{i}", float(i))) for i in range(4)]
    assert [p.value for p in curve(samplings, "reward", None, 1, 100)] == [0, 1, 2, 3]
    pooled = curve(samplings, "reward", None, 3, 2000)
    assert [(p.x, p.value) for p in pooled] == [(0, 0.0), (2, 0.5), (4, 1.0), (6, 2.0)]
    # at the second a said 0 and 1, b0 said 0, b1 said 1: three texts, of which a is drawn as a whole
    assert pooled[1].interval == pytest.approx((0.0, 1.0))
    twice = curve([sampling(0, row("a", 0.0)), sampling(1, row("a", 1.0))], "reward", None, 2, 2000)
    assert twice[1].value == 0.5 and twice[1].interval is None, "the same text twice is one text"
    assert [window_of(n) for n in (1, 39, 40, 75)] == [1, 1, 2, 3]


def test_check_ups_are_corpus_rates_of_what_was_heard() -> None:
    def heard(text: str, errors: int, words: int, status: str = "ok") -> dict[str, Any]:
        return {"prompt_id": text, "text": text, "status": status, "substitutions": errors, "deletions": 0,
                "insertions": 0, "ref_words": words}

    found = check_ups({0: [heard("a", 2, 4), heard("b", 0, 6), heard("c", 9, 9, "failed")], 64: [heard("a", 1, 4)],
                       128: [heard("a", 1, 4, "failed")]}, 2000)
    assert [(p.x, p.value) for p in found] == [(0, 0.2), (64, 0.25)]
    assert found[0].interval == pytest.approx((0.0, 0.5)) and found[1].interval is None


def test_kl_stands_at_the_decodes_that_were_trained_on() -> None:
    log = [{"step": 1, "loss": 0.0}, {"step": 2, "kl": 0.1}, {"step": 4, "kl": 0.2}, {"step": 5, "kl": 0.3},
           {"step": 7, "kl": 0.4}]
    assert kl_by_decodes(log, [16, 40, 56], steps=2) == [(16, 0.1), (40, 0.2), (56, 0.3)]  # step 7 is of none of them


def test_time_is_counted_once_for_each_sampling_and_shared_out() -> None:
    def logged(decodes: float, sampling: float, waiting: float, training: float | None) -> dict[str, Any]:
        told = {"online/decodes": decodes, "online/sampling_seconds": sampling, "online/waiting_seconds": waiting}
        return told if training is None else told | {"online/training_seconds": training}

    first, second = logged(8.0, 3.0, 1.0, None), logged(16.0, 4.0, 0.0, 2.0)
    log = [first, first, {"step": 2, "kl": 0.1}, second]
    found = times_by_decodes(log, offset=100)
    assert found == [(108, {"sampling": 3.0, "waiting for the judge": 1.0}),
                     (116, {"sampling": 4.0, "waiting for the judge": 0.0, "training": 2.0})]
    assert shares_of_time(Online([], times=found)) == {"sampling": 0.7, "waiting for the judge": 0.1, "training": 0.2}
    assert shares_of_time(Online([])) == {} and times_by_decodes([{"step": 1, "online/decodes": 8.0}]) == []


def test_the_sentences() -> None:
    few = Online([sampling(0, row("a", 0.0))], guarded=10)
    assert told_alarms(few) == ["No alarm rang. With fewer than 10 samplings none of drift can: there are 1."]
    assert told_alarms(Online(few.samplings, guarded=1)) == ["No alarm rang."]
    rang = Online(few.samplings, alarms=[Alarm("cut", "share 0.0 -> 0.1", 64)], guarded=10)
    assert told_alarms(rang) == ["Alarm after 64 decodes (cut): share 0.0 -> 0.1."]
    assert "differed by 2.5e-05 nats at most, over 3 rows" in told_difference(
        Online([], differences=[1e-6, 2.5e-5, 1e-5]))
    assert "does not say" in told_difference(Online([]))


def charted(**more: Any) -> Online:
    samplings = [sampling(4 * i, *[row(f"{i}{k}", 0.5) for k in range(4)], seconds_per_word=0.3, cut=0.0, credited=0.4)
                 for i in range(3)]
    return Online(samplings, reward=[Point(0, 0.5, (0.4, 0.6)), Point(4, 0.6, None), Point(8, 0.7, (0.6, 0.9))],
                  wer=[Point(0, 0.3, None)], **more)


def figures(online: Online) -> dict[str, Any]:
    return {item.title: item for item in section(online).items}


def test_the_band_goes_up_one_side_and_back_down_the_other() -> None:
    band, line = figures(charted())["Reward of the samples"].views[""].data
    assert list(band.x) == [0, 8, 8, 0] and list(band.y) == [0.6, 0.9, 0.6, 0.4] and band.fill == "toself"
    assert list(line.x) == [0, 4, 8] and list(line.y) == [0.5, 0.6, 0.7]
    assert "the samples of one sampling" in figures(charted())["Reward of the samples"].note
    assert "a sampling and the 2 before it" in figures(charted(window=3))["Reward of the samples"].note


def test_held_out_points_have_bars_and_alarms_stand_where_they_belong() -> None:
    online = charted(held_out=[Point(0, 0.2, (0.15, 0.3)), Point(8, 0.1, None)], kl=[(4, 0.01)],
                     alarms=[Alarm("duration", "seconds 0.3 -> 0.4", 8), Alarm("hack", "reward rises", 12)])
    made = figures(online)
    points = made["Word error rate"].views[""].data[-1]
    assert list(points.x) == [0, 8] and list(points.error_y.array) == pytest.approx([0.1, 0.0])
    assert list(points.error_y.arrayminus) == pytest.approx([0.05, 0.0])
    marked = {title: [shape.x0 for shape in item.views[""].layout.shapes] for title, item in made.items() if item.views}
    assert {title: at for title, at in marked.items() if at} == {
        "Seconds per word of the text": [8], "Reward of the samples": [12]}
    assert made["Seconds per word of the text"].note == "Alarm after 8 decodes: seconds 0.3 -> 0.4."
    assert list(made["KL to the start"].views[""].data[0].x) == [4]
    assert not made["Entropy"].views and not made["Time by part"].views
    assert "There was no check-up" in figures(charted())["Word error rate"].note


def test_credit_is_drawn_where_the_loss_is_given_advantages() -> None:
    def names(online: Online) -> list[str]:
        return [trace.name for trace in figures(online)["What is learned from"].views[""].data]

    assert names(charted()) == ["groups without spread", "steps with credit"]
    assert names(charted(credit="")) == ["groups without spread"]


# -- groups to listen to ----------------------------------------------------------------------------------------------


def a_group(rewards: list[float], advantages: list[list[float]]) -> Group:
    """Two words of two frames each, then the stop; codes of the first family, 50 a second."""
    candidates = [Candidate("p", f"p-{k}", "Ethan", k, [1, 2, 3, 4], 8294, "eos", [-1.0] * 5)
                  for k in range(len(rewards))]
    spans = [(0.0, 0.04), (0.04, 0.08)]
    scores = [ScoreRow("p", c.candidate_id, "ok", reward, {"wer": 0.5}, ["one", "too"], spans)
              for c, reward in zip(candidates, rewards, strict=True)]
    return Group(Prompt("one two", "Ethan", prompt_id="p"), candidates, scores, list(rewards),
                 [a[0] for a in advantages], [np.array(a) for a in advantages])


def made_clip(label: str, sound: np.ndarray, text: str, heard: list[str], spans: Any, caption: str) -> Clip:
    marks = [(0.0, 0.04, "right", "one", ""), (0.04, 0.08, "S", "too", "two")]
    strip = Strip(Wave(0.08, "80ff"), marks) if sound.size else None  # type: ignore[arg-type]
    return Clip(label, sound, 24_000, [("=", "one", "one"), ("S", "two", "too")], caption, strip)


SOUNDS = {f"p-{k}": np.zeros(1920, dtype=np.float32) for k in range(3)}


def test_a_group_is_ranked_by_reward_and_each_word_has_its_mean_advantage() -> None:
    group = a_group([0.2, 0.9], [[-1.0, -1.0, 0.0, -2.0, 0.0], [0.5, 0.0, 0.0, 0.0, 0.5]])
    made = comparison(group, SOUNDS, made_clip, credited=True)
    assert [clip.label for clip in made.clips] == ["1. reward 0.90", "2. reward 0.20"] and made.about == ""
    best, worst = made.clips
    assert best.credits == [0.25, 0.0] and worst.credits == [-1.0, -1.0]
    assert best.credit is not None and worst.credit is not None and best.credit.full == worst.credit.full == 2.0
    assert worst.credit.stretches == [(0.0, 0.04, -1.0), (0.04, 0.06, 0.0), (0.06, 0.08, -2.0), (0.08, 0.08, 0.0)]
    assert worst.caption.replace("\u00a0", " ") == "advantage -1.00 · WER 0.50 · 0.1 s"


def test_rules_failures_and_silence_are_said() -> None:
    group = a_group([0.2, 0.9, 0.4], [[0.0] * 5] * 3)
    group.rewards = [0.2, 0.2, 0.2]
    group.scores[0] = ScoreRow("p", "p-0", "failed", error_code="no_speech")
    made = comparison(group, {"p-1": SOUNDS["p-1"]}, made_clip, credited=True)
    captions = [clip.caption for clip in made.clips]
    assert "no score (no_speech): as the worst of its group" in captions[0] and "WER" not in captions[0]
    assert "by the rules as the worst of its group (by itself 0.90)" in captions[1]
    assert made.about.startswith("All rewards are equal")
    assert made.clips[0].strip is None and made.clips[0].credit is None and made.clips[0].credits == []
    html = render(ReportData("page", None, online=charted(), groups={"The first sampling": [made]}))
    assert html.count("There is no speech in it.") == 2 and html.count("<audio ") == 1


def test_a_loss_of_pairs_has_no_credit_to_show() -> None:
    group = a_group([0.2, 0.9], [[-1.0] * 5, [1.0] * 5])
    made = comparison(group, SOUNDS, made_clip, credited=False)
    assert all(clip.credit is None and clip.credits == [] and "advantage" not in clip.caption for clip in made.clips)
    html = render(ReportData("page", None, online=charted(credit=""), groups={"The first sampling": [made]}))
    assert "gives no step an advantage" in html and "lane key" not in html and '"credit"' not in html


def test_words_on_the_page_are_marked_by_sign_and_size() -> None:
    group = a_group([0.2, 0.9], [[-2.0, -2.0, -1.0, -1.0, 0.0], [1.0, 1.0, 0.004, 0.004, 0.0]])
    made = comparison(group, SOUNDS, made_clip, credited=True)
    html = render(ReportData("page", None, online=charted(), groups={"The first sampling": [made]}))
    found = re.findall(r'<span class="(up|down)" style="--size: ([\d.]+)">(\w+)</span><small>([^<]+)</small>', html)
    assert found == [("up", "0.5", "one", "+1.00"), ("down", "1.0", "one", "-2.00"), ("down", "0.5", "too", "-1.00")]
    assert '<span class="tok S" title="said instead of two">too</span>' in html, "the best one's second word has none"
    assert "on all of its steps" in html and "each word&#39;s own" not in html
    words = render(ReportData("page", None, online=charted(credit="words"), groups={"The first sampling": [made]}))
    assert "each word&#39;s own" in words
    assert "lane key" in html and "<h2>Online training</h2>" in html and "Implicit rewards" not in html


def test_an_offline_page_has_none_of_it() -> None:
    html = render(ReportData("page", None))
    assert "Online training" not in html and "lane key" not in html and "Implicit rewards" in html


# -- the size of the page ---------------------------------------------------------------------------------------------


def minute(clips: int, credit: Any = None) -> Comparison:
    """Each clip a minute, 0.61 MiB in Opus and base64."""
    strip = None if credit is None else Strip(Wave(60.0, "80ff"), [])
    return Comparison("text", "Ethan", [Clip("x", np.zeros(6000, dtype=np.float32), 100, [], strip=strip, credit=credit)
                                        for _ in range(clips)])


def test_groups_are_left_out_from_the_end_like_other_examples() -> None:
    data = ReportData("page", None, before_after=[minute(2), minute(2)],
                      groups={"first": [minute(4) for _ in range(3)], "last": [minute(4) for _ in range(3)]})
    first = data.groups["first"][0]
    _fit(data, 6 + 8)  # 13 clips; there are 28, of which 12, 12 and 4 are looked at in turn
    assert [len(data.before_after), len(data.groups["first"]), len(data.groups["last"])] == [2, 1, 1]
    assert data.groups["first"][0] is first
    _fit(data, 6 + 2)  # 3 clips
    assert [len(data.before_after), len(data.groups["first"]), len(data.groups["last"])] == [1, 0, 0]


def test_the_lane_counts_for_the_size() -> None:
    heavy = credit_of([float(i % 2) for i in range(100_000)], 100_000, 50.0, [], 1.0)  # more than 1 MiB of stretches
    data = ReportData("page", None, groups={"first": [minute(1), minute(1, heavy)]})
    _fit(data, 6 + 2)
    assert len(data.groups["first"]) == 1
    light = ReportData("page", None, groups={"first": [minute(1), minute(1, SimpleNamespace(data={}))]})
    _fit(light, 6 + 2)
    assert len(light.groups["first"]) == 2
