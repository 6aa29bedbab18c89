"""The pause score on sound made by hand, where every silence is known to the sample."""

import numpy as np
import pytest

from talker_rl.reward.audio import find_silences, resample
from talker_rl.reward.config import PauseConfig
from talker_rl.reward.normalize import normalize
from talker_rl.reward.pauses import score_pauses, timestamp_fault
from talker_rl.reward.wer import align

RATE = 24_000
WORD = 0.3


def tone(seconds: float) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 200 * t + 0.7)).astype(np.float32)


def quiet(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def speech(pauses: list[float], lead: float = 0.1, tail: float = 0.2, word: float = WORD):
    """Words of `word` seconds with the given silences between them -> audio, spans."""
    parts, spans, now = [quiet(lead)], [], lead
    for k in range(len(pauses) + 1):
        if k:
            parts.append(quiet(pauses[k - 1]))
            now += pauses[k - 1]
        parts.append(tone(word))
        spans.append((now, now + word))
        now += word
    return np.concatenate([*parts, quiet(tail)]), spans


def score(text: str, audio, spans, heard: str | None = None, fault: str | None = None, config=None):
    config = config or PauseConfig()
    reference, transcript = normalize(text), normalize(heard if heard is not None else text).tokens
    hits = align(reference.tokens, transcript).hits
    silences = find_silences(audio, RATE, config)
    return score_pauses(reference.marks, hits, spans, silences, config, len(transcript), fault)


def test_pauses_where_they_belong():
    audio, spans = speech([0.0, 0.2, 0.0, 0.36, 0.0])
    result = score("a b, c d. e f.", audio, spans)
    assert (result.marks, result.hits, result.misses, result.false_pauses, result.out_of_bounds) == (2, 2, 0, 0, 0)
    assert (result.pause_error, result.pause_error_scorable) == (0.0, 0.0)
    assert (result.precision, result.recall, result.f1, result.scorable_share) == (1.0, 1.0, 1.0, 1.0)
    assert [b.pause for b in result.boundaries] == pytest.approx([0, 0.2, 0, 0.36, 0], abs=0.0101)


def test_pause_removed():
    audio, spans = speech([0.0, 0.0, 0.0, 0.36, 0.0])
    result = score("a b, c d. e f", audio, spans)
    assert (result.hits, result.misses, result.false_pauses) == (1, 1, 0)
    assert result.pause_error == pytest.approx(1 / 2)
    assert (result.precision, result.recall) == (1.0, 0.5)
    assert result.f1 == pytest.approx(2 / 3)


def test_pause_added():
    audio, spans = speech([0.4, 0.2, 0.0])
    result = score("a b, c d", audio, spans)
    assert (result.hits, result.false_pauses) == (1, 1)
    assert result.pause_error == pytest.approx(1 / 2)  # FP / (marks + FP)


def test_pause_moved_costs_a_miss_and_a_false_one():
    audio, spans = speech([0.3, 0.0, 0.0])
    result = score("a b, c d", audio, spans)
    assert (result.hits, result.misses, result.false_pauses) == (0, 1, 1)
    assert result.pause_error == pytest.approx(1.0)


@pytest.mark.parametrize(("pause", "hit"), [(0.14, 0), (0.15, 1), (0.16, 1)])
def test_hit_threshold(pause, hit):
    audio, spans = speech([pause])
    assert score("a, b", audio, spans).hits == hit


@pytest.mark.parametrize(("pause", "false"), [(0.24, 0), (0.25, 1), (0.26, 1)])
def test_spurious_threshold(pause, false):
    audio, spans = speech([pause])
    assert score("a b", audio, spans).false_pauses == false


@pytest.mark.parametrize("shift", [0.0, 0.001, 0.0037, 0.005, 0.0093])
@pytest.mark.parametrize(("pause", "hit"), [(0.14, 0), (0.16, 1)])
def test_thresholds_hold_off_the_frame_grid(pause, hit, shift):
    audio, spans = speech([pause], lead=0.1 + shift)
    assert score("a, b", audio, spans).hits == hit


@pytest.mark.parametrize(
    ("text", "pause", "out"),
    [
        ("a, b", 0.16, 0),
        ("a, b", 0.79, 0),
        ("a, b", 0.85, 1),
        ("a. b", 0.18, 1),
        ("a. b", 0.21, 0),
        ("a. b", 1.45, 0),
        ("a. b", 1.55, 1),
    ],
)
def test_duration_bounds(text, pause, out):
    audio, spans = speech([pause], word=1.0)
    result = score(text, audio, spans)
    assert (result.hits, result.out_of_bounds) == (1, out)
    assert result.pause_error == pytest.approx(0.5 * out)


@pytest.mark.parametrize(("click", "bridged"), [(0.02, True), (0.03, True), (0.05, False)])
def test_a_click_inside_a_silence_is_bridged(click, bridged):
    audio, spans = speech([0.0])
    middle = round(spans[0][1] * RATE)
    audio = np.concatenate([audio[:middle], quiet(0.1), tone(click), quiet(0.1), audio[middle:]])
    spans = [spans[0], (spans[1][0] + 0.2 + click, spans[1][1] + 0.2 + click)]
    assert score("a, b", audio, spans).hits == int(bridged)


def test_marks_inside_numbers_ask_for_no_pause():
    audio, spans = speech([0.0, 0.0])
    result = score("3.14 1,000 10:30.", audio, spans)
    assert (result.marks, result.pause_error) == (0, 0.0)
    assert result.recall is None and result.precision is None and result.scorable_share is None


def test_ends_of_the_utterance_are_no_pauses():
    audio, spans = speech([0.0, 0.0], lead=0.8, tail=1.2)
    late = [*spans[:2], (spans[2][0], spans[2][1] + 0.9)]  # Paraformer stretches the last token into the tail
    early = [(0.0, spans[0][1]), *spans[1:]]
    for times in (spans, late, early):
        result = score("a b c.", audio, times)
        assert (result.false_pauses, result.marks, result.pause_error) == (0, 0, 0.0)


def test_onsets_off_by_60_ms_change_no_decision():
    audio, spans = speech([0.0, 0.2, 0.3, 0.0])
    for delta in (-0.06, 0.06):
        moved = [(s + delta, e + delta) for s, e in spans]
        result = score("a b, c. d e", audio, moved)
        assert (result.hits, result.false_pauses) == (2, 0)


def test_capped_token_ends_are_no_pauses():
    """Paraformer caps a token at 0.24 s: the gap that leaves in the times is speech, not silence."""
    audio, spans = speech([0.0, 0.0], word=0.6)
    capped = [(s, s + 0.24) for s, _ in spans]
    assert score("a b c", audio, capped).false_pauses == 0


def test_unrecognized_tokens_make_their_marks_misses():
    audio, spans = speech([0.2, 0.2, 0.0])
    result = score("a, b, c d", audio, spans, heard="a x c d")
    assert (result.marks, result.scorable_marks, result.hits) == (2, 0, 0)
    assert result.pause_error == 1.0
    assert result.pause_error_scorable == 0.0
    assert result.scorable_share == 0.0
    half = score("a, b, c d", audio, spans[:3] + [spans[3]], heard="a b x d")
    assert (half.scorable_marks, half.hits, half.pause_error, half.pause_error_scorable) == (1, 1, 0.5, 0.0)


def test_an_insertion_makes_its_boundary_unscorable():
    audio, spans = speech([0.0, 0.3, 0.0])
    result = score("a b c", audio, spans, heard="a b b c")
    assert (result.false_pauses, result.marks) == (0, 0)
    assert sum(b.pause is None for b in result.boundaries) == 1


def test_empty_transcript_misses_every_mark():
    audio, _ = speech([0.3])
    result = score("a, b. c", audio, [], heard="")
    assert (result.pause_error, result.recall, result.precision) == (1.0, 0.0, None)


@pytest.mark.parametrize(
    "spans",
    [
        [(0.1, 0.4)],
        [(0.5, 0.6), (0.1, 0.4)],
        [(0.1, float("nan")), (0.4, 0.5)],
        [(0.4, 0.1), (0.4, 0.5)],
        [(0.1, 0.4), (0.4, 9.0)],
    ],
)
def test_unusable_times_give_null_with_a_reason(spans):
    audio, _ = speech([0.3])
    result = score("a, b", audio, spans)
    assert result.pause_error is None and result.pause_error_scorable is None
    assert result.f1 is None and result.hits is None and result.misses is None
    assert "timestamps unusable" in result.reason


def test_the_recognizers_own_doubt_is_passed_on():
    audio, spans = speech([0.3])
    assert "no times" in score("a, b", audio, spans, fault="the model gives no times").reason
    assert timestamp_fault(spans, 2, len(audio) / RATE, 0.25) is None


def test_thresholds_come_from_the_config():
    audio, spans = speech([0.2, 0.2])
    assert score("a, b c", audio, spans, config=PauseConfig(hit_seconds=0.3)).hits == 0
    assert score("a, b c", audio, spans, config=PauseConfig(spurious_seconds=0.1)).false_pauses == 1
    assert score("a, b c", audio, spans, config=PauseConfig(weak_bounds=(0.3, 0.5))).out_of_bounds == 1
    noisy = audio + np.random.default_rng(0).normal(0, 0.001, len(audio)).astype(np.float32)  # about -47 dB re speech
    assert score("a, b c", noisy, spans).hits == 1
    assert score("a, b c", noisy, spans, config=PauseConfig(level_below_db=60)).hits == 0


def test_decisions_survive_resampling():
    audio, spans = speech([0.0, 0.2, 0.3, 0.0])
    low = resample(audio, RATE, 16_000)
    assert low.dtype == np.float32 and abs(len(low) / 16_000 - len(audio) / RATE) < 1e-3
    silences = find_silences(low, 16_000, PauseConfig())
    assert [e - s for s, e in silences.inner] == pytest.approx([0.2, 0.3], abs=0.011)
    assert silences.lead == pytest.approx(0.1, abs=0.011) and silences.tail == pytest.approx(0.2, abs=0.011)


def test_all_silent_audio_has_no_inner_silence():
    silences = find_silences(np.full(RATE, 1e-5, np.float32), RATE, PauseConfig())
    assert (silences.inner, silences.lead, silences.tail) == ([], 1.0, 1.0)
    assert find_silences(np.zeros(0, np.float32), RATE, PauseConfig()).runs == []
