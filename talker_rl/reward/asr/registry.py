"""From a `RecognizerConfig` to a recogniser."""

from __future__ import annotations

from ...errors import ConfigError
from ..config import RecognizerConfig
from .base import Recognizer, resolve

__all__ = ["build_recognizer", "resolve"]


def build_recognizer(config: RecognizerConfig) -> Recognizer:
    """Load the configured recogniser.

    Raises:
        ConfigError: unknown type. CheckpointError: its folder is missing, incomplete or does not fit.
    """
    if config.type == "funasr":
        from .funasr_recognizer import FunASRRecognizer

        return FunASRRecognizer(config.path, config=config)
    if config.type == "whisper":
        from .whisper_recognizer import WhisperRecognizer

        return WhisperRecognizer(config.path, config=config)
    if ":" in config.type:
        from ..combine import load_function

        return load_function(config.type)(config)
    raise ConfigError(
        f"unknown recogniser type {config.type!r}",
        where="reward.recognizer.type",
        fix="use funasr, whisper, or the import path module:factory of one's own",
    )
