"""The mel spectrogram between codes and waveform: natural log of amplitude, 80 bins, 100 frames per second."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

SAMPLE_RATE = 24_000
HOP = 240
N_FFT = 1024
MEL_DIM = 80
FRAMES_PER_CODE = 2
FMAX = 8_000.0
"""The recognizers hear 16 kHz, so bins above 8 kHz would be spent on what nobody scores."""
FLOOR = 1e-5


@lru_cache(maxsize=4)
def mel_filters(n_fft: int = N_FFT, bins: int = MEL_DIM) -> Tensor:
    """Slaney's triangular filters with area 1, shape (bins, n_fft // 2 + 1)."""

    def to_mel(hz: Tensor) -> Tensor:
        high = 15 + torch.log(hz.clamp(min=1) / 1000) * 27 / torch.tensor(6.4).log()
        return torch.where(hz < 1000, hz * 3 / 200, high)

    def to_hz(mel: Tensor) -> Tensor:
        return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * torch.tensor(6.4).log() / 27))

    top = to_mel(torch.tensor(FMAX, dtype=torch.float64))
    edges = to_hz(torch.linspace(0, float(top), bins + 2, dtype=torch.float64))
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1, dtype=torch.float64)
    rising = (frequencies[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies[None]) / (edges[2:] - edges[1:-1])[:, None]
    area = 2.0 / (edges[2:] - edges[:-2])
    return (torch.minimum(rising, falling).clamp(min=0) * area[:, None]).float()


def log_mel(audio: Tensor) -> Tensor:
    """Natural-log amplitude mel. audio (B, L) or (L,), 24 kHz -> (B, L // 240, 80) or (L // 240, 80).

    Frame i is centered on the middle of samples 240 i .. 240 i + 239, so a code has exactly two frames.
    """
    single = audio.ndim == 1
    x = (audio[None] if single else audio).float()
    pad = (N_FFT - HOP) // 2
    x = torch.nn.functional.pad(x[:, None], (pad, pad), mode="reflect")[:, 0]
    spectrum = torch.stft(
        x, N_FFT, hop_length=HOP, window=torch.hann_window(N_FFT, device=x.device), center=False, return_complex=True
    )
    # sqrt has an infinite slope at 0: the small constant keeps gradients of silence finite
    amplitude = torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-12)
    mel = torch.matmul(mel_filters().to(x.device), amplitude)
    out = mel.clamp(min=FLOOR).log().transpose(1, 2)
    return out[0] if single else out
