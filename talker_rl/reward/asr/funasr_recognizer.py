"""FunASR recognizers: Paraformer (BiCif and SeACo) and SenseVoiceSmall, with token times.

Neither voice activity detection nor a punctuation model is joined to them: seed-tts-eval's Paraformer has none, and an
utterance is short. What FunASR does while it recognizes and this module mends: loses `<unk>` from the text but not from
the times; answers once for several inputs; consumes the global random generator; SenseVoice writes its language, mood
and event tags into the text, and spells numbers as digits where asked to (not asked here). Its own times come from its
text tokenized anew, piece by piece, which may give other pieces; here they come from the frames that it decoded.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from talker_rl.base.figures import count
from talker_rl.reward.asr.base import (
    SAMPLE_RATE,
    UNKNOWN,
    GuardedRecognizer,
    Span,
    Transcript,
    file_fingerprint,
    spans_of_characters,
    transcript_of,
)
from talker_rl.reward.asr.funasr_loading import open_model
from talker_rl.reward.asr.names import REQUIRED, model_folder
from talker_rl.reward.recognizer_config import RecognizerConfig, RecognizerSettings

_UNK_WORD = "zzunkzz"
"""Stands for `<unk>` inside FunASR: a word of letters, so that its post-processing keeps text and times together."""
_TAG = re.compile(r"<\|[^|]*\|>")
_LANGUAGES = {"zh": "zh", "en": "en"}
"""SenseVoice's names; it detects the language of a mixed text."""
_QUERIES = 4
"""Frames that SenseVoice puts before the sound: language, event, mood, text norm. It answers them with the tags."""


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
        self.folder: Path = model_folder(path, REQUIRED["funasr"])
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
        if self._sense_voice:
            return [self._hear_richly(audio, _LANGUAGES.get(lang, "auto")) for audio in audios]
        return [parse(result, self._time_scale) for result in self._generate(audios)]

    def _generate(self, audios: list[np.ndarray], **options: Any) -> list[dict[str, Any]]:
        import torch

        with torch.random.fork_rng(devices=[]):  # SANM layers draw a random number even in evaluation
            return self._model.generate(
                input=list(audios), key="item", batch_size=len(audios), fs=SAMPLE_RATE, **self._runtime, **options
            )

    def _hear_richly(self, audio: np.ndarray, language: str) -> Transcript:
        """One utterance by SenseVoice (a batch would have to tell its padding from its frames)."""
        ctc, seen = self._model.model.ctc, []
        scores_of = ctc.log_softmax

        def keep(states: Any) -> Any:
            seen.append(scores_of(states))
            return seen[-1]

        ctc.log_softmax = keep
        try:
            [result] = self._generate([audio], language=language, use_itn=False)
        finally:
            del ctc.log_softmax
        frontend, tokenizer = self._runtime["frontend"], self._runtime["tokenizer"]
        best = seen[0][0, _QUERIES:].argmax(-1).tolist()
        pieces = timed_pieces(best, self._model.model.blank_id, frontend.lfr_n * frontend.frame_shift / 1000)
        return parse_rich(str(result["text"]), [(tokenizer.sp.IdToPiece(i), span) for i, span in pieces])


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
        return Transcript(tokens, [], f"{count(len(times), 'time')} for {count(len(words), 'word')}", text)
    timed = transcript_of(zip(map(_restore, words), _seconds(times, time_scale), strict=True))
    return Transcript(timed.tokens, timed.spans, text=text)


def timed_pieces(best: Sequence[int], blank: int, stride: float) -> list[tuple[int, Span]]:
    """Piece ids of a CTC path with their times: a run of one id is one piece; a frame is centered on its time.

    Args:
        best: the likeliest id of each frame.
        stride: seconds per frame.
    """
    found, at = [], 0
    for piece, run in groupby(best):
        count = len(list(run))
        if piece != blank:
            found.append((piece, (max(0.0, (at - 0.5) * stride), max(0.0, (at + count - 0.5) * stride))))
        at += count
    return found


def parse_rich(text: str, pieces: Sequence[tuple[str, Span]]) -> Transcript:
    """A transcript from SenseVoice's text, ``<|en|><|NEUTRAL|><|Speech|><|woitn|>hello``, and its timed pieces.

    The text decides what was said; each of its tokens takes the time of its characters among those of the pieces.
    """
    text = _TAG.sub("", text).strip()
    tokens = transcript_of([(text, (0.0, 0.0))]).tokens if text else []
    if not tokens:
        return Transcript([], [], text=text)
    spans = spans_of_characters(tokens, [(piece, span) for piece, span in pieces if not _TAG.fullmatch(piece)])
    if spans is None:
        return Transcript(tokens, [], "the times belong to another text", text)
    return Transcript(tokens, spans, text=text)


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
