"""F0 mean and spread: evaluated, never rewarded (flat prosody is a known hack of CER-only rewards)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from talker_rl.evaluation.yin import frames_of, yin

FMIN_HZ, FMAX_HZ = 60.0, 420.0
FRAME, HOP = 1024, 256


@dataclass(frozen=True)
class F0Stats:
    """Mean in Hz and standard deviation in semitones over voiced frames."""

    mean_hz: float
    spread_semitones: float


def f0_stats(audio: np.ndarray, sample_rate: int) -> F0Stats | None:
    """F0 by YIN (de Cheveigne & Kawahara 2002) on frames within 25 dB of the loud ones.

    Args:
        audio: (samples,) float32. A constant offset counts for nothing, nor do frames with a sample that is no
            finite number.
        sample_rate: Hz.

    Returns:
        The statistics, or None if fewer than 10 frames are voiced.
    """
    finite = np.isfinite(audio)
    if audio.size < 4 * FRAME or not finite.any():
        return None
    audio = audio - audio[finite].mean(dtype=np.float64)
    f0 = yin(audio, sample_rate, fmin=FMIN_HZ, fmax=FMAX_HZ, frame=FRAME, hop=HOP)
    heard = ~np.isnan(f0)
    if not heard.any():
        return None
    f0 = f0[heard]
    rms = np.sqrt(np.mean(frames_of(audio, FRAME, HOP)[heard] ** 2, axis=1))
    level = 20 * np.log10(np.maximum(rms, 1e-7))
    loud = level > np.percentile(level, 95) - 25
    inside = (f0 > FMIN_HZ * 1.02) & (f0 < FMAX_HZ * 0.98)  # YIN answers with a bound when unvoiced
    voiced = f0[loud & inside]
    if voiced.size < 10:
        return None
    semitones = 12 * np.log2(voiced / np.median(voiced))
    kept = np.abs(semitones) < 10  # octave errors
    return F0Stats(float(voiced[kept].mean()), float(semitones[kept].std()))
