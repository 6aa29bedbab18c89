"""F0 mean and spread: evaluated, never rewarded (flat prosody is a known hack of CER-only rewards)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FMIN_HZ, FMAX_HZ = 60.0, 420.0


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
    import librosa

    frame, hop = 1024, 256
    if audio.size < 4 * frame:
        return None
    f0 = librosa.yin(audio.astype(np.float32), fmin=FMIN_HZ, fmax=FMAX_HZ, sr=sample_rate, frame_length=frame,
                     hop_length=hop, center=False)
    rms = librosa.feature.rms(y=audio, frame_length=frame, hop_length=hop, center=False)[0]
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
