"""What a recognizer is, and the guards that every one of them stands behind.

`GuardedRecognizer.transcribe` refuses audio that models crash or hallucinate on, trims silent ends, feeds the rest
to `_recognize`, checks that as many results came back as went in, and, where a batch raises, hears its items one by
one, so that a poisoned item takes none along. An item's result is a `Transcript` or a `Failure`, never a guess.
"""

from __future__ import annotations

import contextlib
import re
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from talker_rl.base.errors import TalkerRLError
from talker_rl.base.ids import stable_hash
from talker_rl.base.sound import frame_levels, peak_level
from talker_rl.base.text.tokens import tokens_of
from talker_rl.reward.asr.names import hash_files
from talker_rl.reward.recognizer_config import RecognizerSettings

SAMPLE_RATE = 16_000
Span = tuple[float, float]
"""Start and end, seconds."""


@dataclass(frozen=True)
class Transcript:
    """What was heard: normalized tokens and the (start, end) of each in seconds.

    ``spans`` is empty where the times cannot be used; ``spans_fault`` then says why.
    """

    tokens: list[str]
    spans: list[tuple[float, float]]
    spans_fault: str | None = None
    text: str | None = field(default=None, compare=False)
    """What the model wrote, marks and case included; None where it keeps only tokens."""

    @property
    def written(self) -> str:
        """The text, or the tokens with spaces between where there is none."""
        return " ".join(self.tokens) if self.text is None else self.text


@dataclass(frozen=True)
class Failure:
    """Why there is no value. ``retryable``: the same item may succeed later (the machine's fault, not the item's)."""

    code: str
    message: str
    retryable: bool = False


_OF_THE_MACHINE = re.compile(r"out of memory|alloc|cuda|cudnn|cublas|nccl|hip|device-side", re.IGNORECASE)
_OF_THE_INPUT = re.compile(r"\b(sizes?|shapes?|dimensions?|dtype|indices|expected|must)\b", re.IGNORECASE)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: memory, a device or a file that was not there. What a library says of
    its input (a wrong value, type or shape) it will say again, however often it is asked."""
    if isinstance(error, TalkerRLError | NotImplementedError | RecursionError | UnicodeError):
        return False
    if isinstance(error, MemoryError | OSError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return bool(_OF_THE_MACHINE.search(text)) or not _OF_THE_INPUT.search(text)


class Recognizer(Protocol):
    """Turns sound into tokens with times."""

    def transcribe(self, audios: list[np.ndarray], lang: str) -> list[Transcript | Failure]:
        """Results in the order of `audios` (each (samples,) float32 at 16 kHz)."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever results may change: model files, settings, library version."""
        ...


def check_audio(audio: object, sample_rate: int, min_seconds: float, silence_dbfs: float) -> Failure | None:
    """Why this audio must not reach a model, or None."""
    if not isinstance(audio, np.ndarray) or audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating):
        what = f"{audio.dtype} array of shape {audio.shape}" if isinstance(audio, np.ndarray) else type(audio).__name__
        return Failure("bad_audio", f"audio must be a one-dimensional float array, got {what}")
    if not np.isfinite(audio).all():
        return Failure("non_finite", f"{np.sum(~np.isfinite(audio))} of {len(audio)} samples are NaN or infinite")
    if len(audio) < min_seconds * sample_rate:
        return Failure("too_short", f"{len(audio) / sample_rate:.4f} s of audio, at least {min_seconds} s are needed")
    level = peak_level(audio, sample_rate)
    if level < silence_dbfs:
        return Failure("silent", f"the loudest 20 ms are at {level:.1f} dBFS, below the gate of {silence_dbfs} dBFS")
    return None


def trim(audio: np.ndarray, sample_rate: int, silence_dbfs: float, keep_seconds: float) -> tuple[np.ndarray, float]:
    """Audio without long silent ends, and the seconds cut from its start."""
    frame, hop = round(0.02 * sample_rate), round(0.01 * sample_rate)
    loud = np.flatnonzero(frame_levels(audio, frame, hop) >= silence_dbfs)
    if len(loud) == 0:
        return audio, 0.0
    keep = round(keep_seconds * sample_rate)
    start = max(0, int(loud[0]) * hop - keep)
    return audio[start : int(loud[-1]) * hop + frame + keep], start / sample_rate


def transcript_of(pieces: Iterable[tuple[str, tuple[float, float]]]) -> Transcript:
    """A transcript from timed pieces of text; a piece of several tokens shares its time among them by length."""
    tokens: list[str] = []
    spans: list[tuple[float, float]] = []
    for text, (start, end) in pieces:
        parts = [UNKNOWN] if text == UNKNOWN else tokens_of(text)
        total = sum(map(len, parts))
        position = 0
        for part in parts:
            left = start + (end - start) * position / total
            position += len(part)
            tokens.append(part)
            spans.append((left, end if position == total else start + (end - start) * position / total))
    return Transcript(tokens, spans)


def spans_of_characters(tokens: Sequence[str], pieces: Sequence[tuple[str, Span]]) -> list[Span] | None:
    """Times of tokens whose letters and digits are those of timed pieces; a piece's characters share its time.

    None where the letters differ. Marks, spaces and apostrophes are passed over on both sides.
    """
    letters: list[tuple[str, Span]] = []
    for piece, (start, end) in pieces:
        plain = _letters(unicodedata.normalize("NFKC", piece).lower())
        step = (end - start) / max(1, len(plain))
        letters += [(c, (start + k * step, start + (k + 1) * step)) for k, c in enumerate(plain)]
    wanted = [_letters(token) for token in tokens]
    if not all(wanted) or "".join(wanted) != "".join(c for c, _ in letters):
        return None
    spans, at = [], 0
    for token in wanted:
        spans.append((letters[at][1][0], letters[at + len(token) - 1][1][1]))
        at += len(token)
    return spans


def _letters(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


UNKNOWN = "<unk>"
"""Token for speech outside the recognizer's vocabulary: it equals no reference token."""


class GuardedRecognizer:
    """Guards around `_recognize`, which a subclass implements for audio that passed them."""

    def __init__(self, config: RecognizerSettings) -> None:
        self.config = config
        self._lock = threading.Lock()  # FunASR is not thread-safe by design; nor is a pipeline

    def _recognize(self, audios: list[np.ndarray], lang: str) -> Sequence[Transcript | Failure]:
        raise NotImplementedError

    def fingerprint(self) -> str:
        raise NotImplementedError

    def transcribe(self, audios: list[np.ndarray], lang: str) -> list[Transcript | Failure]:
        """See `Recognizer.transcribe`.

        Raises:
            TalkerRLError: the recognizer itself cannot work (never for the fault of one item).
        """
        config = self.config
        results: list[Transcript | Failure | None] = []
        accepted: list[tuple[int, np.ndarray, float]] = []
        for i, audio in enumerate(audios):
            fault = check_audio(audio, SAMPLE_RATE, config.min_seconds, config.silence_dbfs)
            results.append(fault)
            if fault is None:
                sound, offset = np.ascontiguousarray(audio, dtype=np.float32), 0.0
                if config.trim_silence:
                    sound, offset = trim(sound, SAMPLE_RATE, config.silence_dbfs, config.trim_keep_seconds)
                    sound = _at_least(sound, config.min_seconds)
                accepted.append((i, sound, offset))
        with self._lock, torch_threads(config.threads):
            for at in range(0, len(accepted), config.batch_size):
                batch = accepted[at : at + config.batch_size]
                heard = self._guarded([sound for _, sound, _ in batch], lang)
                for (i, _, offset), result in zip(batch, heard, strict=True):
                    results[i] = _shift(result, offset)
        return [r for r in results if r is not None]

    def _guarded(self, batch: list[np.ndarray], lang: str) -> Sequence[Transcript | Failure]:
        try:
            heard = self._recognize(batch, lang)
        except TalkerRLError:
            raise
        except Exception as error:
            if len(batch) > 1:
                return [r for sound in batch for r in self._guarded([sound], lang)]
            return [Failure("recognizer_error", f"{type(error).__name__}: {error}", retryable=is_transient(error))]
        if len(heard) == len(batch):
            return heard
        if len(batch) > 1:  # FunASR answers once for several inputs when none has a token
            return [r for sound in batch for r in self._guarded([sound], lang)]
        return [Failure("result_count", f"{len(heard)} results for one input")]


def _at_least(audio: np.ndarray, seconds: float) -> np.ndarray:
    """Trimming may leave less than the shortest audio allowed: fill up with zeros."""
    return np.pad(audio, (0, max(0, round(seconds * SAMPLE_RATE) - len(audio))))


def _shift(result: Transcript | Failure, offset: float) -> Transcript | Failure:
    if isinstance(result, Failure) or not offset:
        return result
    return replace(result, spans=[(s + offset, e + offset) for s, e in result.spans])


LIBRARIES = {"funasr": "funasr", "whisper": "transformers", "aligner": "funasr"}
"""Type -> the library whose version is part of what is heard."""


def file_fingerprint(kind: str, folder: Path, settings: dict[str, Any]) -> str:
    """Changes with model files, settings and the version of the library."""
    return stable_hash(kind, hash_files(folder), settings, version(LIBRARIES[kind]))


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with so many torch threads, then restore the caller's count whatever happened (FunASR sets its own)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
