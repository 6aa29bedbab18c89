"""The pause score on sound made by hand, where every silence is known to the sample."""

import numpy as np
import pytest

from talker_rl.base.sound import frame_levels, resample
from talker_rl.base.text.alignment import align
from talker_rl.base.text.tokens import normalize
from talker_rl.records.token_classes import timestamp_fault
from talker_rl.reward.config import PauseConfig
from talker_rl.reward.pauses import score_pauses
from talker_rl.reward.silences import find_silences, silence_threshold

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
    return score_pauses(reference.marks, hits, spans, silences, config, len(transcript), fault, free=reference.free)


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
    assert result.pause_error_scorable == 0.0  # "c d" was judged
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
    for fault in (None, "the model gives no times"):  # which an empty transcript needs not
        result = score("a, b. c", audio, [], heard="", fault=fault)
        assert (result.pause_error, result.recall, result.precision) == (1.0, 0.0, None)


@pytest.mark.parametrize(
    ("text", "heard", "error", "scorable"),
    [
        ("a b c", "", 1.0, None),  # silence has no false pause, and is not perfect for it
        ("a b c", "x", 1.0, None),
        ("a b c", "x b y", 0.0, None),  # what is paid for it is the share of right words, a third
        ("a b c", "a b y", 0.0, 0.0),  # one boundary was heard, without a false pause
        ("a b c", "a b c", 0.0, 0.0),
        ("a", "a", 0.0, 0.0),  # no boundary to judge: the word is all there is
        ("a", "x", 1.0, None),
        ("a", "", 1.0, None),
    ],
)
def test_nothing_judged_is_not_perfect(text, heard, error, scorable):
    heard_tokens = heard.split()
    audio, spans = speech([0.0] * max(0, len(heard_tokens) - 1))
    result = score(text, audio, spans[: len(heard_tokens)], heard=heard)
    assert (result.marks, result.pause_error, result.pause_error_scorable) == (0, error, scorable)


@pytest.mark.parametrize("text", ["a (b)", "a “b”", "a ~ b", "a / b", "a [b]", "甲《乙》", "甲·乙", "甲～乙"])
def test_a_pause_at_a_bracket_is_neither_missed_nor_false(text):
    for pause in (0.0, 0.2, 0.6, 1.4):
        audio, spans = speech([pause])
        result = score(text, audio, spans)
        assert (result.false_pauses, result.pause_error) == (0, 0.0), (text, pause)
    audio, spans = speech([1.6], word=0.8)
    assert score(text, audio, spans).false_pauses == 1  # longer than any mark allows


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
    assert score("a, b c", noisy, spans, config=PauseConfig(level_below_db=60)).hits == 1  # the noise is the floor
    assert score("a, b c", noisy, spans, config=PauseConfig(level_below_db=60, floor_margin_db=50)).hits == 0


RNG = np.random.default_rng(14)


def hiss(seconds: float, dbfs: float) -> np.ndarray:
    return (RNG.normal(size=round(seconds * RATE)) * 10 ** (dbfs / 20)).astype(np.float32)


@pytest.mark.parametrize("seconds", [2, 10, 38, 120])
@pytest.mark.parametrize("dbfs", [-300, -90, -70, -62])
def test_a_silent_tail_is_seen_however_long(seconds, dbfs):
    audio, _ = speech([0.2, 0.4])
    found = find_silences(np.concatenate([audio, hiss(seconds, dbfs)]), RATE, PauseConfig())
    assert found.tail == pytest.approx(0.2 + seconds, abs=0.03)
    assert [e - s for s, e in found.inner] == pytest.approx([0.2, 0.4], abs=0.02)


def test_a_silent_lead_and_long_pauses_are_seen():
    audio, _ = speech([9.0, 0.3], lead=20.0)
    found = find_silences(audio, RATE, PauseConfig())
    assert found.lead == pytest.approx(20.0, abs=0.02)
    assert [e - s for s, e in found.inner] == pytest.approx([9.0, 0.3], abs=0.02)


def eight_bits(audio):
    return ((np.round((audio + 1) * 127.5) - 128) / 128).astype(np.float32)  # unsigned, half a step off zero


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a + 0.1,
        lambda a: a - 0.02,
        lambda a: a + np.linspace(-0.2, 0.2, len(a), dtype=np.float32),  # a drifting offset
        lambda a: a * 0.01,
        eight_bits,
        lambda a: eight_bits(a * 0.5),
        lambda a: a + hiss(len(a) / RATE, -50),
        lambda a: a + hiss(len(a) / RATE, -40),
        lambda a: a + hiss(len(a) / RATE, -32),
        lambda a: a + (0.01 * np.sin(2 * np.pi * 50 * np.arange(len(a)) / RATE)).astype(np.float32),  # mains hum
        lambda a: eight_bits(a + hiss(len(a) / RATE, -45)),
        lambda a: eight_bits(a + hiss(len(a) / RATE, -52)),
        lambda a: a + hiss(len(a) / RATE, -40) * (np.arange(len(a)) > 1200) * (np.arange(len(a)) < len(a) - 1200),
    ],
)
def test_offsets_noise_and_8_bit_sound_leave_the_pauses(change):
    audio, spans = speech([0.0, 0.3, 0.0, 0.5], lead=0.3, tail=0.6)
    changed = change(audio)
    result = score("a b, c d. e", changed, spans)
    assert (result.hits, result.false_pauses, result.out_of_bounds) == (2, 0, 0)
    found = find_silences(changed, RATE, PauseConfig())
    assert found.lead == pytest.approx(0.3, abs=0.03) and found.tail == pytest.approx(0.6, abs=0.03)


def test_a_noisy_tail_is_silence_too():
    audio, _ = speech([0.3])
    noisy = np.concatenate([audio, quiet(30)]) + hiss(30 + len(audio) / RATE, -42)
    assert find_silences(noisy, RATE, PauseConfig()).tail == pytest.approx(30.2, abs=0.05)


def test_speech_without_a_pause_has_no_floor():
    """Syllables rise and fall by 20 dB, and no quarter of a second stays below them: nothing is silent."""
    t = np.arange(3 * RATE) / RATE
    swell = 10 ** (-(10 - 10 * np.cos(2 * np.pi * 5 * t)) / 20)
    syllables = (0.5 * swell * np.sin(2 * np.pi * 180 * t)).astype(np.float32)
    assert find_silences(syllables, RATE, PauseConfig()).runs == []


def test_noise_between_words_is_found_under_padding_of_zeros():
    audio, spans = speech([0.0, 0.3, 0.0, 0.5], lead=0.3, tail=0.6)
    noisy = np.concatenate([quiet(2), audio + hiss(len(audio) / RATE, -40), quiet(2)])
    moved = [(s + 2, e + 2) for s, e in spans]
    result = score("a b, c d. e", noisy, moved)
    assert (result.hits, result.false_pauses) == (2, 0)
    found = find_silences(noisy, RATE, PauseConfig())
    assert found.lead == pytest.approx(2.3, abs=0.03) and found.tail == pytest.approx(2.6, abs=0.03)


def test_the_end_of_a_word_that_dies_away_is_no_floor():
    t = np.arange(RATE) / RATE
    dying = (0.5 * np.exp(-6 * t) * np.sin(2 * np.pi * 200 * t)).astype(np.float32)
    found = find_silences(np.concatenate([tone(0.4), dying, quiet(0.5)]), RATE, PauseConfig())
    assert found.tail < 0.5 + 0.5  # 35 dB below after 0.67 s, not 12


@pytest.mark.parametrize(("seconds", "dbfs"), [(0.3, -26), (0.3, -18), (0.26, -20)])
@pytest.mark.parametrize("ends", [0.0, 0.3])
def test_a_long_consonant_is_no_pause(seconds, dbfs, ends):
    parts = [quiet(ends), tone(0.5), hiss(seconds, dbfs - 3), tone(0.5), quiet(ends)]
    found = find_silences(np.concatenate(parts), RATE, PauseConfig())
    assert found.inner == []


@pytest.mark.parametrize("dbfs", [-35, -30])
def test_short_pauses_are_found_in_noise_without_silent_ends(dbfs):
    audio, _ = speech([0.2] * 5, lead=0.0, tail=0.0)
    found = find_silences(audio + hiss(len(audio) / RATE, dbfs), RATE, PauseConfig())
    assert [e - s for s, e in found.inner] == pytest.approx([0.2] * 5, abs=0.03)


@pytest.mark.parametrize("dbfs", [-40, -30])
def test_dither_around_it_does_not_hide_pauses_in_noise(dbfs):
    audio, _ = speech([0.5, 0.4], lead=0.3, tail=0.6)
    noisy = audio + hiss(len(audio) / RATE, dbfs)
    dither = (RNG.integers(-1, 2, RATE // 2) / 32768).astype(np.float32)
    around = np.concatenate([dither, noisy, dither])
    assert [e - s for s, e in find_silences(around, RATE, PauseConfig()).inner] == pytest.approx([0.5, 0.4], abs=0.03)


@pytest.fixture(scope="module")
def clean() -> list[np.ndarray]:
    """Clean speech of both voices and languages, as it is and without its silent ends."""
    from talker_rl.micro.corpus import RenderRequest, render_all
    from talker_rl.micro.lexicon import Clause

    en, zh = ("bottle", "garden", "music", "village", "orange"), ("苹果", "老师", "森林", "太阳")
    requests = [
        RenderRequest([Clause(lang, words[k:] + words[:k], ".")], speaker)
        for lang, words in (("en", en), ("zh", zh)) for k in range(4) for speaker in ("Chelsie", "Ethan")
    ]
    sounds = [np.asarray(r.audio, dtype=np.float32) for r in render_all(requests, progress=False)]
    loud = [np.flatnonzero(np.abs(sound) > 0.02) for sound in sounds]
    return sounds + [sound[at[0] : at[-1]] for sound, at in zip(sounds, loud, strict=True)]


@pytest.mark.parametrize("around", [0.0, 0.1, 1.0])
def test_clean_speech_has_no_noise_floor(clean, around):
    """Not even where nothing of it is silent: its closures lie far below its consonants."""
    for sound in clean:
        levels = frame_levels(np.concatenate([quiet(around), sound, quiet(around)]), 480, 240)
        threshold = silence_threshold(levels, PauseConfig())
        assert threshold < np.percentile(levels[levels > levels.max() - 35], 95) - 34


def test_a_click_in_silence_is_no_speech():
    audio, _ = speech([0.3])
    clicked = np.concatenate([audio, quiet(5), 3 * tone(0.01), quiet(5)])
    found = find_silences(clicked, RATE, PauseConfig())
    assert found.tail == pytest.approx(10.2, abs=0.05)


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


def test_the_worked_example_of_the_docs():
    audio, spans = speech([0.30, 0.0, 0.40, 0.20, 0.0, 1.70, 0.0])
    result = score("Dr. Lee came (late), sat down. It rained.", audio, spans)
    assert (result.marks, result.hits, result.false_pauses, result.out_of_bounds) == (2, 2, 1, 1)
    assert result.pause_error == pytest.approx(0.5)
