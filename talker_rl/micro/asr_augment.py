"""What happens to a training utterance of the micro recognizers before its features are taken.

Every step keeps the token times true: cuts shorten spans, inserted silence moves them. Audio is float32 at
16 kHz; randomness comes from one ``random.Random`` (decisions) and one ``numpy.random.Generator`` (noise).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

RATE = 16_000
MELS = 80


@dataclass(frozen=True)
class Utterance:
    """Audio (float32 or int16, 16 kHz), token ids, and (start, end) of each token in seconds.

    ``breaks`` marks the tokens that begin a word: silence is never put between the two characters of one word.
    """

    audio: np.ndarray
    tokens: tuple[int, ...]
    spans: tuple[tuple[float, float], ...]
    breaks: tuple[bool, ...]


@dataclass(frozen=True)
class Augment:
    """Probabilities and ranges; the two recognizers use different ones."""

    cut: float = 0.15
    splice: float = 0.20
    splice_seconds: tuple[float, float] = (0.15, 0.70)
    lead: float = 0.5
    lead_seconds: float = 0.6
    tail: float = 0.6
    tail_seconds: float = 1.5
    equalise: float = 0.4
    equalise_db: float = 5.0
    gain_db: tuple[float, float] = (-16.0, 5.0)
    dither: float = 0.7
    dither_db: tuple[float, float] = (-95.0, -55.0)
    noise: float = 0.35
    snr_db: tuple[float, float] = (12.0, 38.0)
    empty: float = 0.02
    untouched: float = 0.0
    """Share whose sound (not its silences and cuts) stays as it was synthesized."""


AUGMENTS = {
    "reward": Augment(),
    "eval": Augment(
        untouched=0.25,
        cut=0.20,
        splice=0.15,
        splice_seconds=(0.2, 0.8),
        lead=0.6,
        lead_seconds=0.5,
        tail=0.7,
        tail_seconds=1.2,
        equalise=0.6,
        equalise_db=4.0,
        gain_db=(-12.0, 8.0),
        dither=0.8,
        dither_db=(-90.0, -50.0),
        noise=0.25,
        snr_db=(15.0, 42.0),
    ),
}


def cut_last_token(utterance: Utterance, rng: random.Random) -> Utterance:
    """End the audio inside the last token; the label stays if most of the token does.

    Between 40 and 65 % nobody could say whether the token was spoken: no such example is made.
    """
    if not utterance.tokens:
        return utterance
    start, end = utterance.spans[-1]
    share = rng.choice((rng.uniform(0.03, 0.40), rng.uniform(0.65, 0.98)))
    at = start + share * (end - start)
    audio = utterance.audio[: max(int(at * RATE), 1)].copy()
    fade = min(rng.choice((1, 32, 160)), len(audio))
    audio[-fade:] = audio[-fade:] * np.linspace(1.0, 0.0, fade)
    if share < 0.5:
        return Utterance(audio, utterance.tokens[:-1], utterance.spans[:-1], utterance.breaks[:-1])
    return Utterance(audio, utterance.tokens, (*utterance.spans[:-1], (start, at)), utterance.breaks)


def insert_silence(utterance: Utterance, index: int, seconds: float) -> Utterance:
    """Put digital silence before token ``index``."""
    at = utterance.spans[index][0]
    sample = int(at * RATE)
    gap = np.zeros(int(seconds * RATE), utterance.audio.dtype)
    audio = np.concatenate([utterance.audio[:sample], gap, utterance.audio[sample:]])
    shift = len(gap) / RATE
    spans = [(s, min(e, at)) if k < index else (s + shift, e + shift) for k, (s, e) in enumerate(utterance.spans)]
    return Utterance(audio, utterance.tokens, tuple(spans), utterance.breaks)


def pad(utterance: Utterance, lead: float, tail: float) -> Utterance:
    """Digital silence before and after, in seconds."""
    before = int(lead * RATE)
    audio = np.concatenate(
        [np.zeros(before, utterance.audio.dtype), utterance.audio, np.zeros(int(tail * RATE), utterance.audio.dtype)]
    )
    shift = before / RATE
    spans = tuple((s + shift, e + shift) for s, e in utterance.spans)
    return Utterance(audio, utterance.tokens, spans, utterance.breaks)


def equalise(audio: np.ndarray, rng: random.Random, strength_db: float) -> np.ndarray:
    """A smooth random frequency response: three cosines over the band."""
    spectrum = np.fft.rfft(audio)
    x = np.linspace(0, np.pi, len(spectrum))
    curve = sum(rng.gauss(0, strength_db / 2) * np.cos(k * x + rng.uniform(0, np.pi)) for k in (1, 2, 3))
    return np.fft.irfft(spectrum * 10 ** (curve / 20), len(audio)).astype(np.float32)


def colored_noise(samples: int, noise: np.random.Generator, tilt: float) -> np.ndarray:
    """Unit-RMS noise whose spectrum falls as f ** -tilt (0 white, 0.5 pink, 1 brown)."""
    spectrum = np.fft.rfft(noise.standard_normal(samples).astype(np.float32))
    spectrum *= (np.arange(len(spectrum)) + 20.0) ** -tilt
    out = np.fft.irfft(spectrum, samples)
    return (out / (np.sqrt(np.mean(out**2)) + 1e-9)).astype(np.float32)


def augment(utterance: Utterance, setting: Augment, rng: random.Random, noise: np.random.Generator) -> Utterance:
    """One random rendition of an utterance: float32 audio and the times that hold in it."""
    audio = utterance.audio
    if audio.dtype == np.int16:
        audio = audio.astype(np.float32) / 32768
    utterance = Utterance(audio, utterance.tokens, utterance.spans, utterance.breaks)
    if rng.random() < setting.empty:
        silence = np.zeros(int(rng.uniform(0.3, 2.5) * RATE), np.float32)
        utterance = Utterance(silence, (), (), ())
    if utterance.tokens and rng.random() < setting.splice:
        places = [k for k in range(1, len(utterance.tokens)) if utterance.breaks[k]]
        if places:
            utterance = insert_silence(utterance, rng.choice(places), rng.uniform(*setting.splice_seconds))
    if rng.random() < setting.cut:
        utterance = cut_last_token(utterance, rng)
    lead = rng.uniform(0, setting.lead_seconds) if rng.random() < setting.lead else 0.0
    tail = rng.uniform(0, setting.tail_seconds) if rng.random() < setting.tail else 0.0
    utterance = pad(utterance, lead, max(tail, 0.1 - len(utterance.audio) / RATE))

    if setting.untouched and rng.random() < setting.untouched:
        return utterance
    audio = utterance.audio
    if rng.random() < setting.equalise:
        audio = equalise(audio, rng, setting.equalise_db)
    level = float(np.sqrt(np.mean(audio**2)))
    if rng.random() < setting.noise:
        power = (level or 0.01) * 10 ** (-rng.uniform(*setting.snr_db) / 20)
        audio = audio + power * colored_noise(len(audio), noise, rng.choice((0.0, 0.5, 1.0)))
    elif rng.random() < setting.dither:
        power = 10 ** (rng.uniform(*setting.dither_db) / 20)
        audio = audio + power * noise.standard_normal(len(audio)).astype(np.float32)
    audio = audio * 10 ** (rng.uniform(*setting.gain_db) / 20)
    peak = float(np.abs(audio).max())
    if peak > 1:
        audio = audio / peak
    return Utterance(audio.astype(np.float32), utterance.tokens, utterance.spans, utterance.breaks)


def mask_bands(features: torch.Tensor, rng: random.Random, width: int = 10) -> torch.Tensor:
    """Set one random band of mel bins to its mean (0) in each utterance of (B, T, stacked * 80), in place."""
    view = features.view(*features.shape[:2], -1, MELS)
    for b in range(len(features)):
        size = rng.randint(0, width)
        low = rng.randint(0, MELS - size)
        view[b, :, :, low : low + size] = 0.0
    return features


@cache
def _mel_bank(n_fft: int) -> torch.Tensor:
    """Triangular mel filters, 20 Hz to Nyquist: (80, n_fft // 2 + 1)."""

    def mel(hertz: np.ndarray) -> np.ndarray:
        return 1127.0 * np.log1p(hertz / 700.0)

    low = mel(np.array(20.0))
    step = (mel(np.array(RATE / 2)) - low) / (MELS + 1)
    left = (low + step * np.arange(MELS))[:, None]
    bins = mel(np.arange(n_fft // 2 + 1) * RATE / n_fft)[None]
    return torch.from_numpy(np.maximum(0.0, np.minimum((bins - left) / step, (left + 2 * step - bins) / step))).float()


def vocoder_damage(audio: np.ndarray, rng: random.Random, iterations: int = 6) -> np.ndarray:
    """Speech through a coarse mel spectrogram and few Griffin-Lim steps, as a bad vocoder would render it.

    Frames are averaged in pairs (20 ms, the codec's rate) and jittered; the phases stay inconsistent.
    """
    hop, size = 160, 640
    window = torch.hann_window(size)
    wave = torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))
    dice = torch.Generator().manual_seed(rng.getrandbits(31))

    def stft(x: torch.Tensor) -> torch.Tensor:
        return torch.stft(x, size, hop, window=window, return_complex=True, pad_mode="constant")

    bank = _mel_bank(size)
    magnitude = stft(wave).abs()
    mel = (bank @ magnitude / bank.sum(1, keepdim=True).clamp(min=1e-3) + 1e-5).log()
    if rng.random() < 0.7:
        even = mel.shape[1] // 2 * 2
        mel[:, :even] = mel[:, :even].reshape(MELS, -1, 2).mean(-1).repeat_interleave(2, 1)
    mel += rng.uniform(0.0, 0.3) * torch.randn(mel.shape, generator=dice)
    target = (bank / bank.sum(0).clamp(min=0.05)).T @ mel.exp()
    phase = torch.exp(2j * torch.pi * torch.rand(magnitude.shape, generator=dice))
    for _ in range(iterations):
        phase = torch.exp(1j * stft(torch.istft(target * phase, size, hop, window=window, length=len(wave))).angle())
    out = torch.istft(target * phase, size, hop, window=window, length=len(wave)).numpy()
    return (out / max(1.0, float(np.abs(out).max()))).astype(np.float32)
