"""FunASR recognisers: Paraformer (BiCif and SeACo) and SenseVoiceSmall, with token times.

Neither voice activity detection nor a punctuation model is joined to them: seed-tts-eval's Paraformer has none, and an
utterance is short. What FunASR does while it recognises and this module mends: loses `<unk>` from the text but not from
the times; answers once for several inputs; consumes the global random generator; SenseVoice writes its language, mood
and event tags into the text, spells numbers as digits where asked to (not asked here), and times its own pieces, the
first of them with its word mark left on.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..recognizer_config import RecognizerConfig, RecognizerSettings
from .base import SAMPLE_RATE, UNKNOWN, GuardedRecognizer, Transcript, file_fingerprint, transcript_of
from .funasr_loading import open_model
from .names import model_folder

_UNK_WORD = "zzunkzz"
"""Stands for `<unk>` inside FunASR: a word of letters, so that its post-processing keeps text and times together."""
_TAG = re.compile(r"<\|[^|]*\|>")
_LANGUAGES = {"zh": "zh", "en": "en"}
"""SenseVoice's names; it detects the language of a mixed text."""
Span = tuple[float, float]


class FunASRRecognizer(GuardedRecognizer):
    """A FunASR model folder behind the `Recognizer` protocol.

    Args:
        path: folder with config.yaml (or configuration.json), model.pt and its token list; `micro:reward|eval`; or a
            name such as paraformer-zh.
        device: torch device.
        config: all settings; `path` and `device` above are used where it is None.

    Raises:
        CheckpointError: folder missing, file missing or unreadable, weights missing or of another shape.
        ConfigError: the device is not there, or funasr is not installed.
    """

    def __init__(self, path: str, device: str = "cpu", config: RecognizerSettings | None = None) -> None:
        super().__init__(config or RecognizerConfig(type="funasr", path=path, device=device))
        self.folder: Path = model_folder(path, ["config.yaml", "model.pt"])
        opened = open_model(self.folder, self.config.device, self.config.threads)
        self._model, self._time_scale = opened.auto, opened.time_scale
        self._runtime = {"frontend": opened.frontend, "tokenizer": _keep_unknown(opened.tokenizer)}
        self._sense_voice = opened.kind == "SenseVoiceSmall"
        self._hash: str | None = None

    def fingerprint(self) -> str:
        """Changes with model files, settings and the version of FunASR."""
        if self._hash is None:
            self._hash = file_fingerprint("funasr", self.folder, self.config.identity(path=False))
        return self._hash

    def _recognize(self, audios: list[np.ndarray], lang: str) -> list[Transcript]:
        if not self._sense_voice:
            return [parse(result, self._time_scale) for result in self._generate(audios)]
        options = {"language": _LANGUAGES.get(lang, "auto"), "use_itn": False}
        try:
            results = self._generate(audios, **options, output_timestamp=True)
        except (IndexError, RuntimeError, ValueError):
            if len(audios) > 1:
                raise  # the guard hears them one by one
            # Its aligner fails where the text, tokenised again, has more pieces than the sound has frames.
            results = self._generate(audios, **options)
        return [parse_rich(result, self._time_scale) for result in results]

    def _generate(self, audios: list[np.ndarray], **options: Any) -> list[dict[str, Any]]:
        import torch

        with torch.random.fork_rng(devices=[]):  # SANM layers draw a random number even in evaluation
            return self._model.generate(
                input=list(audios), key="item", batch_size=len(audios), fs=SAMPLE_RATE, **self._runtime, **options
            )


def parse(result: dict[str, Any], time_scale: float = 1.0) -> Transcript:
    """A transcript from one Paraformer result, ``{"text": "river 苹 果", "timestamp": [[start_ms, end_ms], ...]}``.

    `<unk>` vanishes from FunASR's text but not from its times; `_keep_unknown` prevents that where the tokenizer lets
    it. Where text and times still differ in number, no time can be trusted and the transcript says so.
    """
    words = str(result.get("text", "")).split()
    text = " ".join(w for w in words if w != _UNK_WORD)
    times = result.get("timestamp")
    tokens = transcript_of([(_restore(w), (0.0, 0.0)) for w in words]).tokens
    if not words:
        return Transcript([], [], text=text)
    if times is None:
        return Transcript(tokens, [], "the model gives no times", text)
    if len(times) != len(words):
        return Transcript(tokens, [], f"{len(times)} times for {len(words)} words", text)
    timed = transcript_of(zip(map(_restore, words), _seconds(times, time_scale), strict=True))
    return Transcript(timed.tokens, timed.spans, text=text)


def parse_rich(result: dict[str, Any], time_scale: float = 1.0) -> Transcript:
    """A transcript from one SenseVoice result, ``{"text": "<|en|>...hello", "words": [...], "timestamp": [...]}``.

    The words that come with the times are pieces that FunASR joins by halves, so the text decides what was said, and
    each of its tokens takes the time of its characters among those of the pieces.
    """
    text = _TAG.sub("", str(result.get("text", ""))).strip()
    tokens = transcript_of([(text, (0.0, 0.0))]).tokens if text else []
    if not tokens:
        return Transcript([], [], text=text)
    if result.get("timestamp") is None:
        return Transcript(tokens, [], "the model gives no times", text)
    spans = spans_of_characters(tokens, result["words"], _seconds(result["timestamp"], time_scale))
    if spans is None:
        return Transcript(tokens, [], "the times belong to another text", text)
    return Transcript(tokens, spans, text=text)


def spans_of_characters(tokens: Sequence[str], pieces: Sequence[str], times: Sequence[Span]) -> list[Span] | None:
    """Times of tokens whose characters are those of timed pieces, a piece's time shared among its characters.

    None where the characters differ; marks and spaces, which are no part of a token, are passed over.
    """
    timed = transcript_of((piece, span) for piece, span in zip(pieces, times, strict=True) if piece.strip())
    characters: list[tuple[str, Span]] = []
    for token, (start, end) in zip(timed.tokens, timed.spans, strict=True):
        step = (end - start) / len(token)
        characters += [(c, (start + k * step, start + (k + 1) * step)) for k, c in enumerate(token)]
    if "".join(tokens) != "".join(c for c, _ in characters):
        return None
    spans, at = [], 0
    for token in tokens:
        spans.append((characters[at][1][0], characters[at + len(token) - 1][1][1]))
        at += len(token)
    return spans


def _seconds(times: Sequence[Sequence[float]], time_scale: float) -> list[Span]:
    """Milliseconds to seconds. The first fire may lie before the start of the audio: FunASR shifts all by -30 ms."""
    return [(max(0.0, start * time_scale / 1000), max(0.0, end * time_scale / 1000)) for start, end in times]


def _keep_unknown(tokenizer: Any) -> Any:
    """A copy of the tokenizer that writes `<unk>` as an ordinary word."""
    if not isinstance(getattr(tokenizer, "token_list", None), list):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    unknown = getattr(tokenizer, "unk_id", None)
    if isinstance(unknown, int):
        tokenizer.token_list[unknown] = _UNK_WORD
    return tokenizer


def _restore(word: str) -> str:
    return UNKNOWN if word == _UNK_WORD else word
