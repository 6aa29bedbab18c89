"""Recognizers by name and by language: what a configuration means, where folders are looked for, which model hears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import ToyRecognizer

from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.config import load_data
from talker_rl.reward.asr import names
from talker_rl.reward.asr.base import Transcript
from talker_rl.reward.asr.registry import RoutedRecognizer, build_recognizer
from talker_rl.reward.config import RecognizerConfig, RewardConfig, shared_languages

BUILT: list[str] = []


class Deaf(ToyRecognizer):
    """Hears its own path."""

    def _recognize(self, audios: list[np.ndarray], lang: str) -> list[Transcript]:
        return [Transcript([self.config.path, lang], [(0.0, 0.1), (0.1, 0.2)]) for _ in audios]

    def fingerprint(self) -> str:
        return f"deaf {self.config.path}"


def deaf(config: Any) -> Deaf:
    BUILT.append(config.path)
    return Deaf(config)


def two(**more: Any) -> RecognizerConfig:
    own = f"{__name__}:deaf"
    routes = {"zh": {"type": own, "path": "one"}, "en": {"type": own, "path": "two"}}
    return RecognizerConfig.model_validate(routes | more)


def test_a_name_says_its_type() -> None:
    assert RecognizerConfig(path="paraformer-zh").type == RecognizerConfig(path="SenseVoiceSmall").type == "funasr"
    assert RecognizerConfig(path="whisper-large-v3").type == "whisper"
    assert RecognizerConfig(path="models/whisper-large-v3").type == "whisper"  # a folder of that name
    assert RecognizerConfig(type="funasr", path="models/whisper-large-v3").type == "funasr"  # unless it is told
    assert RecognizerConfig(type="funasr", path="paraformer-zh").label == "paraformer-zh"
    with pytest.raises(ValueError, match="of type whisper, not funasr"):
        RecognizerConfig(type="funasr", path="whisper-large-v3")
    with pytest.raises(ValueError, match="reward.pauses.aligner"):
        RecognizerConfig(path="fa-zh")


def test_languages_may_stand_without_by_lang_and_share_what_stands_beside_them() -> None:
    config = RecognizerConfig.model_validate({
        "device": "cuda", "batch_size": 4, "zh": {"path": "paraformer-zh"},
        "en": {"path": "whisper-large-v3", "batch_size": 1},
    })
    assert config.label == "zh: paraformer-zh, en: whisper-large-v3"
    assert [(r.type, r.device, r.batch_size) for r in config.by_lang.values()] == [
        ("funasr", "cuda", 4), ("whisper", "cuda", 1)]
    assert RecognizerConfig.model_validate(config.model_dump()) == config
    assert [r.device for r in config.on_device("cpu").by_lang.values()] == ["cpu", "cpu"]
    assert config.identity() == config.on_device("cpu").identity() and "device" not in str(config.identity())
    with pytest.raises(ConfigError, match="No recognizer hears 'mixed'"):
        config.for_lang("mixed")
    rest = RecognizerConfig.model_validate({"path": "SenseVoiceSmall", "en": {"path": "whisper-large-v3"}})
    assert rest.for_lang("mixed").path == rest.for_lang("zh").path == "SenseVoiceSmall"
    with pytest.raises(ConfigError, match=r"unknown key `reward.recognizer.by_lang.zh.pfad`.*") as error:
        load_data({"reward": {"recognizer": {"zh": {"pfad": "x"}}}})
    assert "path" in str(error.value)
    with pytest.raises(ConfigError, match="by_lang"):
        load_data({"reward": {"recognizer": {"by_lang": {"fr": {"path": "x"}}}}})


def test_the_default_evaluator_is_another_model() -> None:
    assert RewardConfig().evaluator.path == "micro:eval"
    by_default = RewardConfig(recognizer=RecognizerConfig(path="models/paraformer-zh", device="cuda")).evaluator
    assert by_default.label == "zh: SenseVoiceSmall, en: whisper-large-v3" and by_default.by_lang["zh"].device == "cuda"
    sense = RecognizerConfig(path="SenseVoiceSmall")
    assert RewardConfig(recognizer=sense).evaluator.label == "zh: paraformer-zh, en: whisper-large-v3"
    assert shared_languages(sense, RewardConfig(recognizer=sense).evaluator) == []
    both = RecognizerConfig.model_validate({
        "zh": {"path": "models/SenseVoiceSmall"}, "en": {"path": "whisper-large-v3"},
    })
    assert shared_languages(sense, both) == ["zh"]
    assert shared_languages(sense, sense) == ["zh", "en", "mixed"]


def test_each_language_is_heard_by_its_model_which_is_loaded_when_it_occurs() -> None:
    BUILT.clear()
    heard = build_recognizer(two())
    assert isinstance(heard, RoutedRecognizer) and BUILT == []
    sound = [np.tile([0.1, -0.1], 8_000).astype(np.float32)]
    assert heard.transcribe(sound, "en")[0].tokens == ["two", "en"] and BUILT == ["two"]
    assert heard.transcribe(sound, "zh")[0].tokens == ["one", "zh"] and heard.transcribe(sound, "en")
    assert BUILT == ["two", "one"]
    with pytest.raises(ConfigError, match="mixed"):
        heard.transcribe(sound, "mixed")
    same = two(mixed={"type": f"{__name__}:deaf", "path": "two"})
    routed = RoutedRecognizer(same)
    routed.load()
    assert routed.heard_by("en") is routed.heard_by("mixed") and BUILT[2:] == ["one", "two"]
    other = two(zh={"type": f"{__name__}:deaf", "path": "else"})
    assert heard.fingerprint() == RoutedRecognizer(two()).fingerprint()
    assert len({heard.fingerprint(), routed.fingerprint(), RoutedRecognizer(other).fingerprint()}) == 3


def test_a_name_is_looked_for_in_the_folders_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    (tmp_path / "models" / "paraformer-zh").mkdir(parents=True)
    (tmp_path / "disk" / "paraformer-zh").mkdir(parents=True)
    assert names.resolve("paraformer-zh") == tmp_path / "models" / "paraformer-zh"
    monkeypatch.setenv(names.MODELS_VARIABLE, f"{tmp_path}/missing:{tmp_path}/disk")
    assert names.resolve("paraformer-zh") == tmp_path / "disk" / "paraformer-zh"
    assert names.resolve("SenseVoiceSmall") == tmp_path / "SenseVoiceSmall"  # nowhere
    with pytest.raises(CheckpointError, match="SenseVoiceSmall is not on this machine") as error:
        names.model_folder("SenseVoiceSmall", [])
    assert "FunAudioLLM/SenseVoiceSmall" in str(error.value) and "models/SenseVoiceSmall" in str(error.value)
    with pytest.raises(CheckpointError, match="does not exist") as typo:
        names.model_folder("paraformer-zn", [])
    assert "did you mean paraformer-zh?" in str(typo.value)


def test_files_are_hashed_anew_when_they_change(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = names.hash_files(tmp_path)
    assert names.hash_files(tmp_path) == first
    (tmp_path / "a").write_text("22")
    assert names.hash_files(tmp_path) != first
