"""F0 mean and spread: evaluated, never rewarded (flat prosody is a known hack of CER-only rewards)."""

from __future__ import annotations

import fcntl
import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FMIN_HZ, FMAX_HZ = 60.0, 420.0
FRAME, HOP = 1024, 256


@dataclass(frozen=True)
class F0Stats:
    """Mean in Hz and standard deviation in semitones over voiced frames."""

    mean_hz: float
    spread_semitones: float


def f0_stats(audio: np.ndarray, sample_rate: int = 24_000) -> F0Stats | None:
    """F0 by YIN (de Cheveigne & Kawahara 2002) on frames within 25 dB of the loud ones.

    Args:
        audio: (samples,) float32.
        sample_rate: Hz.

    Returns:
        The statistics, or None if fewer than 10 frames are voiced.
    """
    if audio.size < 4 * FRAME:
        return None
    librosa = _librosa()
    f0 = _yin(librosa, audio.astype(np.float32), sample_rate)
    rms = librosa.feature.rms(y=audio, frame_length=FRAME, hop_length=HOP, center=False)[0]
    frames = min(len(f0), len(rms))
    level = 20 * np.log10(np.maximum(rms[:frames], 1e-7))
    loud = level > np.percentile(level, 95) - 25
    inside = (f0[:frames] > FMIN_HZ * 1.02) & (f0[:frames] < FMAX_HZ * 0.98)  # YIN answers with a bound when unvoiced
    voiced = f0[:frames][loud & inside]
    if voiced.size < 10:
        return None
    semitones = 12 * np.log2(voiced / np.median(voiced))
    kept = np.abs(semitones) < 10  # octave errors
    return F0Stats(float(voiced[kept].mean()), float(semitones[kept].std()))


def _yin(librosa: Any, audio: np.ndarray, sample_rate: int) -> np.ndarray:
    f0: np.ndarray = librosa.yin(audio, fmin=FMIN_HZ, fmax=FMAX_HZ, sr=sample_rate, frame_length=FRAME, hop_length=HOP,
                                 center=False)  # fmt: skip
    return f0


def compile_lock() -> Path:
    """File whose lock says that a process of this user compiles."""
    return Path(tempfile.gettempdir()) / f"talker-rl-{os.getuid()}-numba.lock"


@cache
def _librosa() -> Any:
    """librosa with its YIN compiled, one process after the other.

    numba keeps compiled code beside librosa. Where two workers of a new installation compile it together, parts of
    both may come to lie there, and every later call jumps to an address of 0.
    """
    with open(os.open(compile_lock(), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        import librosa

        _yin(librosa, np.sin(np.arange(8 * FRAME, dtype=np.float32) / 20), 24_000)
    return librosa
