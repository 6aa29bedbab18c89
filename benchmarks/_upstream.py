"""Upstream's way of sampling, and of decoding given the noise that ours draws; and how far two waves are apart."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch

from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning
from talker_rl.speech.qwen2_5_omni.layout import reply_rows


def generate(talker: Any, conditionings: Sequence[Conditioning], **options: Any) -> tuple[Any, int]:
    """(what transformers' `generate` gives for a batch, column where the codes begin).

    Rows are left-padded, and each has a masked column, without which transformers 5.23 drops the embeddings of
    codec-bos and codec-pad.
    """
    rows, replies = len(conditionings), max(len(c.reply_stream) for c in conditionings)
    width = max(len(c.prefix) for c in conditionings) + 1
    place = {"device": talker.device, "dtype": talker.dtype}
    inputs = torch.zeros(rows, width, conditionings[0].prefix.shape[1])
    mask = torch.zeros(rows, width, dtype=torch.long)
    for i, c in enumerate(conditionings):
        inputs[i, width - len(c.prefix) :], mask[i, width - len(c.prefix) :] = c.prefix, 1
    ids = torch.full((rows, width), talker.codec_mask_token)
    ids[:, -2], ids[:, -1] = talker.codec_pad_token, talker.codec_bos_token
    talker.rope_deltas = None  # of the call before
    return talker.generate(
        input_ids=ids.to(talker.device),
        input_text_ids=torch.zeros_like(ids, device=talker.device),
        thinker_reply_part=torch.stack([reply_rows(c.reply_stream, replies) for c in conditionings]).to(**place),
        inputs_embeds=inputs.to(**place),
        attention_mask=mask.to(talker.device),
        eos_token_id=[talker.codec_pad_token, talker.codec_eos_token],
        pad_token_id=talker.codec_pad_token,
        **options,
    ), width


@contextlib.contextmanager
def given_noise(noise: torch.Tensor) -> Iterator[None]:
    """transformers draws the flow's start from the global generator; here it gets this one, (frames, mel_dim), where
    and as it asks for it."""

    def given(size: Sequence[int], **place: Any) -> torch.Tensor:
        return noise.reshape(*size).to(**place, copy=True)

    with mock.patch.object(torch, "randn", given), torch.no_grad():
        yield


def upstream_mel(
    dit: Any, codes: Sequence[int], speaker: dict[str, Any], noise: torch.Tensor, **options: Any
) -> torch.Tensor:
    """(frames, mel_dim) by transformers' own `sample`, on the device of the DiT and the speaker."""
    with given_noise(noise):
        return dit.sample(speaker["cond"], speaker["ref_mel"], _ids(codes, dit), **options)[0].T


def upstream_wave(
    token2wav: Any, codes: Sequence[int], speaker: dict[str, Any], noise: torch.Tensor, **options: Any
) -> np.ndarray:
    """(samples,) by transformers' own module."""
    with given_noise(noise):
        wave = token2wav(_ids(codes, token2wav), conditioning=speaker["cond"], reference_mel=speaker["ref_mel"],
                         **options)
    return wave.reshape(-1).cpu().numpy()


def _ids(codes: Sequence[int], module: Any) -> torch.Tensor:
    return torch.tensor([list(codes)], device=module.device)


def snr_db(wave: np.ndarray, reference: np.ndarray) -> float:
    """Power of the reference over that of the difference."""
    noise = float(np.square(wave.astype(np.float64) - reference).sum())
    return 10 * math.log10(float(np.square(reference.astype(np.float64)).sum()) / max(noise, 1e-300))


def furthest(ours: Any, theirs: Any) -> float:
    """Largest absolute difference of two lists of tensors or arrays."""
    return max(float(abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def random_codes(seconds: float, seed: int) -> list[int]:
    """50 ids per second, all of them speakable."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 8194, (max(1, round(50 * seconds)),), generator=generator).tolist()
