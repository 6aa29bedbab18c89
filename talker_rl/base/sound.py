"""Sound measured and resampled. Numpy arrays, one channel, float32."""

from __future__ import annotations

import math

import numpy as np

_FLOOR = 1e-10
"""RMS below which a level is no longer told apart: -200 dB."""


def frame_levels(audio: np.ndarray, frame: int, hop: int) -> np.ndarray:
    """Level in dB (re 1.0) of each whole frame: RMS about the frame's own mean, since an offset is no sound. Audio
    shorter than a frame is one frame."""
    if len(audio) < frame:
        frame = max(1, len(audio))
    if len(audio) == 0:
        return np.empty(0)
    windows = np.lib.stride_tricks.sliding_window_view(audio.astype(np.float64), frame)[::hop]
    return 20.0 * np.log10(np.maximum(np.std(windows, axis=1), _FLOOR))


def peak_level(audio: np.ndarray, sample_rate: int) -> float:
    """Level in dB of the loudest 20 ms."""
    levels = frame_levels(audio, round(0.02 * sample_rate), round(0.01 * sample_rate))
    return float(levels.max()) if len(levels) else -math.inf


def resample(audio: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Polyphase resampling to float32; the same samples on every machine, whatever its neighbors in a batch."""
    if source_rate == target_rate:
        return np.ascontiguousarray(audio, dtype=np.float32)
    from scipy.signal import resample_poly

    common = math.gcd(source_rate, target_rate)
    out = resample_poly(audio.astype(np.float64), target_rate // common, source_rate // common)
    return np.ascontiguousarray(out, dtype=np.float32)
