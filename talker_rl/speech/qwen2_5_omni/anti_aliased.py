"""BigVGAN's anti-aliased activation on a CPU: the same sums of the same samples, in an order that suits memory.

transformers doubles the rate by a transposed convolution of each channel with one filter of 12 taps, applies the snake,
and halves the rate by another. At the vocoder's last stage (8 channels, 24,000 samples a second) torch's convolutions
of single channels take several times as long as their arithmetic, and are most of decoding. Here the two phases of the
doubled signal stay apart: each is a sum of six shifted copies, and so is what either adds to the halved one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TAPS, RATIO = 12, 2
"""What is written out here; other filters go through the module."""
_AT_ONCE = 1 << 19
"""Samples of all channels at a time, so that what is added up stays in the cache."""


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
    rising, falling = (up.ratio * up.filter).flatten().tolist(), down.filter.flatten().tolist()
    inner, outer = module.act.alpha.exp()[:, None], 1 / (module.act.beta.exp() + module.act.no_div_by_zero)[:, None]
    out_BCT = torch.empty_like(x_BCT)
    for x_CT, out_CT in zip(x_BCT, out_BCT, strict=True):
        for at in range(0, len(x_CT), channels):
            some = slice(at, at + channels)
            _filtered(x_CT[some], out_CT[some], rising, falling, inner[some], outer[some])
    return out_BCT


def _filtered(
    x_CT: Tensor, out_CT: Tensor, rising: list[float], falling: list[float], inner: Tensor, outer: Tensor
) -> None:
    """Doubled, bent, halved. Beyond its ends a signal is as at its ends, the doubled one too."""
    channels, steps = x_CT.shape
    x = torch.cat([x_CT[:, :1].expand(-1, 3), x_CT, x_CT[:, -1:].expand(-1, 3)], dim=1)
    # at twice the rate, sample 2t is the sum over k of x[t + 2 - k] rising[2k + 1]; 2t + 1 of x[t + 3 - k] rising[2k]
    even, odd = (x.new_empty(channels, steps + 5) for _ in range(2))
    first, last = even[:, 2 : 2 + steps], odd[:, 3 : 3 + steps]  # with room for what is held beyond the ends
    _snake(_sum(x, [(5 - k, rising[2 * k + 1]) for k in range(6)], first), inner, outer)
    _snake(_sum(x, [(6 - k, rising[2 * k]) for k in range(6)], last), inner, outer)
    even[:, :2], odd[:, :3] = first[:, :1], first[:, :1]
    even[:, 2 + steps :], odd[:, 3 + steps :] = last[:, -1:], last[:, -1:]
    # and t of the result is the sum of even[t + k - 2] falling[2k + 1] and odd[t + k - 3] falling[2k]
    _sum(even, [(k, falling[2 * k + 1]) for k in range(6)], out_CT)
    _add(odd, [(k, falling[2 * k]) for k in range(6)], out_CT)


def _sum(x_CS: Tensor, taps: list[tuple[int, float]], out_CT: Tensor) -> Tensor:
    """x from each tap's place on, times its weight."""
    (place, weight), *rest = taps
    torch.mul(x_CS[:, place : place + out_CT.shape[1]], weight, out=out_CT)
    return _add(x_CS, rest, out_CT)


def _add(x_CS: Tensor, taps: list[tuple[int, float]], out_CT: Tensor) -> Tensor:
    for place, weight in taps:
        out_CT.add_(x_CS[:, place : place + out_CT.shape[1]], alpha=weight)
    return out_CT


def _snake(x_CT: Tensor, inner: Tensor, outer: Tensor) -> None:
    """x + outer sin^2(inner x), in place."""
    bent = (x_CT * inner).sin_()
    x_CT.addcmul_(bent.mul_(bent), outer)
