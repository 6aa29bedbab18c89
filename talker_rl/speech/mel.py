"""The mel that voices are compared by, and that Qwen2.5-Omni's token2wav and its speaker encoder use: natural-log
amplitude, 80 bins, hop 240, at 24 kHz.

The publisher's code for ``ref_mel`` is not public; window and band are the customary ones (HiFi-GAN's, CosyVoice's),
and the micro model was trained with them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from talker_rl.base.errors import DataError

SAMPLE_RATE = 24_000
N_FFT = 1024
HOP = 240
N_MELS = 80
FMAX = 8_000.0
FLOOR = 1e-5
"""Smallest amplitude: log(1e-5) = -11.5, as in HiFi-GAN and BigVGAN."""
SPEECH_DB = 25.0
"""Frames within so many decibels of the loudest are speech."""
DB_PER_NAT = 20 / math.log(10)


def _hz_to_mel(hz: torch.Tensor) -> torch.Tensor:
    """Slaney's scale: linear to 1 kHz, logarithmic above."""
    log_part = 15 + torch.log(hz.clamp(min=1e-10) / 1000) * (27 / torch.log(torch.tensor(6.4, dtype=torch.float64)))
    return torch.where(hz < 1000, hz * 3 / 200, log_part)


def _mel_to_hz(mel: torch.Tensor) -> torch.Tensor:
    log_part = 1000 * torch.exp((mel - 15) * torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27)
    return torch.where(mel < 15, mel * 200 / 3, log_part)


@lru_cache(maxsize=4)
def mel_filters(fmin: float = 0.0, fmax: float = FMAX) -> torch.Tensor:
    """Triangular filters (80, 513) of equal area (Slaney), as ``librosa.filters.mel`` makes them."""
    bins = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64)
    ends = _hz_to_mel(torch.tensor([fmin, fmax], dtype=torch.float64))
    edges = _mel_to_hz(torch.linspace(float(ends[0]), float(ends[1]), N_MELS + 2, dtype=torch.float64))
    rise = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    area = (2 / (edges[2:] - edges[:-2]))[:, None]
    return (torch.minimum(rise, fall).clamp(min=0) * area).float()


def log_mel(audio: torch.Tensor) -> torch.Tensor:
    """Natural-log amplitude mel (frames, 80) of float audio (samples,) at 24 kHz; ceil(samples / 240) frames.

    Windows are Hann, 1024 long, centered by reflecting (1024 - 240) / 2 samples, as HiFi-GAN and BigVGAN do.

    Raises:
        DataError: the audio is shorter than one reflection (393 samples, 16 ms).
    """
    pad = (N_FFT - HOP) // 2
    audio = audio.float().reshape(-1)
    if len(audio) <= pad:
        raise DataError(f"{len(audio)} samples are too few for a mel", fix="skip audio shorter than 17 ms")
    audio = torch.nn.functional.pad(audio, (0, -len(audio) % HOP))
    padded = torch.nn.functional.pad(audio[None], (pad, pad), mode="reflect")[0]
    window = torch.hann_window(N_FFT, device=audio.device)
    spectrum = torch.stft(padded, N_FFT, HOP, window=window, center=False, return_complex=True)
    amplitude = torch.sqrt(spectrum.abs().square() + 1e-12)
    return (mel_filters().to(audio.device) @ amplitude).clamp(min=FLOOR).log().T


def speech_frames(mel_FM: torch.Tensor) -> torch.Tensor:
    """(frames,) bool: the frames of a natural-log mel (frames, 80) that are speech."""
    level = mel_FM.logsumexp(1) * DB_PER_NAT
    return level > level.max() - SPEECH_DB


def spectrum(mel_FM: torch.Tensor) -> np.ndarray:
    """Long-term spectrum (80,): the mean log mel of speech frames less its mean, so that loudness does not count."""
    mean = mel_FM[speech_frames(mel_FM)].mean(0)
    return (mean - mean.mean()).double().numpy()
