"""Classes of steps: by hand, at 50 frames a second."""

from __future__ import annotations

import pytest

from talker_rl.records.codec import FIRST, codec_named
from talker_rl.records.token_classes import CLASSES, MEANING, Gap, Word, token_classes, words_and_gaps

CODEC = codec_named(FIRST)
STOP = CODEC.stops[0]


def runs(classes: list[str]) -> list[tuple[str, int]]:
    """Classes with how many steps in a row have them."""
    found: list[tuple[str, int]] = []
    for name in classes:
        found[-1:] = [(name, found[-1][1] + 1)] if found and found[-1][0] == name else [*found[-1:], (name, 1)]
    return found


def of(text: str, heard: str, spans: list[tuple[float, float]], frames: int = 60, stop: int | None = STOP) -> list:
    speech = CODEC.speech([1] * frames + ([] if stop is None else [stop]))
    return runs(token_classes(speech, text, "en", heard.split(), spans))


def test_words_pauses_silence_and_the_stop() -> None:
    # 0.1 s lead, "one" to 0.3, a pause of 0.2 at the comma, "two" to 0.7, "three" to 0.9 s, 0.3 s tail
    spans = [(0.1, 0.3), (0.5, 0.7), (0.7, 0.9)]
    assert of("one, two three.", "one two three", spans) == [
        ("lead", 5), ("right", 10), ("pause", 10), ("right", 20), ("tail", 15), ("stop", 1)]
    assert of("one, two three.", "one two three", spans, stop=None)[-1] == ("tail", 15)


def test_wrong_words() -> None:
    spans = [(0.0, 0.2), (0.2, 0.4), (0.4, 0.6)]
    assert of("one two three.", "one too three", spans, 30) == [("right", 10), ("substituted", 10), ("right", 10),
                                                               ("stop", 1)]
    assert of("one three.", "one big three", spans, 30) == [("right", 10), ("inserted", 10), ("right", 10),
                                                            ("stop", 1)]


def test_what_was_left_out_is_shown_by_its_neighbors() -> None:
    # no time between the words: the last frame of one and the first of the other
    assert of("one two three.", "one three", [(0.0, 0.2), (0.2, 0.4)], 20) == [
        ("right", 9), ("beside_deleted", 2), ("right", 9), ("stop", 1)]
    # and all of the time between them, where there is some
    assert of("one two three.", "one three", [(0.0, 0.2), (0.3, 0.5)], 25) == [
        ("right", 9), ("beside_deleted", 7), ("right", 9), ("stop", 1)]


def test_missing_and_false_pauses() -> None:
    assert of("one, two.", "one two", [(0.0, 0.2), (0.2, 0.4)], 20) == [
        ("right", 9), ("pause_missing", 2), ("right", 9), ("stop", 1)]
    assert of("one two.", "one two", [(0.0, 0.2), (0.5, 0.7)], 35) == [
        ("right", 10), ("pause_false", 15), ("right", 10), ("stop", 1)]
    assert of("one two.", "one two", [(0.0, 0.2), (0.3, 0.5)], 25) == [
        ("right", 10), ("between", 5), ("right", 10), ("stop", 1)]
    assert of("one (two).", "one two", [(0.0, 0.2), (0.5, 0.7)], 35)[1] == ("between", 15)  # a bracket allows one


def test_words_and_gaps_by_time() -> None:
    spans = [(0.1, 0.3), (0.5, 0.7), (0.7, 0.8), (0.8, 0.9), (1.2, 1.4), (1.3, 1.5)]
    found = words_and_gaps("oh one, two three four; five six seven.", "en", "one too three big four six".split(), spans)
    assert found.words == [
        Word(0.1, 0.3, "right", "one", "one"), Word(0.5, 0.7, "substituted", "too", "two"),
        Word(0.7, 0.8, "right", "three", "three"), Word(0.8, 0.9, "inserted", "big", ""),
        Word(1.2, 1.4, "right", "four", "four"), Word(1.3, 1.5, "right", "six", "six")]
    assert found.gaps == [Gap(0.3, 0.5, "pause"), Gap(0.7, 0.7, "between"), Gap(0.8, 0.8, "between"),
                          Gap(0.9, 1.2, "pause_false"), Gap(1.4, 1.3, "beside_deleted")]
    assert found.left_out == [["oh"], [], [], [], [], ["five"], ["seven"]]
    longer = words_and_gaps("one, two.", "en", ["one", "two"], [(0.0, 0.2), (0.4, 0.6)], hit_seconds=0.3)
    assert longer.gaps == [Gap(0.2, 0.4, "pause_missing")]


def test_nothing_heard() -> None:
    assert of("one two.", "", [], 5) == [("unheard", 5), ("stop", 1)]


def test_every_class_has_a_meaning() -> None:
    assert tuple(MEANING) == CLASSES


def test_what_was_left_out_at_the_ends_is_shown_by_the_first_word_and_the_last() -> None:
    assert of("oh one two three.", "one two", [(0.2, 0.4), (0.4, 0.6)], 40) == [
        ("lead", 9), ("beside_deleted", 2), ("right", 18), ("beside_deleted", 2), ("tail", 9), ("stop", 1)]
    # no silence beyond: the last frame alone; and what is wrong already stays what it is
    assert of("one two three.", "one two", [(0.0, 0.2), (0.2, 0.4)], 20)[-2:] == [("beside_deleted", 1), ("stop", 1)]
    assert of("one two three.", "one too", [(0.0, 0.2), (0.2, 0.4)], 20)[-2:] == [("substituted", 10), ("stop", 1)]


@pytest.mark.parametrize(("spans", "fault"), [
    ([(0.0, 200.0), (200.0, 400.0)], "outside the audio"),  # in ms
    ([(0.0, float("nan")), (0.2, 0.4)], "not finite"), ([(0.2, 0.1), (0.2, 0.4)], "ends before it starts"),
    ([(0.2, 0.3), (0.1, 0.4)], "starts before the one before"), ([(0.0, 0.2)], "1 times for 2 tokens"),
])
def test_times_that_cannot_be_true_give_no_classes(spans: list[tuple[float, float]], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        of("one two.", "one two", spans)
