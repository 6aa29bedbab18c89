"""YIN, a fundamental frequency estimator (de Cheveigne & Kawahara 2002), in numpy and scipy alone.

librosa's is compiled by numba, whose cache on disk two programs can damage for each other: every later call then ends
in a segmentation fault. The conventions are librosa's (a frame is followed by zeros in its difference function, a
parabola on the normalized one), so that figures stay comparable with those that it gave.
"""

from __future__ import annotations

import numpy as np
from scipy import fft

THRESHOLD = 0.1
BLOCK = 256  # frames at a time: 256 x 2048 complex numbers are 8 MB


def frames_of(audio: np.ndarray, length: int, hop: int) -> np.ndarray:
    """Whole frames, (frames, length) views; none where the audio is shorter than one."""
    if audio.size < length:
        return np.empty((0, length), dtype=audio.dtype)
    return np.lib.stride_tricks.sliding_window_view(audio, length)[::hop]


def yin(
    audio: np.ndarray, sample_rate: int, *, fmin: float, fmax: float, frame: int = 1024, hop: int = 256
) -> np.ndarray:
    """F0 of every whole frame.

    Args:
        audio: (samples,) real.
        sample_rate: Hz.
        fmin: Lowest F0 looked for, in Hz.
        fmax: Highest F0 looked for, in Hz.
        frame: Samples of a frame, more than two periods of ``fmin`` for a sure answer.
        hop: Samples from one frame to the next.

    Returns:
        (frames,) float64 in Hz. An unvoiced frame gets what its difference function has as its least value, often a
        bound; one with a sample that is no finite number gets NaN.
    """
    frames = frames_of(audio, frame, hop)
    low = max(1, int(sample_rate // fmax))
    high = min(int(np.ceil(sample_rate / fmin)), frame - 1)
    found = np.full(len(frames), np.nan)
    for start in range(0, len(frames), BLOCK):
        block = frames[start : start + BLOCK].astype(np.float64)
        finite = np.isfinite(block).all(axis=1)
        normalized = _normalized_difference(block[finite], low, high)
        found[start : start + BLOCK][finite] = sample_rate / (low + _period(normalized))
    return found


def _normalized_difference(frames: np.ndarray, low: int, high: int) -> np.ndarray:
    """Equations 7 and 8: the squared difference from the frame moved by a lag, over its mean at lags up to there.

    Returns:
        (frames, high - low + 1), lags ``low..high``.
    """
    size = fft.next_fast_len(frames.shape[1] + high, real=True)
    spectrum = fft.rfft(frames, size)
    autocorrelation = fft.irfft(spectrum.real**2 + spectrum.imag**2, size)[:, : high + 1]
    before = np.cumsum(frames[:, :high] ** 2, axis=1)  # energy of the samples that a lag leaves behind
    difference = 2 * (autocorrelation[:, :1] - autocorrelation[:, 1:]) - before
    mean = np.cumsum(difference, axis=1) / np.arange(1, high + 1)
    normalized: np.ndarray = difference[:, low - 1 :] / (mean[:, low - 1 :] + np.finfo(np.float32).tiny)
    return normalized


def _period(d: np.ndarray) -> np.ndarray:
    """Lag, from the first of ``d``'s columns, of the first dip below the threshold, or else of the least value."""
    dip = np.ones(d.shape, dtype=bool)  # lower than the lag before it and not higher than the one after
    dip[:, 1:] &= d[:, 1:] < d[:, :-1]
    dip[:, :-1] &= d[:, :-1] <= d[:, 1:]
    dip[:, 0] = d[:, 0] < d[:, 1]  # (a flat start is none)
    deep = dip & (d < THRESHOLD)
    at = np.where(deep.any(axis=1), deep.argmax(axis=1), d.argmin(axis=1))
    row = np.arange(len(d))
    inner = np.clip(at, 1, d.shape[1] - 2)
    left, middle, right = d[row, inner - 1], d[row, inner], d[row, inner + 1]
    bend, slope = left + right - 2 * middle, (right - left) / 2
    sound = (np.abs(slope) < np.abs(bend)) & (at == inner)  # else the vertex lies over a lag away, or beyond a bound
    return at - np.where(sound, slope / np.where(sound, bend, 1.0), 0.0)
