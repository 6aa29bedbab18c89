"""Upstream's way of decoding, given the noise that ours draws; and how far two waves are apart."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch


@contextlib.contextmanager
def given_noise(noise: torch.Tensor) -> Iterator[None]:
    """transformers draws the flow's start from the global generator; here it gets this one, (frames, mel_dim)."""
    with mock.patch.object(torch, "randn", lambda size, **_: noise.reshape(size).clone()), torch.no_grad():
        yield


def upstream_mel(
    dit: Any, codes: list[int], speaker: dict[str, Any], noise: torch.Tensor, **options: Any
) -> torch.Tensor:
    """(frames, mel_dim) by transformers' own `sample`."""
    with given_noise(noise):
        return dit.sample(speaker["cond"], speaker["ref_mel"], torch.tensor([codes]), **options)[0].T


def upstream_wave(
    token2wav: Any, codes: list[int], speaker: dict[str, Any], noise: torch.Tensor, **options: Any
) -> np.ndarray:
    """(samples,) by transformers' own module."""
    with given_noise(noise):
        wave = token2wav(torch.tensor([codes]), conditioning=speaker["cond"], reference_mel=speaker["ref_mel"],
                         **options)
    return wave.reshape(-1).numpy()


def snr_db(wave: np.ndarray, reference: np.ndarray) -> float:
    """Power of the reference over that of the difference."""
    noise = float(np.square(wave.astype(np.float64) - reference).sum())
    return 10 * math.log10(float(np.square(reference.astype(np.float64)).sum()) / max(noise, 1e-300))


def furthest(ours: Any, theirs: Any) -> float:
    """Largest absolute difference of two lists of tensors or arrays."""
    return max(float(abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def random_codes(seconds: float, seed: int) -> list[int]:
    """50 ids a second, all of them speakable."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 8194, (max(1, round(50 * seconds)),), generator=generator).tolist()
