"""Codes to speech: transformers' DiT and BigVGAN, with noise from each utterance's own seed.

The same numbers as ``Qwen2_5OmniToken2WavModel.forward`` for the same noise, for any lengths in a batch. How the work
is done differs, see `omni.dit` and `omni.vocoder`. For sound as soon as there is some there is `omni.streaming`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from talker_rl.base.errors import DataError
from talker_rl.base.figures import count
from talker_rl.speech.config import Token2WavConfig
from talker_rl.speech.qwen2_5_omni.flow import network, sample_mels
from talker_rl.speech.qwen2_5_omni.vocoder import vocode

SAMPLE_RATE = 24_000


def utterance_noise(seed: int, frames: int, mel_dim: int) -> torch.Tensor:
    """The flow's start (frames, mel_dim): a function of the seed alone, drawn on the CPU."""
    return torch.randn(frames, mel_dim, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def decode(
    token2wav: Any,
    codes: Sequence[Sequence[int]],
    speakers: Sequence[dict[str, Any]],
    seeds: Sequence[int],
    cfg: Token2WavConfig | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Speech of every sequence of codes, in order: float32, 24 kHz, one array each.

    Args:
        token2wav: transformers' Qwen2_5OmniToken2WavModel.
        codes: ids below the DiT's table (8194), the stop excluded.
        speakers: entry of each utterance (``cond``, ``ref_mel``).
        seeds: of each utterance's noise; the batch around it does not matter.
        cfg: steps, solver, guidance, precision, batch size.
        progress: called with (done, total).

    Raises:
        DataError: an utterance without codes, with an invalid one, or longer than the DiT's positions.
    """
    cfg = cfg or Token2WavConfig()
    if not len(codes) == len(speakers) == len(seeds):
        raise DataError(f"{count(len(codes), 'utterance')}, {count(len(speakers), 'speaker')}, "
                        f"{count(len(seeds), 'seed')}")
    dit, vocoder = token2wav.code2wav_dit_model, token2wav.code2wav_bigvgan_model
    check_codes(dit, codes)
    out: list[np.ndarray] = [np.empty(0, np.float32)] * len(codes)
    order = sorted(range(len(codes)), key=lambda i: len(codes[i]))  # alike lengths share a batch
    done = 0
    with products(cfg, dit.proj_out.weight.device):
        net, schedule = network(dit, cfg)
        for start in range(0, len(order), cfg.batch_size):
            batch = order[start : start + cfg.batch_size]
            noise = [utterance_noise(seeds[i], len(codes[i]) * dit.repeats, dit.mel_dim) for i in batch]
            mels = sample_mels(net, schedule, [codes[i] for i in batch], [speakers[i] for i in batch], noise)
            for i, wave in zip(batch, vocode(vocoder, mels), strict=True):
                out[i] = wave.float().cpu().numpy()
            done += len(batch)
            if progress:
                progress(done, len(codes))
    return out


@contextlib.contextmanager
def products(cfg: Token2WavConfig, device: torch.device) -> Iterator[None]:
    """Matrix products and convolutions of a GPU in float32 proper, or in TF32 where the settings ask for it."""
    if device.type != "cuda":
        yield
        return
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "tf32" if cfg.tf32 else "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def check_codes(dit: Any, codes: Sequence[Sequence[int]]) -> None:
    """DataError on an utterance without codes, with an invalid one, or longer than the DiT's positions."""
    rows = dit.text_embed.codec_embed.num_embeddings
    longest = dit.config.max_position_embeddings // dit.repeats
    for i, sequence in enumerate(codes):
        if len(sequence) == 0:
            raise DataError("an utterance has no codes", where=f"utterance {i}", fix="score it as a failure instead")
        bad = [c for c in sequence if not 0 <= c < rows]
        if bad:
            raise DataError(
                f"invalid code {bad[0]}: the table has "
                f"{count(rows, 'row')}", where=f"utterance {i}", fix="strip stop ids first"
            )
        if len(sequence) > longest:
            raise DataError(f"{count(len(sequence), 'code')}, the DiT takes {longest}", where=f"utterance {i}")
