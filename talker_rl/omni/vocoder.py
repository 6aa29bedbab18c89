"""BigVGAN, transformers' numbers several times faster.

Most of its time on a CPU is not its convolutions but its anti-aliased activations: depthwise resampling filters, of
which upsampling multiplies zeros half of the time. Here a filter is a matrix: a signal is cut into overlapping windows
and multiplied by a banded matrix, which runs at the speed of matrix products. The matrices are read off transformers'
own resamplers by letting them answer to impulses.

On a GPU mels of unequal lengths share a forward. Nothing leaks, because the end of each is made again wherever a
layer looks beyond it: zeros before a convolution, the last sample before a filter, as transformers pads one alone. On
a CPU a batch gains nothing (a single utterance fills the cores), so they pass one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW = 32
"""Samples a window: wider ones cost more products, narrower ones more copies."""
MARGIN = 6
"""Samples around a window that its filters look at, at most."""
CPU_SAMPLES = 1 << 17
"""Samples that pass an activation together on a CPU, so that they stay in its caches."""
FILTER_RADIUS = 6
"""Input samples around its own that an activation's output depends on, rounded up."""


@torch.no_grad()
def vocode(vocoder: Any, mels: Sequence[Tensor]) -> list[Tensor]:
    """Waveforms in [-1, 1], (240 frames,), of natural-log mels (frames, mel_dim) on the vocoder's device."""
    if vocoder.conv_pre.weight.device.type == "cpu":
        return [waveforms(vocoder, m.T[None])[0] for m in mels]
    return batched(vocoder, mels)


@torch.no_grad()
def batched(vocoder: Any, mels: Sequence[Tensor]) -> list[Tensor]:
    """`vocode` in one forward."""
    lengths = torch.tensor([len(m) for m in mels], device=mels[0].device)
    padded = torch.nn.utils.rnn.pad_sequence(list(mels), batch_first=True).transpose(1, 2)
    out = waveforms(vocoder, padded, None if bool((lengths == lengths[0]).all()) else lengths)
    hop = out.shape[1] // padded.shape[2]
    return [row[: hop * len(m)] for row, m in zip(out, mels, strict=True)]


def waveforms(vocoder: Any, mels: Tensor, lengths: Tensor | None = None) -> Tensor:
    """(B, mel_dim, frames) -> (B, samples); ``lengths`` (B,) in frames where they differ."""
    act = _Activation(vocoder.activation_post)
    x = vocoder.conv_pre(_ended(vocoder.process_mel_spectrogram(mels), lengths))
    branches = vocoder.num_residual_blocks
    for i, (up,) in enumerate(vocoder.ups):
        x = up(_ended(x, lengths))
        if lengths is not None:
            lengths = (lengths - 1) * up.stride[0] - 2 * up.padding[0] + up.kernel_size[0]
        total = _residual(vocoder.resblocks[i * branches], act, x, lengths)
        for block in vocoder.resblocks[i * branches + 1 : (i + 1) * branches]:
            total += _residual(block, act, x, lengths)
        x = total / branches
    x = vocoder.conv_post(act(vocoder.activation_post, x, lengths))
    return x[:, 0].clamp(-1.0, 1.0)


def _residual(block: Any, act: _Activation, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Qwen2_5OmniAMPBlock.forward."""
    first, second = block.activations[::2], block.activations[1::2]
    for conv1, conv2, act1, act2 in zip(block.convs1, block.convs2, first, second, strict=True):
        inner = conv1(act(act1, x, lengths))
        x = conv2(act(act2, inner, lengths)) + x
    return x


class _Activation:
    """Upsample by 2, SnakeBeta, downsample by 2: what every anti-aliased activation of a vocoder does.

    Args:
        module: any of them; their filters are alike.
    """

    def __init__(self, module: Any) -> None:
        weight = module.act.alpha
        wide, margin = WINDOW + 2 * MARGIN, 2 * MARGIN
        impulses = torch.eye(wide, device=weight.device, dtype=weight.dtype)[:, None]
        self._up = module.upsample(impulses)[:, 0, margin:-margin].contiguous()  # (WINDOW + 2 MARGIN, 2 WINDOW)
        impulses = torch.eye(2 * wide, device=weight.device, dtype=weight.dtype)[:, None]
        down = module.downsample(impulses)[:, 0, MARGIN:-MARGIN]
        self._down = down[MARGIN:-MARGIN].contiguous()  # (2 WINDOW + 2 MARGIN, WINDOW)

    def __call__(self, module: Any, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, T) -> (B, C, T), zeros beyond the lengths."""
        batch, channels, frames = x.shape
        frequency = module.act.alpha.exp().repeat(batch)[:, None]
        gain = 1.0 / (module.act.beta.exp() + module.act.no_div_by_zero).repeat(batch)[:, None]
        ends = None if lengths is None else lengths.repeat_interleave(channels)[:, None]
        rows = x.reshape(batch * channels, frames)
        out = torch.empty_like(rows)
        size = max(1, CPU_SAMPLES // frames) if x.device.type == "cpu" else len(rows)
        for at in range(0, len(rows), size):
            part = slice(at, at + size)
            out[part] = self._rows(rows[part], frequency[part], gain[part], None if ends is None else ends[part])
        return _ended(out.view(x.shape), lengths)

    def _rows(self, x: Tensor, frequency: Tensor, gain: Tensor, ends: Tensor | None) -> Tensor:
        """(rows, T) -> (rows, T)."""
        frames = x.shape[1]
        windows = -(-frames // WINDOW)
        up = _windows(_held(x, ends), WINDOW, windows) @ self._up
        up = up.view(len(x), -1)[:, : 2 * frames]
        bent = (up * frequency).sin_()
        up = up.addcmul_(bent.mul_(bent), gain)  # x + sin^2(a x) / b
        down = _windows(_held(up, None if ends is None else 2 * ends), 2 * WINDOW, windows) @ self._down
        return down.view(len(x), -1)[:, :frames]


def _windows(x: Tensor, size: int, count: int) -> Tensor:
    """(rows, T) -> (rows, count, size + 2 MARGIN): overlapping windows, the ends of the signal going on as they are."""
    rows, length = x.shape
    padded = F.pad(x[:, None], (MARGIN, MARGIN + count * size - length), mode="replicate")[:, 0]
    return padded.unfold(1, size + 2 * MARGIN, size)


def _ended(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, C, T) with zeros beyond the lengths (B,): what a convolution finds beyond the end of one alone."""
    if lengths is None:
        return x
    return x.masked_fill(torch.arange(x.shape[2], device=x.device) >= lengths[:, None, None], 0)


def _held(x: Tensor, ends: Tensor | None) -> Tensor:
    """(rows, T) with each row's last sample repeated beyond its end (rows, 1): what a filter finds there."""
    if ends is None:
        return x
    return torch.where(torch.arange(x.shape[1], device=x.device) < ends, x, x.gather(1, ends - 1))


def context_frames(vocoder: Any) -> int:
    """Mel frames around a frame that its samples depend on, at most."""
    radius = vocoder.conv_post.padding[0] + FILTER_RADIUS
    branches = vocoder.num_residual_blocks
    for i in reversed(range(vocoder.num_upsample_layers)):
        reach = []
        for block in vocoder.resblocks[i * branches : (i + 1) * branches]:
            convs = [*block.convs1, *block.convs2]
            reach.append(sum(conv.padding[0] + FILTER_RADIUS for conv in convs))
        (up,) = vocoder.ups[i]
        radius = (radius + max(reach) + up.kernel_size[0]) // up.stride[0] + 1
    return int(radius + vocoder.conv_pre.padding[0])
