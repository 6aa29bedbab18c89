"""BigVGAN's anti-aliased activation on a CPU: the same sums of the same samples, as matrix products.

transformers doubles the rate by a transposed convolution of each channel with one filter of 12 taps, applies the snake,
and halves the rate by another. At the vocoder's last stage (8 channels, 24,000 samples a second) torch's convolutions
of single channels take several times as long as their arithmetic, and are most of decoding. Here either filter is a
matrix that a block of samples is multiplied by, with what lies around it: most of its entries are zeros, and matrix
products are still the faster way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

TAPS, RATIO = 12, 2
"""What is written out here; other filters go through the module."""
_BLOCK = 16
"""Samples of a row of the products."""
_AT_ONCE = 1 << 18
"""Samples of all channels at a time, so that what is worked on stays in the cache."""
_BEFORE, _AFTER = 3, 3
"""Samples around a block that its doubled ones are made of."""
_BEFORE_HALVED, _AFTER_HALVED = 5, 5
"""Doubled samples around a doubled block that its halved ones are made of."""


@torch.no_grad()
def activation(module: Any, x_BCT: Tensor) -> Tensor:
    """``Qwen2_5OmniAntiAliasedActivation1d.forward`` (B, C, T) -> (B, C, T), equal up to rounding. Half precision goes
    through the module, which adds up in a wider one."""
    up, down = module.upsample, module.downsample
    fits = (up.ratio, up.filter.numel(), down.stride, down.filter.numel()) == (RATIO, TAPS, RATIO, TAPS)
    if not fits or not hasattr(module.act, "beta") or x_BCT.dtype not in (torch.float32, torch.float64):
        out: Tensor = module(x_BCT)
        return out
    channels = max(1, _AT_ONCE // x_BCT.shape[2])
    doubling = _doubling(tuple((up.ratio * up.filter).flatten().tolist())).to(x_BCT)
    halving = _halving(tuple(down.filter.flatten().tolist())).to(x_BCT)
    inner, outer = module.act.alpha.exp()[:, None], 1 / (module.act.beta.exp() + module.act.no_div_by_zero)[:, None]
    out_BCT = torch.empty_like(x_BCT)
    for x_CT, out_CT in zip(x_BCT, out_BCT, strict=True):
        for at in range(0, len(x_CT), channels):
            some = slice(at, at + channels)
            out_CT[some] = _filtered(x_CT[some], doubling, halving, inner[some], outer[some])
    return out_BCT


def _filtered(x_CT: Tensor, doubling: Tensor, halving: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """Doubled, bent, halved. Beyond its ends a signal is as at its ends, the doubled one too."""
    channels, steps = x_CT.shape
    blocks = -(-steps // _BLOCK)
    spare = blocks * _BLOCK - steps
    around = [x_CT[:, :1].expand(-1, _BEFORE), x_CT, x_CT[:, -1:].expand(-1, _AFTER + spare)]
    doubled = _blocks(torch.cat(around, dim=1), _BLOCK, len(doubling)) @ doubling
    bent = x_CT.new_empty(channels, _BEFORE_HALVED + 2 * blocks * _BLOCK + _AFTER_HALVED)
    inside = bent[:, _BEFORE_HALVED : _BEFORE_HALVED + 2 * blocks * _BLOCK]
    _snake(doubled.view(channels, -1), inner, outer, inside)
    end = _BEFORE_HALVED + 2 * steps
    bent[:, :_BEFORE_HALVED], bent[:, end:] = bent[:, _BEFORE_HALVED, None], bent[:, end - 1, None]
    return (_blocks(bent, 2 * _BLOCK, len(halving)) @ halving).view(channels, -1)[:, :steps]


def _blocks(x_CS: Tensor, every: int, length: int) -> Tensor:
    """(C blocks, length): what begins at each ``every``-th sample of a channel."""
    return x_CS.unfold(1, length, every).reshape(-1, length)


def _snake(x_CT: Tensor, inner: Tensor, outer: Tensor, out_CT: Tensor) -> None:
    """x + outer sin^2(inner x)."""
    bent = torch.mul(x_CT, inner, out=out_CT).sin_()
    torch.addcmul(x_CT, bent.mul_(bent), outer, out=out_CT)


@lru_cache(maxsize=8)
def _doubling(taps: tuple[float, ...]) -> Tensor:
    """(3 + block + 3, 2 block). Sample 2t at twice the rate is the sum over k of x[t + 2 - k] taps[2k + 1], and 2t + 1
    of x[t + 3 - k] taps[2k]."""
    out = torch.zeros(_BEFORE + _BLOCK + _AFTER, 2 * _BLOCK, dtype=torch.float64)
    t = torch.arange(_BLOCK)
    for k in range(TAPS // 2):
        out[_BEFORE + t + 2 - k, 2 * t] = taps[2 * k + 1]
        out[_BEFORE + t + 3 - k, 2 * t + 1] = taps[2 * k]
    return out


@lru_cache(maxsize=8)
def _halving(taps: tuple[float, ...]) -> Tensor:
    """(5 + 2 block + 5, block). Sample t at half the rate is the sum over k of x[2t + k - 5] taps[k]."""
    out = torch.zeros(_BEFORE_HALVED + 2 * _BLOCK + _AFTER_HALVED, _BLOCK, dtype=torch.float64)
    t = torch.arange(_BLOCK)
    for k in range(TAPS):
        out[_BEFORE_HALVED + 2 * t + k - 5, t] = taps[k]
    return out
