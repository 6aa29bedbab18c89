"""From a `RecognizerConfig` to a recognizer."""

from __future__ import annotations

import numpy as np

from talker_rl.base.errors import ConfigError
from talker_rl.base.ids import stable_hash
from talker_rl.base.text.tokens import LANGUAGES
from talker_rl.reward.asr.base import LIBRARIES, Failure, Recognizer, Transcript, file_fingerprint
from talker_rl.reward.asr.names import obtain
from talker_rl.reward.recognizer_config import RecognizerConfig, RecognizerSettings


def build_recognizer(config: RecognizerSettings) -> Recognizer:
    """The configured recognizer: loaded, or where there is one per language, loaded when its language is first heard.

    Raises:
        ConfigError: unknown type. CheckpointError: its folder is missing, incomplete or does not fit.

    >>> [heard] = build_recognizer(RecognizerConfig()).transcribe([sound_16k], "en")
    """
    if isinstance(config, RecognizerConfig) and config.by_lang:
        return RoutedRecognizer(config)
    if config.type == "funasr":
        from talker_rl.reward.asr.funasr_recognizer import FunASRRecognizer

        return FunASRRecognizer(config.path, config=config)
    if config.type == "whisper":
        from talker_rl.reward.asr.whisper_recognizer import WhisperRecognizer

        return WhisperRecognizer(config.path, config=config)
    if ":" in config.type:
        from talker_rl.reward.combine import load_function

        return load_function(config.type, "reward.recognizer.type")(config)
    raise ConfigError(
        f"unknown recognizer type {config.type!r}",
        where="reward.recognizer.type",
        fix="use funasr, whisper, or the import path module:factory of one's own",
    )


class RoutedRecognizer:
    """A recognizer per language behind the `Recognizer` protocol; languages of equal settings share one model."""

    def __init__(self, config: RecognizerConfig) -> None:
        self.config = config
        self._loaded: dict[str, Recognizer] = {}

    def transcribe(self, audios: list[np.ndarray], lang: str) -> list[Transcript | Failure]:
        """See `Recognizer.transcribe`.

        Raises:
            ConfigError: no recognizer is named for this language.
        """
        return self.heard_by(lang).transcribe(audios, lang)

    def heard_by(self, lang: str) -> Recognizer:
        """The language's recognizer, loaded now if it was not."""
        settings = self.config.for_lang(lang)
        key = settings.model_dump_json()
        if key not in self._loaded:
            self._loaded[key] = build_recognizer(settings)
        return self._loaded[key]

    def fingerprint(self) -> str:
        """Changes with any language's recognizer, whether it is loaded or not."""
        return stable_hash("by_lang", {lang: fingerprint_of(self.config.for_lang(lang)) for lang in self._languages()})

    def load(self) -> None:
        """Load every language's recognizer now."""
        for lang in self._languages():
            self.heard_by(lang)

    def _languages(self) -> list[str]:
        return list(LANGUAGES) if self.config.path else list(self.config.by_lang)


def fingerprint_of(settings: RecognizerSettings) -> str:
    """`Recognizer.fingerprint` of settings, from the files alone where they decide."""
    if settings.type in LIBRARIES:
        return file_fingerprint(settings.type, obtain(settings.path), settings.identity(path=False))
    return build_recognizer(settings).fingerprint()
