"""The picture beside a player: the sound's waveform, and on the same axis what was heard and where it went wrong.

Made here as plain data; ``templates/strip.js`` draws it on every page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from talker_rl.records.token_classes import Heard, words_and_gaps
from talker_rl.reward.config import PauseConfig

BINS = 240
"""Peaks of a waveform: one to two pixels each."""
_FULL = 0.1
"""A sound that stays below (-20 dB) is drawn as quiet as it is; a louder one fills the height."""

Mark = tuple[float, float, str, str, str]
"""(start, end, kind, text, wanted), seconds. kind: ``right``, ``S`` (wanted instead of text), ``I``, ``D`` (left out),
``pause`` (at a mark), ``missing``, ``false``; a pause has no text."""

_WORDS = {"right": "right", "substituted": "S", "inserted": "I"}
_PAUSES = {"pause": "pause", "pause_missing": "missing", "pause_false": "false"}


@dataclass(frozen=True)
class Wave:
    """A waveform, as the page holds it."""

    seconds: float
    peaks: str
    """Two hexadecimal digits a bin: 00 is silence, ff the full height."""


@dataclass(frozen=True)
class Strip:
    """A waveform, with what was heard in it in order of time."""

    wave: Wave
    marks: list[Mark]
    """Empty where the times cannot be used: then nothing is said about words."""

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {"seconds": self.wave.seconds, "peaks": self.wave.peaks, "marks": self.marks}


def wave_of(audio: np.ndarray, sample_rate: int, bins: int = BINS) -> Wave:
    """The largest magnitude of each of ``bins`` equal parts.

    Args:
        audio: (samples,) in [-1, 1], one at least; fewer samples than bins are a bin each.
        sample_rate: Hz.
    """
    loud = np.abs(np.asarray(audio, dtype=np.float32))
    parts = min(bins, len(loud))
    peaks = np.maximum.reduceat(loud, np.arange(parts) * len(loud) // parts)
    scaled = np.round(255 * peaks / max(float(peaks.max()), _FULL)).astype(np.uint8)
    return Wave(round(len(loud) / sample_rate, 3), scaled.tobytes().hex())


def strip_of(
    wave: Wave, text: str, transcript: Sequence[str], spans: Sequence[Sequence[float]], pauses: PauseConfig
) -> Strip:
    """A strip; without words where the recognizer gave no times, or such as cannot be true.

    Args:
        text: what was to be said.
        transcript, spans: tokens that were heard, and the (start, end) of each in seconds.
        pauses: what counts as a pause (``reward.pauses``).
    """
    times = [(float(start), float(end)) for start, end in spans]
    try:
        said = words_and_gaps(text, "mixed", transcript, times, hit_seconds=pauses.hit_seconds, seconds=wave.seconds,
                              spurious_seconds=pauses.spurious_seconds, tolerance=pauses.time_tolerance)
    except ValueError:
        return Strip(wave, [])
    return Strip(wave, _marks(said))


def _marks(said: Heard) -> list[Mark]:
    marks: list[Mark] = []
    for i, word in enumerate(said.words):
        if said.left_out[i]:
            start = said.gaps[i - 1].start if i else word.start
            marks.append(_mark(start, word.start, "D", _joined(said.left_out[i])))
        elif i and (kind := _PAUSES.get(said.gaps[i - 1].kind)):
            marks.append(_mark(said.gaps[i - 1].start, word.start, kind))
        marks.append(_mark(word.start, word.end, _WORDS[word.kind], word.heard,
                           word.wanted if word.kind == "substituted" else ""))
    if said.words and said.left_out[-1]:
        marks.append(_mark(said.words[-1].end, said.words[-1].end, "D", _joined(said.left_out[-1])))
    return marks


def _mark(start: float, end: float, kind: str, text: str = "", wanted: str = "") -> Mark:
    return round(start, 3), round(max(start, end), 3), kind, text, wanted


def _joined(tokens: Sequence[str]) -> str:
    """Tokens as one writes them: no space between characters that are tokens of their own."""
    return ("" if all(len(token) == 1 and not token.isascii() for token in tokens) else " ").join(tokens)
