"""BigVGAN over several mels.

On a GPU mels of unequal lengths share a forward. Nothing leaks, because the end of each is made again wherever a layer
looks beyond it: zeros before a convolution, the last sample before a resampling filter, as transformers pads one alone.

On a CPU they pass one by one, since a single utterance fills the cores: convolutions by the module, which run at the
speed of matrix products, and activations by :mod:`talker_rl.speech.qwen2_5_omni.anti_aliased`, which were most of the
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from talker_rl.speech.qwen2_5_omni.anti_aliased import activation

FILTER_RADIUS = 6
"""Input samples around its own that an anti-aliased activation's output depends on, rounded up."""


@torch.no_grad()
def vocode(vocoder: Any, mels: Sequence[Tensor]) -> list[Tensor]:
    """Waveforms in [-1, 1], (240 frames,), of natural-log mels (frames, mel_dim) on the vocoder's device."""
    if vocoder.conv_pre.weight.device.type == "cpu":
        return [_forward(vocoder, m.T[None], None)[0] for m in mels]
    return batched(vocoder, mels)


@torch.no_grad()
def batched(vocoder: Any, mels: Sequence[Tensor]) -> list[Tensor]:
    """`vocode` in one forward."""
    lengths = torch.tensor([len(m) for m in mels], device=mels[0].device)
    padded = torch.nn.utils.rnn.pad_sequence(list(mels), batch_first=True).transpose(1, 2)
    out = _forward(vocoder, padded, lengths)
    hop = out.shape[1] // padded.shape[2]
    return [row[: hop * len(m)] for row, m in zip(out, mels, strict=True)]


def _forward(vocoder: Any, mels: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, mel_dim, frames), lengths (B,) in frames, None where all are as long -> (B, samples)."""
    x = vocoder.conv_pre(_ended(vocoder.process_mel_spectrogram(mels), lengths))
    branches = vocoder.num_residual_blocks
    for i, (up,) in enumerate(vocoder.ups):
        x = up(_ended(x, lengths))
        if lengths is not None:
            lengths = (lengths - 1) * up.stride[0] - 2 * up.padding[0] + up.kernel_size[0]
        x = sum(_residual(b, x, lengths) for b in vocoder.resblocks[i * branches : (i + 1) * branches]) / branches
    x = vocoder.conv_post(_activation(vocoder.activation_post, x, lengths))
    return x[:, 0].clamp(-1.0, 1.0)


def _residual(block: Any, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Qwen2_5OmniAMPBlock.forward."""
    first, second = block.activations[::2], block.activations[1::2]
    for conv1, conv2, act1, act2 in zip(block.convs1, block.convs2, first, second, strict=True):
        x = conv2(_activation(act2, conv1(_activation(act1, x, lengths)), lengths)) + x
    return x


def _activation(module: Any, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Qwen2_5OmniAntiAliasedActivation1d.forward, (B, C, T); zeros beyond the lengths."""
    if lengths is None:
        return activation(module, x)
    up = module.act(module.upsample(_held(x, lengths)))
    return _ended(module.downsample(_held(up, module.upsample.ratio * lengths)), lengths)


def _ended(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, C, T) with zeros beyond the lengths (B,): what a convolution finds beyond the end of one alone."""
    if lengths is None:
        return x
    return x.masked_fill(torch.arange(x.shape[2], device=x.device) >= lengths[:, None, None], 0)


def _held(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, C, T) with the last sample repeated beyond the lengths (B,): what a filter finds there."""
    ends = lengths[:, None, None]
    last = x.gather(2, (ends - 1).expand(-1, x.shape[1], 1))
    return torch.where(torch.arange(x.shape[2], device=x.device) < ends, x, last)


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
