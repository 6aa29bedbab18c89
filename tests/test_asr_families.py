"""SenseVoiceSmall, SeACo-Paraformer, the aligner: FunASR's own classes in the published layout, small and trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("funasr")

from asr_folders import BEEP, SAID, write_aligner, write_seaco, write_sense_voice  # noqa: E402

from talker_rl.base.errors import CheckpointError  # noqa: E402
from talker_rl.base.sound import resample  # noqa: E402
from talker_rl.base.text.tokens import tokens_of  # noqa: E402
from talker_rl.micro import checkpoint_dir  # noqa: E402
from talker_rl.reward.asr.aligner import Aligner  # noqa: E402
from talker_rl.reward.asr.base import Failure, Transcript  # noqa: E402
from talker_rl.reward.asr.funasr_recognizer import (  # noqa: E402
    FunASRRecognizer,
    parse_rich,
    timed_pieces,
)
from talker_rl.reward.config import AlignerConfig, PauseConfig, RecognizerConfig, RewardConfig  # noqa: E402
from talker_rl.reward.scorer import ScoreItem, Scorer, ScoreResult  # noqa: E402


@pytest.fixture(scope="module")
def speech() -> list[Any]:
    """Six sentences of the micro world with their true onsets."""
    from talker_rl.micro.corpus import make_requests, render_all

    return render_all(make_requests(6, seed=41), progress=False)


@pytest.fixture(scope="module")
def aligner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_aligner(tmp_path_factory.mktemp("fa") / "fa-zh", checkpoint_dir() / "asr" / "reward")


def onsets(rendered: Any) -> list[float]:
    """True onset of each token: a word of several characters shares its time among them."""
    found = []
    for word in rendered.words:
        count = len(tokens_of(word.word))
        found += [word.start + k * (word.end - word.start) / count for k in range(count)]
    return found


def test_sense_voice_hears_text_without_tags_and_times_its_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds = write_sense_voice(tmp_path / "models" / "SenseVoiceSmall")
    monkeypatch.chdir(tmp_path)
    recognizer = FunASRRecognizer("SenseVoiceSmall")  # found by its name in ./models
    asked: list[dict[str, Any]] = []
    generate = recognizer._model.generate
    monkeypatch.setattr(recognizer._model, "generate", lambda **kw: asked.append(kw) or generate(**kw))
    for lang, (sound, pieces) in sounds.items():
        starts = [onset for piece, onset in pieces if piece.strip("▁")]
        [heard] = recognizer.transcribe([sound], lang)
        assert isinstance(heard, Transcript) and heard.text == SAID[lang] and heard.tokens == tokens_of(SAID[lang])
        assert heard.spans_fault is None and len(heard.spans) == len(heard.tokens)
        assert heard.spans[0][0] == pytest.approx(starts[0], abs=0.07)  # a frame has 60 ms
        assert heard.spans[-1][1] == pytest.approx(starts[-1] + BEEP, abs=0.07)
        assert heard.spans == sorted(heard.spans)
        assert recognizer.transcribe([sound], "mixed") == [heard]
    assert [(a["language"], a["use_itn"]) for a in asked] == [("en", False), ("auto", False), ("zh", False),
                                                             ("auto", False)]


def test_rich_results_are_parsed_by_their_letters() -> None:
    tags = "<|en|><|HAPPY|><|Speech|><|woitn|>"
    path = [0, 5, 5, 0, 6, 7, 7, 0, 0, 9]
    assert timed_pieces(path, 0, 0.06) == [(5, (0.03, 0.15)), (6, (pytest.approx(0.21), pytest.approx(0.27))),
                                           (7, (pytest.approx(0.27), pytest.approx(0.39))),
                                           (9, (pytest.approx(0.51), pytest.approx(0.57)))]
    pieces = [("▁I", (0.0, 0.1)), ("'", (0.1, 0.2)), ("m", (0.2, 0.3)), ("<|BGM|>", (0.3, 0.4)), ("苹果", (0.4, 0.6)),
              ("▁fa", (0.7, 0.8)), ("n", (0.8, 1.0))]
    heard = parse_rich(f"{tags}I'm<|BGM|> 苹果 fan", pieces)
    assert heard.text == "I'm 苹果 fan" and heard.tokens == ["i'm", "苹", "果", "fan"]
    assert np.allclose(heard.spans, [(0.0, 0.3), (0.4, 0.5), (0.5, 0.6), (0.7, 1.0)]) and heard.spans_fault is None
    other = parse_rich(f"{tags}I am 苹果 fan", pieces)
    assert other.tokens[1] == "am" and other.spans == [] and "another text" in other.spans_fault
    assert parse_rich("<|nospeech|><|EMO_UNKNOWN|><|Event_UNK|><|woitn|>", []) == Transcript([], [])


def test_seaco_paraformer_in_the_published_layout_hears_as_its_paraformer(tmp_path: Path, speech: list[Any]) -> None:
    plain = checkpoint_dir() / "asr" / "reward"
    folder = write_seaco(tmp_path / "paraformer-zh", plain)
    sounds = [resample(r.audio, 24_000, 16_000) for r in speech[:3]]
    recognizer = FunASRRecognizer(str(folder), config=RecognizerConfig(path=str(folder)))
    assert type(recognizer._model.model).__name__ == "SeacoParaformer"
    heard = recognizer.transcribe(sounds, "mixed")
    assert heard == FunASRRecognizer(str(plain)).transcribe(sounds, "mixed")
    assert [h.tokens for h in heard] == [tokens_of(r.text) for r in speech[:3]]
    assert all(h.text and h.text.split() for h in heard)


def test_the_aligner_finds_the_onsets_of_the_given_text(aligner_folder: Path, speech: list[Any]) -> None:
    config = AlignerConfig(path=str(aligner_folder), languages=["zh", "en", "mixed"])
    aligner = Aligner(config)
    errors = []
    for rendered in speech:
        spans = aligner.align(resample(rendered.audio, 24_000, 16_000), tokens_of(rendered.text))
        assert not isinstance(spans, Failure) and len(spans) == len(tokens_of(rendered.text))
        errors += [abs(start - true) for (start, _), true in zip(spans, onsets(rendered), strict=True)]
    assert np.median(errors) < 0.06
    strange = aligner.align(resample(speech[0].audio, 24_000, 16_000), ["xylophone", *tokens_of(speech[0].text)])
    assert not isinstance(strange, Failure) and len(strange) == len(tokens_of(speech[0].text)) + 1
    assert not Aligner(AlignerConfig(path=str(aligner_folder))).knows("en")
    assert aligner.fingerprint() != Aligner(AlignerConfig(path=str(aligner_folder))).fingerprint()
    with pytest.raises(CheckpointError, match="BiCifParaformer aligns no text"):
        Aligner(AlignerConfig(path=str(checkpoint_dir() / "asr" / "reward")))


def test_pauses_take_the_aligners_times(
    aligner_folder: Path, speech: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a recognizer whose times are lost, pauses are scored by the aligner's; without an aligner they are null."""
    lost = FunASRRecognizer("micro:reward")
    hear = lost._recognize
    monkeypatch.setattr(lost, "_recognize", lambda a, lang: [Transcript(h.tokens, [], "lost") for h in hear(a, lang)])
    pauses = PauseConfig(aligner=AlignerConfig(path=str(aligner_folder), languages=["en", "zh", "mixed"]))
    items = [ScoreItem(id=str(k), text=r.text, audio=r.audio, lang=r.lang) for k, r in enumerate(speech)]
    scores = Scorer(RewardConfig(pauses=pauses), lost).score(items)
    errors = [s.components["pause_error"] for s in scores if isinstance(s, ScoreResult)]
    assert errors == [0.0] * len(items)
    failed = Scorer(RewardConfig(), lost).score(items[:1])
    assert isinstance(failed[0], Failure) and "lost" in failed[0].message
    one = Scorer(RewardConfig(pauses=pauses), lost)
    assert one.fingerprint() != Scorer(RewardConfig(), lost).fingerprint() and one.hearing() != lost.fingerprint()
