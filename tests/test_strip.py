"""The strip's data: peaks by hand, and what stands where on the time axis."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from test_report import full_data

from talker_rl.report.page import render
from talker_rl.report.strip import BINS, Wave, strip_of, wave_of
from talker_rl.reward.config import PauseConfig

PAUSES = PauseConfig()
TWO_SECONDS = Wave(2.0, "80ff")


def test_peaks_are_the_largest_magnitude_of_each_part() -> None:
    assert wave_of(np.array([0.0, 0.5, -1.0, 0.25]), 2, bins=2) == Wave(2.0, "80ff")  # 0.5 of 255 is 128
    assert wave_of(np.array([0.0, 0.5, -1.0, 0.25]), 2, bins=9).peaks == "0080ff40"
    assert wave_of(np.array([0.2, 0, 0, -0.4, 0, 0, 0.8]), 7, bins=3).peaks == "4080ff"  # parts of 2, 2 and 3 samples


def test_a_quiet_sound_looks_quiet_and_a_louder_one_fills_the_height() -> None:
    assert wave_of(np.array([0.0, -0.02, 0.04]), 3, bins=3).peaks == "003366"  # 0.1 is the full height
    assert wave_of(np.array([0.1, -0.2]), 2, bins=2).peaks == "80ff"


def test_a_long_clip_has_as_few_peaks_as_a_short_one() -> None:
    wave = wave_of(np.random.default_rng(0).uniform(-1, 1, 24_000 * 20).astype(np.float32), 24_000)
    assert wave.seconds == 20.0 and len(wave.peaks) == 2 * BINS


def test_words_and_pauses_stand_at_their_times() -> None:
    spans = [(0.1, 0.3), (0.5, 0.7), (0.7, 0.8), (0.8, 0.9), (1.2, 1.4), (1.4, 1.6), (1.65, 1.8)]
    heard = "one too three big four six seven".split()
    strip = strip_of(TWO_SECONDS, "oh one, two three four five six, seven; eight.", heard, spans, PAUSES)
    assert strip.marks == [
        (0.1, 0.1, "D", "oh", ""),
        (0.1, 0.3, "right", "one", ""),
        (0.3, 0.5, "pause", "", ""),
        (0.5, 0.7, "S", "too", "two"),
        (0.7, 0.8, "right", "three", ""),
        (0.8, 0.9, "I", "big", ""),
        (0.9, 1.2, "false", "", ""),
        (1.2, 1.4, "right", "four", ""),
        (1.4, 1.4, "D", "five", ""),
        (1.4, 1.6, "right", "six", ""),
        (1.6, 1.65, "missing", "", ""),
        (1.65, 1.8, "right", "seven", ""),
        (1.8, 1.8, "D", "eight", ""),
    ]
    assert strip.data == {"seconds": 2.0, "peaks": "80ff", "marks": strip.marks}


def test_what_counts_as_a_pause_is_the_configuration() -> None:
    def kinds(**settings: float) -> list[str]:
        spans = [(0.0, 0.2), (0.4, 0.6), (0.8, 1.0)]
        marks = strip_of(TWO_SECONDS, "one, two three.", ["one", "two", "three"], spans, PauseConfig(**settings)).marks
        return [mark[2] for mark in marks if mark[2] != "right"]

    assert kinds() == ["pause"]
    assert kinds(hit_seconds=0.3) == ["missing"]
    assert kinds(spurious_seconds=0.1) == ["pause", "false"]


def test_chinese_is_marked_by_character() -> None:
    strip = strip_of(TWO_SECONDS, "太阳森林。", ["太", "林"], [(0.1, 0.3), (0.3, 0.5)], PAUSES)
    assert strip.marks == [(0.1, 0.3, "right", "太", ""), (0.3, 0.3, "D", "阳森", ""), (0.3, 0.5, "right", "林", "")]


@pytest.mark.parametrize("heard, spans", [
    (["one", "two"], []),
    (["one", "two"], [(0.1, 0.3)]),
    (["one", "two"], [(0.5, 0.7), (0.1, 0.3)]),
    (["one", "two"], [(0.1, 0.3), (0.7, 0.5)]),
    (["one", "two"], [(0.1, 0.3), (2.5, 2.7)]),
    (["one", "two"], [(0.1, 0.3), (0.5, float("nan"))]),
    ([], []),
])
def test_times_that_cannot_be_used_leave_the_waveform_alone(heard: list[str], spans: list[tuple[float, float]]) -> None:
    strip = strip_of(TWO_SECONDS, "one two.", heard, spans, PAUSES)
    assert strip.marks == [] and strip.wave == TWO_SECONDS


def test_the_report_holds_a_strip_for_each_sound() -> None:
    data = full_data()
    first, second = data.before_after[0].clips
    first.strip = strip_of(TWO_SECONDS, "</script> tea.", ["script", "</script>"], [(0.0, 0.5), (0.5, 1.0)], PAUSES)
    html = render(data)
    found = re.findall(r'<script type="application/json" class="strip-data">(.*?)</script>', html)
    assert len(found) == 1 and second.strip is None
    assert json.loads(found[0]) == json.loads(json.dumps(first.strip.data))
    assert json.loads(found[0])["marks"][1] == [0.5, 1.0, "S", "</script>", "tea"]  # what is heard ends no script
