"""Whisper by transformers, with word times."""

from __future__ import annotations

from typing import Any

import numpy as np

from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.base.text.tokens import tokens_of
from talker_rl.reward.asr.base import (
    SAMPLE_RATE,
    Failure,
    GuardedRecognizer,
    Transcript,
    file_fingerprint,
    spans_of_characters,
)
from talker_rl.reward.asr.names import REQUIRED, model_folder
from talker_rl.reward.recognizer_config import RecognizerConfig, RecognizerSettings

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
    pauses are null. What is longer than the 30 s that Whisper hears at once it hears piece by piece, for which it
    marks the times of segments itself; a model that does not know these marks is a Failure `too_long`.

    Raises:
        CheckpointError: folder or a file of it missing, not a speech-to-text model, or one whose generation config
            does not say which languages it knows.
    """

    def __init__(self, path: str, device: str = "cpu", config: RecognizerSettings | None = None) -> None:
        super().__init__(config or RecognizerConfig(type="whisper", path=path, device=device))
        self.folder = model_folder(path, REQUIRED["whisper"])
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
        # Asked for word times the pipeline splits at spaces and marks, unless its tokenizer is of a language without:
        # a Chinese sentence is then one word, and o'clock two. In small pieces, parse puts them together by the text.
        self._pipeline.tokenizer.language = "chinese"
        self._pipeline.model.eval()
        generation = self._pipeline.model.generation_config
        self._marks = getattr(generation, "no_timestamps_token_id", None) is not None
        self._times = self._marks and bool(getattr(generation, "alignment_heads", None))
        self._multilingual = self._is_multilingual(generation)
        self._languages = getattr(generation, "lang_to_id", None) or {}
        self._window = self._pipeline.feature_extractor.n_samples
        self._hash: str | None = None

    def fingerprint(self) -> str:
        """Changes with model files, settings and the version of transformers."""
        if self._hash is None:
            settings = self.config.identity(path=False) | {"times": "by letters"}
            self._hash = file_fingerprint("whisper", self.folder, settings)
        return self._hash

    def _is_multilingual(self, generation: Any) -> bool:
        """Whether language and task are given with each utterance; an English-only model takes neither."""
        stated = getattr(generation, "is_multilingual", None)
        if stated is None or (stated and not (getattr(generation, "lang_to_id", None)
                                              and getattr(generation, "task_to_id", None))):
            raise CheckpointError(
                "generation_config.json does not say which languages this Whisper knows (is_multilingual, lang_to_id, "
                "task_to_id), so it would guess, or translate", where=str(self.folder),
                fix="copy generation_config.json from the Whisper that it was made from, e.g. openai/whisper-large-v3")
        return bool(stated)

    def _check_language(self, lang: str) -> None:
        """Raise where the model cannot hear a language: its words would be made up, and each an error."""
        known = ["en"] if not self._multilingual else [x for x in _LANGUAGES if f"<|{x}|>" in self._languages]
        wanted = list(_LANGUAGES) if lang == "mixed" else [lang]
        if missing := [x for x in wanted if x not in known]:
            raise ConfigError(
                f"This Whisper hears no {' and no '.join(missing)}, and a text is in {lang!r}: it knows "
                f"{'English only' if known == ['en'] else ', '.join(known) or 'neither zh nor en'}",
                where=str(self.folder), fix="name a multilingual one (whisper-large-v3), or another recognizer for it: "
                f"reward.recognizer.{lang}.path")

    def _recognize(self, audios: list[np.ndarray], lang: str) -> list[Transcript | Failure]:
        self._check_language(lang)
        found: list[Transcript | Failure | None] = [None] * len(audios)
        long = [len(audio) > self._window for audio in audios]
        for kind in set(long):  # apart: what is long is heard in another way
            at = [i for i, is_long in enumerate(long) if is_long == kind]
            for i, heard in zip(at, self._hear([audios[i] for i in at], lang, kind), strict=True):
                found[i] = heard
        return [heard for heard in found if heard is not None]

    def _hear(self, audios: list[np.ndarray], lang: str, long: bool) -> list[Transcript | Failure]:
        if long and not self._marks:
            most = self._window / SAMPLE_RATE
            return [Failure("too_long", f"{len(audio) / SAMPLE_RATE:.1f} s of speech: this Whisper has no time marks "
                            f"(no_timestamps_token_id) and hears {most:g} s at most") for audio in audios]
        generate: dict[str, Any] = {"do_sample": False, "num_beams": 1, "condition_on_prev_tokens": False}
        if self._multilingual:
            generate["task"] = "transcribe"
            if lang in _LANGUAGES:
                generate["language"] = _LANGUAGES[lang]
        outputs = self._pipeline(
            [{"raw": audio, "sampling_rate": SAMPLE_RATE} for audio in audios],
            batch_size=len(audios),
            return_timestamps="word" if self._times else True if long else None,
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

    Tokens are those of the whole text, whatever the pieces that have times; without times where their letters are
    others. The last piece's end is None where Whisper was cut; it then ends with the audio.
    """
    text = str(output["text"])
    tokens = tokens_of(text)
    if not times:
        return Transcript(tokens, [], "the model has no alignment heads" if tokens else None, text)
    pieces: list[tuple[str, tuple[float, float]]] = []
    for chunk in output["chunks"]:
        start, end = chunk["timestamp"]
        if start is None:
            return Transcript(tokens, [], f"no start time for {chunk['text']!r}", text)
        pieces.append((chunk["text"], (float(start), float(end) if end is not None else max(float(start), duration))))
    spans = spans_of_characters(tokens, pieces)
    if spans is None:
        return Transcript(tokens, [], "the letters that have times are not those of the text", text)
    return Transcript(tokens, spans, None, text)
