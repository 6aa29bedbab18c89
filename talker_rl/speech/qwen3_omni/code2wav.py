"""Codes to sound by transformers' code2wav: a causal transformer over frames, then convolutions that make 1920 samples
of each. No noise, no speaker: the codes alone decide.

The sound of n frames is 1920 n - 555 samples, as upstream's: its transposed convolutions look 555 samples (23 ms) ahead
and trim both ends. Upstream's ``chunked_decode`` loses those samples at every boundary and cuts the transformer's
window; here the transformer sees the whole utterance, and the convolutions work in pieces that have as many frames
around them as they look at, so that pieces equal the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from talker_rl.base.errors import DataError
from talker_rl.records.codec import Codec

PIECE = 64
"""Frames (5 s) that the convolutions make at a time: what bounds their memory."""


@torch.no_grad()
def decode(
    code2wav: Any, codes: Sequence[Sequence[int]], codec: Codec, batch_size: int = 8, *, piece: int = PIECE,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Sound of every sequence of codes, in order: float32, 24 kHz, one array each.

    Args:
        code2wav: transformers' Qwen3OmniMoeCode2Wav.
        codes: flat, frame by frame, no stop among them.
        batch_size: utterances that go through together, alike in length.
        piece: frames that the convolutions make at a time.
        progress: called with (done, total).

    Raises:
        DataError: an utterance without codes, with an invalid one, or with a part of a frame.
    """
    for i, sequence in enumerate(codes):
        _check(sequence, codec, f"utterance {i}")
    out: list[np.ndarray] = [np.empty(0, np.float32)] * len(codes)
    order = sorted(range(len(codes)), key=lambda i: len(codes[i]))
    done = 0
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        sounds = _sounds(code2wav, [torch.tensor(codes[i]).view(-1, codec.groups) for i in batch], piece)
        for i, sound in zip(batch, sounds, strict=True):
            out[i] = sound.float().cpu().numpy()
        done += len(batch)
        if progress:
            progress(done, len(codes))
    return out


def _check(codes: Sequence[int], codec: Codec, where: str) -> None:
    if not len(codes):
        raise DataError("an utterance has no codes", where=where, fix="score it as a failure instead")
    codec.frames(codes)
    if (bad := codec.invalid(codes)) is not None:  # it would be looked up among the next book's codes
        raise DataError(f"invalid code {bad}: a book has {codec.sizes[0]}", where=where, fix="strip stop ids first")


def _sounds(code2wav: Any, frames: Sequence[torch.Tensor], piece: int) -> list[torch.Tensor]:
    """Of (T_b, G) frames each. The transformer has them side by side, padded behind, which nothing before sees; the
    convolutions, which are nearly all the work, have pieces without padding, on a GPU as many at a time as utterances.
    """
    device = code2wav.code_embedding.weight.device
    longest = max(map(len, frames))
    codes_BGT = torch.zeros(len(frames), frames[0].shape[1], longest, dtype=torch.long, device=device)
    for b, mine in enumerate(frames):
        codes_BGT[b, :, : len(mine)] = mine.T.to(device)
    hidden_BTH = code2wav.code_embedding(codes_BGT + code2wav.code_offset).mean(1)
    hidden_BHT = code2wav.pre_transformer(inputs_embeds=hidden_BTH).last_hidden_state.transpose(1, 2)
    per_frame, before, trimmed = int(code2wav.total_upsample), frames_before(code2wav), samples_trimmed(code2wav)
    after = -(-trimmed // per_frame)
    sounds = [hidden_BHT.new_zeros(len(mine) * per_frame - trimmed) for mine in frames]
    pieces = [(b, start, min(start + piece, len(mine))) for b, mine in enumerate(frames)
              for start in range(0, len(mine), piece)]

    def seen(b: int, start: int, end: int) -> torch.Tensor:
        return hidden_BHT[b, :, max(0, start - before) : min(end + after, len(frames[b]))].T

    pieces.sort(key=lambda one: len(seen(*one)))
    together = 1 if device.type == "cpu" else len(frames)  # a CPU is busy with one, and its cache holds no more
    for at in range(0, len(pieces), together):
        group = pieces[at : at + together]
        made = _convolved(code2wav, pad_sequence([seen(*one) for one in group], batch_first=True).transpose(1, 2))
        for (b, start, end), sound in zip(group, made[:, 0], strict=True):
            into = sounds[b][start * per_frame : end * per_frame]
            skipped = (start - max(0, start - before)) * per_frame
            into.copy_(sound[skipped : skipped + len(into)])
    return sounds


def _convolved(code2wav: Any, hidden_BHT: torch.Tensor) -> torch.Tensor:
    out = hidden_BHT
    for blocks in code2wav.upsample:
        for block in blocks:
            out = block(out)
    for block in code2wav.decoder:
        out = block(out)
    return out.clamp(min=-1, max=1)


def frames_before(code2wav: Any) -> int:
    """Frames before a frame that its sound hangs on, through the convolutions."""
    return math.ceil(_reach(code2wav)[0]) + 1


def samples_trimmed(code2wav: Any) -> int:
    """Samples that the sound is shorter by than its frames."""
    return _reach(code2wav)[1]


def _reach(code2wav: Any) -> tuple[float, int]:
    """Frames that are looked back at, and samples that are trimmed at the end: sums over the convolutions in order."""
    rate, frames, ahead = 1, 0.0, 0.0
    for module in nn.ModuleList([*(b for blocks in code2wav.upsample for b in blocks), *code2wav.decoder]).modules():
        if isinstance(module, nn.ConvTranspose1d):
            stride, kernel = module.stride[0], module.kernel_size[0]
            frames, ahead = frames + 1 / rate, ahead + (kernel - stride) / stride / rate
            rate *= stride
        elif isinstance(module, nn.Conv1d):
            frames += (module.kernel_size[0] - 1) * module.dilation[0] / rate
    return frames, round(ahead * rate)
