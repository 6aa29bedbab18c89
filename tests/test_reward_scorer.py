"""The scorer and the recognizer guards, with a recognizer whose answers the test knows."""

import json

import numpy as np
import pytest
import torch

from talker_rl.base.errors import CheckpointError, ConfigError, StageError
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.records.rows import from_row, to_row
from talker_rl.reward.asr.base import (
    SAMPLE_RATE,
    Failure,
    GuardedRecognizer,
    Transcript,
    check_audio,
    transcript_of,
    trim,
)
from talker_rl.reward.asr.names import model_folder, resolve
from talker_rl.reward.asr.registry import build_recognizer
from talker_rl.reward.combine import BUILT_IN_COMPONENTS
from talker_rl.reward.config import RecognizerConfig, RewardConfig
from talker_rl.reward.scorer import ScoreItem, Scorer, ScoreResult, to_score_row

RATE = 24_000
WORDS = {150: "river", 300: "garden", 600: "winter"}


def say(*words: int | float) -> np.ndarray:
    """Integers are words (tones of that frequency, 0.3 s), floats are silences in seconds."""
    parts = []
    for w in words:
        n = round((w if isinstance(w, float) else 0.3) * RATE)
        t = np.arange(n) / RATE
        parts.append(np.zeros(n) if isinstance(w, float) else 0.3 * np.sin(2 * np.pi * w * t + 0.5))
    return np.concatenate(parts).astype(np.float32)


class ToneRecognizer(GuardedRecognizer):
    """Hears a tone as a word by its zero crossings; every answer follows from the audio alone.

    Above 0.85 it raises and below -0.85 it loses a result, as a poisoned input would make a real one do.
    """

    def __init__(self, **settings):
        super().__init__(RecognizerConfig(**settings))
        self.batches: list[int] = []

    def fingerprint(self) -> str:
        return "tones-1"

    def _recognize(self, audios, lang):
        self.batches.append(len(audios))
        assert torch.get_num_threads() == self.config.threads
        if any(a.max() > 0.85 for a in audios):
            raise RuntimeError("poisoned")
        if any(a.min() < -0.85 for a in audios):
            return [Transcript([], [])]
        return [self._hear(a) for a in audios]

    def _hear(self, audio):
        size = SAMPLE_RATE // 50
        frames = audio[: len(audio) // size * size].reshape(-1, size)
        heard: list[tuple[str, tuple[float, float]]] = []
        for k, frame in enumerate(frames):
            if np.sqrt(np.mean(frame**2)) < 0.19:
                heard.append(("", (0, 0)))
                continue
            crossings = np.sum(np.diff(np.signbit(frame))) / 2 * 50
            word = WORDS[min(WORDS, key=lambda f: abs(f - crossings))]
            if heard and heard[-1][0] == word and heard[-1][1][1] - heard[-1][1][0] < 0.29:
                heard[-1] = (word, (heard[-1][1][0], (k + 1) / 50))
            else:
                heard.append((word, (k / 50, (k + 1) / 50)))
        return transcript_of([(w, s) for w, s in heard if w])


def item(text="River garden, winter.", audio=None, **kwargs):
    if audio is None:
        audio = say(0.1, 150, 300, 0.2, 600, 0.2)
    defaults = {"codes": list(range(round(len(audio) / RATE * 50))), "end_reason": "eos", "prompt_id": "p"}
    return ScoreItem(**({"id": "p-0", "text": text, "audio": audio} | defaults | kwargs))


@pytest.fixture
def scorer():
    return Scorer(RewardConfig(), ToneRecognizer())


def test_clean_speech_earns_one(scorer):
    [result] = scorer.score([item()])
    assert isinstance(result, ScoreResult)
    assert result.transcript == ["river", "garden", "winter"]
    assert result.components["wer"] == 0.0 and result.components["pause_error"] == 0.0
    assert result.value == pytest.approx(1.0)
    assert result.errors == "[]"
    assert set(result.components) == set(BUILT_IN_COMPONENTS)


def test_errors_and_components(scorer):
    wrong, doubled, rushed = scorer.score(
        [
            item(audio=say(0.1, 150, 600, 0.2, 600, 0.2)),
            item(audio=say(0.1, 150, 300, 300, 0.2, 600, 0.2)),
            item(audio=say(0.1, 150, 300, 600, 0.2)),
        ]
    )
    assert json.loads(wrong.errors) == [["S", "garden", "winter"]]
    assert wrong.components["wer"] == pytest.approx(1 / 3)
    assert (wrong.components["pause_error"], wrong.components["pause_error_scorable"]) == (1.0, None)
    assert doubled.components["insertions"] == 1
    assert rushed.components["wer"] == 0.0 and rushed.components["pause_error"] == 1.0
    assert wrong.value < rushed.value < 1.0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"end_reason": "invalid_code", "audio": None}, "invalid_code"),
        ({"end_reason": "invalid_code"}, "invalid_code"),
        ({"end_reason": "empty", "codes": [], "audio": None}, "empty"),
        ({"codes": []}, "empty"),
        ({"text": "..."}, "empty_reference"),
        ({"text": ""}, "empty_reference"),
        ({"lang": "xx"}, "bad_language"),
        ({"audio": np.zeros(0, np.float32)}, "too_short"),
        ({"audio": np.ones(1, np.float32)}, "too_short"),
        ({"audio": np.full(RATE, np.nan, np.float32)}, "non_finite"),
        ({"audio": np.array([0.1, np.inf] * 5000, np.float32)}, "non_finite"),
        ({"audio": np.zeros((2, RATE), np.float32)}, "bad_audio"),
        ({"audio": np.zeros(RATE, np.int16)}, "bad_audio"),
        ({"audio": [0.0] * RATE}, "bad_audio"),
    ],
)
def test_a_failure_is_never_a_number(scorer, change, code):
    bad = ScoreItem(**({"id": "p-0", "text": "river", "audio": say(150), "codes": [1] * 15, "prompt_id": "p"} | change))
    before, result, after = scorer.score([item(), bad, item()])
    assert isinstance(result, Failure) and result.code == code and result.message
    assert before.value == after.value == pytest.approx(1.0)
    row = to_score_row(bad, result)
    assert (row.status, row.reward, row.components, row.error_code) == ("failed", None, {}, code)


def test_missing_audio_is_retryable(scorer):
    [result] = scorer.score([ScoreItem(id="x", text="river", audio=None, codes=[1], end_reason="eos")])
    assert isinstance(result, Failure) and (result.code, result.retryable) == ("no_audio", True)


def test_a_silent_candidate_is_scored_as_all_deleted(scorer):
    [result] = scorer.score([item(audio=np.full(RATE, 1e-5, np.float32))])
    assert isinstance(result, ScoreResult)
    assert result.transcript == [] and result.components["wer"] == 1.0 and result.components["deletions"] == 3
    assert result.components["pause_error"] == 1.0 and 0.0 <= result.value < 0.01


def test_short_codes_are_scored_but_short_audio_alone_is_a_failure(scorer):
    audio = say(150)[: 3 * RATE // 50]
    own, fault, unknown = scorer.score(
        [item(audio=audio, codes=[1, 2, 3]), item(audio=audio, codes=[1] * 90), item(audio=audio, codes=None)]
    )
    assert isinstance(own, ScoreResult) and own.components["wer"] == 1.0
    assert isinstance(fault, Failure) and fault.code == "too_short"
    assert isinstance(unknown, Failure) and unknown.code == "too_short"


def test_a_poisoned_item_takes_no_other_along():
    recognizer = ToneRecognizer(batch_size=4)
    scorer = Scorer(RewardConfig(), recognizer)
    poisoned = say(0.1, 150) * 3
    results = scorer.score([item(), item(audio=poisoned), item(audio=say(300)), item(text="river", audio=say(150))])
    assert isinstance(results[1], Failure)
    assert (results[1].code, results[1].retryable) == ("recognizer_error", True)
    assert "poisoned" in results[1].message
    assert results[0].value == pytest.approx(1.0) and results[3].value == pytest.approx(1.0)
    assert recognizer.batches == [4, 1, 1, 1, 1]


def test_too_few_results_are_noticed_and_never_misattributed():
    recognizer = ToneRecognizer(batch_size=3)
    loses = np.where(say(0.1, 150) < 0, say(0.1, 150) * 3, say(0.1, 150))
    results = recognizer.transcribe([_low(a) for a in (say(150), loses, say(300))], "en")
    assert [r.tokens for r in results] == [["river"], [], ["garden"]]
    assert recognizer.batches == [3, 1, 1, 1]


def test_a_recognizer_that_cannot_work_stops_everything():
    class Broken(ToneRecognizer):
        def _recognize(self, audios, lang):
            raise StageError("the service is gone")

    with pytest.raises(StageError):
        Scorer(RewardConfig(), Broken()).score([item()])


def test_a_recognizer_that_miscounts_gives_failures():
    class Miscounts:
        def transcribe(self, audios, lang):
            return [Transcript(["river"], [(0.0, 0.3)])]

        def fingerprint(self):
            return "x"

    results = Scorer(RewardConfig(), Miscounts()).score([item(), item()])
    assert [r.code for r in results] == ["result_count"] * 2


def test_scores_do_not_depend_on_neighbors_or_order():
    items = [
        item(id="a"),
        item(id="b", audio=say(0.1, 150, 0.4, 600)),
        item(id="c", audio=say(0.05, 300, 600, 300, 150, 0.3)),
        item(id="d", audio=np.full(RATE, np.nan, np.float32)),
        item(id="e", lang="mixed", audio=say(600)),
    ]
    scorer = Scorer(RewardConfig(), ToneRecognizer(batch_size=2))
    alone = [scorer.score([i])[0] for i in items]
    assert scorer.score(items) == alone
    assert scorer.score(items[::-1]) == alone[::-1]


def test_unusable_times_fail_when_pauses_count_and_are_noted_when_not():
    class NoTimes(ToneRecognizer):
        def _hear(self, audio):
            return Transcript(super()._hear(audio).tokens, [], "the model gives no times")

    [failed] = Scorer(RewardConfig(), NoTimes()).score([item()])
    assert isinstance(failed, Failure) and failed.code == "null_component" and "no times" in failed.message
    [result] = Scorer(RewardConfig(weights={"pause": 0}), NoTimes()).score([item()])
    assert result.value == pytest.approx(1.0) and result.components["pause_error"] is None
    row = to_score_row(item(), result)
    assert row.status == "ok" and "no times" in row.error_message


def test_rows_round_trip(scorer):
    [result] = scorer.score([item()])
    row = to_score_row(item(), result)
    assert (row.prompt_id, row.candidate_id, row.status, row.reward) == ("p", "p-0", "ok", result.value)
    again = from_row(type(row), to_row(row))
    assert again.components == row.components and [tuple(s) for s in again.spans] == row.spans


def test_item_from_candidate():
    prompt = Prompt(text="river", speaker="Ethan", lang="en", reference_seconds=0.4)
    candidate = Candidate(prompt.prompt_id, "c", "Ethan", 3, [1, 2], 8294, "eos", [0.0] * 3)
    made = ScoreItem.from_candidate(prompt, candidate, say(150))
    assert (made.id, made.prompt_id, made.seed, made.reference_seconds) == ("c", prompt.prompt_id, 3, 0.4)


def test_fingerprint_follows_what_changes_scores(scorer):
    same = Scorer(RewardConfig(batch_size=3, max_failure_rate=0.9), ToneRecognizer()).fingerprint()
    other = Scorer(RewardConfig(wer_scale=2.0), ToneRecognizer()).fingerprint()
    assert scorer.fingerprint() == same != other


def test_thread_count_is_restored_even_after_a_fault():
    before = torch.get_num_threads()
    recognizer = ToneRecognizer(threads=before + 2)
    recognizer.transcribe([_low(say(150)), _low(say(150) * 3)], "en")
    assert torch.get_num_threads() == before


def test_trimmed_silence_is_given_back_to_the_times():
    audio = _low(say(1.0, 150, 300, 1.5))
    kept = ToneRecognizer(trim_silence=False).transcribe([audio], "en")[0]
    cut = ToneRecognizer().transcribe([audio], "en")[0]
    assert cut.tokens == kept.tokens == ["river", "garden"]
    assert np.allclose(cut.spans, kept.spans, atol=0.021)
    short, offset = trim(audio, SAMPLE_RATE, -60.0, 0.1)
    assert len(short) / SAMPLE_RATE == pytest.approx(0.8, abs=0.05) and offset == pytest.approx(0.9, abs=0.03)


def test_check_audio_levels():
    tone = np.tile([1.0, -1.0], 800).astype(np.float32)
    assert check_audio(0.01 * tone, SAMPLE_RATE, 0.1, -60.0) is None
    assert check_audio(0.0009 * tone, SAMPLE_RATE, 0.1, -60.0).code == "silent"
    assert check_audio(0.0009 * tone + 0.2, SAMPLE_RATE, 0.1, -60.0).code == "silent"  # an offset is no sound
    assert check_audio(0.01 * tone[:-1], SAMPLE_RATE, 0.1, -60.0).code == "too_short"
    assert check_audio(None, SAMPLE_RATE, 0.1, -60.0).code == "bad_audio"


def test_a_piece_of_several_tokens_shares_its_time():
    result = transcript_of([("苹果", (1.0, 2.0)), ("River", (2.0, 2.5)), ("<unk>", (2.5, 3.0))])
    assert result.tokens == ["苹", "果", "river", "<unk>"]
    assert result.spans == [(1.0, 1.5), (1.5, 2.0), (2.0, 2.5), (2.5, 3.0)]


def test_folders_are_checked_before_a_library_sees_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TALKER_RL_MICRO_DIR", str(tmp_path))
    assert resolve("micro:eval") == tmp_path / "asr" / "eval"
    for path in ("micro:reward", "no/such/hub-name"):
        with pytest.raises(CheckpointError, match="does not exist"):
            model_folder(path, [])
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(CheckpointError, match="model.pt is missing"):
        build_recognizer(RecognizerConfig(path=str(tmp_path)))
    with pytest.raises(ConfigError, match="unknown recognizer type"):
        build_recognizer(RecognizerConfig(type="kaldi"))


def build_tones(config):
    return ToneRecognizer(**config.model_dump())


def test_a_recognizer_of_ones_own_by_import_path():
    assert isinstance(build_recognizer(RecognizerConfig(type=f"{__name__}:build_tones")), ToneRecognizer)


def _low(audio):
    from talker_rl.base.sound import resample

    return resample(audio, RATE, SAMPLE_RATE)
