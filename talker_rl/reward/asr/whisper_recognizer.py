"""Whisper by transformers, with word times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ..recognizer_config import RecognizerConfig, RecognizerSettings
from .base import SAMPLE_RATE, Failure, GuardedRecognizer, Transcript, file_fingerprint, transcript_of
from .names import model_folder

_LANGUAGES = {"zh": "zh", "en": "en"}
"""A mixed text gets no language: Whisper then detects one."""
FASTEST, FEWEST = 25.0, 20
"""Tokens per second, and in all, above which a transcript is Whisper repeating itself: quick speech has 5 to 10 words
or characters per second, a loop hundreds. A Talker that repeats words says them at a speaker's pace, and is heard
so."""


class WhisperRecognizer(GuardedRecognizer):
    """A Whisper folder (transformers layout) behind the `Recognizer` protocol.

    Greedy, without temperature fallback and without conditioning on earlier text: the same audio gives the same
    tokens. Language (zh, en) and task are given, not guessed: else accented speech is translated. A transcript that no
    voice could have spoken in the time is a Failure `hallucination`, not a word error rate. Word times come from
    cross-attention and need `alignment_heads` in the generation config; without them the transcript has no times and
    pauses are null.

    Raises:
        CheckpointError: folder or a file of it missing, or not a speech-to-text model.
    """

    def __init__(self, path: str, device: str = "cpu", config: RecognizerSettings | None = None) -> None:
        super().__init__(config or RecognizerConfig(type="whisper", path=path, device=device))
        self.folder = model_folder(path, ["config.json", "preprocessor_config.json"])
        from transformers import pipeline

        try:
            self._pipeline: Any = pipeline(
                "automatic-speech-recognition",
                model=str(self.folder),
                device=self.config.device,
                dtype="float32",
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"transformers cannot open this recognizer: {type(error).__name__}: {error}",
                where=str(self.folder),
                fix="use a folder written by save_pretrained, with weights, tokenizer and feature extractor",
            ) from error
        self._pipeline.model.eval()
        generation = self._pipeline.model.generation_config
        self._times = getattr(generation, "alignment_heads", None) is not None
        self._multilingual = bool(getattr(generation, "is_multilingual", False))
        self._hash: str | None = None

    def fingerprint(self) -> str:
        """Changes with model files, settings and the version of transformers."""
        if self._hash is None:
            self._hash = file_fingerprint("whisper", self.folder, self.config.identity(path=False))
        return self._hash

    def _recognize(self, audios: list[np.ndarray], lang: str) -> list[Transcript | Failure]:
        generate: dict[str, Any] = {"do_sample": False, "num_beams": 1, "condition_on_prev_tokens": False}
        if self._multilingual:
            generate["task"] = "transcribe"
            if lang in _LANGUAGES:
                generate["language"] = _LANGUAGES[lang]
        outputs = self._pipeline(
            [{"raw": audio, "sampling_rate": SAMPLE_RATE} for audio in audios],
            batch_size=len(audios),
            return_timestamps="word" if self._times else None,
            generate_kwargs=generate,
        )
        seconds = [len(audio) / SAMPLE_RATE for audio in audios]
        return [plausible(parse(o, s, self._times), s) for o, s in zip(outputs, seconds, strict=True)]


def plausible(heard: Transcript, seconds: float) -> Transcript | Failure:
    """The transcript, or a Failure where no voice could have spoken it in the time."""
    count = len(heard.tokens)
    if count <= max(FEWEST, FASTEST * seconds):
        return heard
    return Failure("hallucination", f"{count} tokens in {seconds:.1f} s: Whisper repeated itself")


def parse(output: dict[str, Any], duration: float, times: bool = True) -> Transcript:
    """A transcript from one result of the pipeline: ``{"text", "chunks": [{"text", "timestamp": (start, end)}]}``.

    The last word's end is None where Whisper was cut; it then ends with the audio.
    """
    text = str(output["text"])
    if not times:
        plain = transcript_of([(text, (0.0, 0.0))])
        return Transcript(plain.tokens, [], "the model has no alignment heads" if plain.tokens else None, text)
    pieces: list[tuple[str, tuple[float, float]]] = []
    for chunk in output["chunks"]:
        start, end = chunk["timestamp"]
        if start is None:
            tokens = transcript_of([(c["text"], (0.0, 0.0)) for c in output["chunks"]]).tokens
            return Transcript(tokens, [], f"no start time for {chunk['text']!r}", text)
        pieces.append((chunk["text"], (float(start), float(end) if end is not None else max(float(start), duration))))
    return replace(transcript_of(pieces), text=text)
