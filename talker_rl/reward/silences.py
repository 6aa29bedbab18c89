"""Silent runs of an utterance. Numpy arrays, one channel, float32."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import median_filter

from talker_rl.base.sound import frame_levels
from talker_rl.reward.config import PauseConfig

_CLICK_SECONDS = 0.05
_RANGE_DB = 60.0
_STEADY_DB = 8.0
_BELOW_FLOOR = 0.01
"""Share of frames that may lie below a noise that is always there: it is added to whatever else there is."""
_DIGITAL_DB = -85.0
"""Zeros, and the dither of 16 bits."""
_ABOVE_FLOOR_DB = 3.0
"""Steady noise fluctuates by less from frame to frame."""


@dataclass(frozen=True)
class Silences:
    """Silent runs of an utterance, in seconds, and what surrounds the speech.

    ``runs`` are all silent runs in order; ``inner`` those with speech on both sides.
    """

    runs: list[tuple[float, float]]
    inner: list[tuple[float, float]]
    lead: float
    tail: float
    duration: float

    @property
    def longest_inner(self) -> float:
        return max((end - start for start, end in self.inner), default=0.0)


def find_silences(audio: np.ndarray, sample_rate: int, config: PauseConfig, silence_dbfs: float = -60.0) -> Silences:
    """Silent runs: frames some decibels below the level of speech (`silence_threshold`), short sounds between them
    bridged.

    A run reaches from the start of its first frame to the end of its last, so a silence with hard edges is measured
    to within a hop, never too long. Audio that stays below `silence_dbfs` throughout is one run.
    """
    duration = len(audio) / sample_rate
    frame, hop = round(config.frame_seconds * sample_rate), round(config.hop_seconds * sample_rate)
    levels = frame_levels(audio, frame, hop)
    if len(levels) == 0 or levels.max() < silence_dbfs:
        whole = [(0.0, duration)] if duration else []
        return Silences(whole, [], duration, duration, duration)
    silent = levels < silence_threshold(levels, config)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], silent, [False])).astype(np.int8)))
    spans = [(int(a) * hop, (int(b) - 1) * hop + frame) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start - merged[-1][1] <= round(config.bridge_seconds * sample_rate):
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    lead = tail = 0.0
    last_frame_end = (len(levels) - 1) * hop + frame
    runs = [(start / sample_rate, end / sample_rate) for start, end in merged]
    inner = list(runs)
    if merged and merged[0][0] == 0:
        lead = inner.pop(0)[1]
    if merged and merged[-1][1] >= last_frame_end and inner:
        tail = duration - inner.pop()[0]
    return Silences(runs, inner, lead, tail, duration)


def silence_threshold(levels: np.ndarray, config: PauseConfig) -> float:
    """The level in dB below which a frame is silent.

    Of two populations, not of all frames: however little of the sound is speech, its level is a percentile of the
    speech frames alone, and where a steady noise lies above the threshold that follows from it, the noise is the floor
    and what hardly exceeds it is silent.

    * loud: the loudest level that lasts 50 ms (a click is no speech).
    * floor: the quietest level that is kept steadily (within 8 dB) for `hit_seconds` at a time and for `floor_seconds`
      in all, and that nothing lies below: a noise that is always there is added to whatever else there is (silence that
      was put around the sound aside). Speech has closures far below its consonants, so clean speech has no floor.
    * speech frames: those nearer to loud than to the floor (taken as at most 60 dB lower); their
      `level_percentile` is the level of speech.
    * the threshold: `level_below_db` below speech; or, where the floor lies above that and `floor_margin_db` or more
      below speech, a quarter of the way from the floor to speech, 3 dB at least.

    Args:
        levels: (frames,) of `frame_levels`, `config.hop_seconds` apart.
    """
    sustained = median_filter(levels, size=max(1, round(_CLICK_SECONDS / config.hop_seconds)), mode="nearest")
    loud = float(sustained.max())
    floor = _floor(levels, max(1, round(config.hit_seconds / config.hop_seconds)),
                   config.floor_seconds / config.hop_seconds)
    spoken = levels[levels >= (loud + max(floor, loud - _RANGE_DB)) / 2]
    speech = float(np.percentile(spoken, config.level_percentile)) if len(spoken) else loud
    threshold = speech - config.level_below_db
    if threshold - _ABOVE_FLOOR_DB < floor <= speech - config.floor_margin_db:
        threshold = floor + max(_ABOVE_FLOOR_DB, (speech - floor) / 4)
    return threshold


def _floor(levels: np.ndarray, width: int, frames: float) -> float:
    """The level of a noise that is always there: the quietest that ``width`` frames at a time keep steadily, ``frames``
    in all, and that nothing lies below; -inf where there is none."""
    heard = np.flatnonzero(levels > _DIGITAL_DB)
    inner = levels[heard[0] : heard[-1] + 1] if len(heard) else levels
    windows = np.lib.stride_tricks.sliding_window_view(inner, min(width, len(inner)))
    loudest = windows.max(axis=1)
    steady = loudest[loudest - windows.min(axis=1) <= _STEADY_DB]
    if len(steady) == 0:
        return -math.inf
    floor = float(steady.min())
    at_floor = np.sum((inner >= floor - _STEADY_DB) & (inner <= floor + _ABOVE_FLOOR_DB))
    below = np.mean(inner < floor - _STEADY_DB)
    return floor if at_floor >= frames and below <= _BELOW_FLOOR else -math.inf
