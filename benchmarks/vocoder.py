"""BigVGAN of the real geometry, and of the micro model, as decoding calls it, against transformers' module one by one.

Decoding calls it one by one as well on a CPU, so the ratio is 1 there; on a GPU utterances share a padded forward.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from talker_rl.omni.checkpoint import load_omni
from talker_rl.omni.config import ModelConfig
from talker_rl.omni.vocoder import vocode

from ._measure import Row, compare
from ._upstream import furthest, snr_db
from .geometry import real_width_token2wav


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--utterances", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0, help="of the longest; the shortest has half")


def rows(args: argparse.Namespace) -> list[Row]:
    """One row a vocoder."""
    real = real_width_token2wav(layers=1).code2wav_bigvgan_model
    micro = load_omni(ModelConfig(path="micro", device="cpu"), parts=("token2wav",)).token2wav.code2wav_bigvgan_model
    count, seconds = (2, 0.8) if args.quick else (args.utterances, args.seconds)
    return [_row(args, "real geometry", real, count, seconds),
            _row(args, "micro model", micro, args.utterances, 2 * args.seconds)]


def _row(args: argparse.Namespace, which: str, vocoder: Any, count: int, seconds: float) -> Row:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(50 * seconds, 100 * seconds, count).round().int().tolist()
    mels = [torch.randn(n, 80, generator=generator) - 4 for n in lengths]

    def theirs() -> list[torch.Tensor]:
        with torch.no_grad():
            return [vocoder(m.T[None]) for m in mels]

    snr = min(snr_db(a.numpy(), b.numpy()) for a, b in zip(vocode(vocoder, mels), theirs(), strict=True))
    case = (f"{which}, {count} of {lengths[0] / 100:g} to {lengths[-1] / 100:g} s, wave SNR {snr:.0f} dB; "
            "against transformers' module")
    return compare("vocoder", case, lambda: vocode(vocoder, mels), theirs, furthest, repeats=args.repeats)
