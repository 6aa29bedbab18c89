"""BigVGAN of the real geometry, and of the micro model, as decoding calls it, against transformers' module one by one.

Decoding calls it one by one as well on a CPU, so the ratio is 1 there; on a GPU utterances share a padded forward.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from talker_rl.speech.config import ModelConfig, Token2WavConfig
from talker_rl.speech.qwen2_5_omni.token2wav import products
from talker_rl.speech.qwen2_5_omni.vocoder import vocode

from ._limits import counted, decoding, share
from ._measure import Row, compare, noted
from ._upstream import furthest, snr_db
from .geometry import Models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--utterances", type=int, help="default: 4 of mid, 8 of the others")
    parser.add_argument("--seconds", type=float, help="of the longest; the shortest has half (default: 2 of mid, 12)")


def rows(args: argparse.Namespace) -> list[Row]:
    """One row a vocoder, and of one on a GPU another in TF32."""
    models = Models.of(args)
    count, seconds = args.utterances or (4 if models.mid else 8), args.seconds or (2.0 if models.mid else 12.0)
    small = (2, 0.8) if args.quick else (count, seconds)
    vocoders = [(f"{'real' if models.mid else models.geometry} geometry", models.token2wav(1), *small)]
    if models.mid:
        from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni

        micro = load_omni(ModelConfig(path="micro", device=args.device), parts=("token2wav",)).token2wav
        vocoders.append(("micro model", micro, count, 2 * seconds))
    points = {"float32": Token2WavConfig()}
    if models.device.type == "cuda":
        points["TF32"] = Token2WavConfig(tf32=True)
    return [_row(args, f"{which}, {precision}", token2wav, n, longest, cfg)
            for which, token2wav, n, longest in vocoders for precision, cfg in points.items()]


def _row(
    args: argparse.Namespace, which: str, token2wav: Any, count: int, seconds: float, cfg: Token2WavConfig
) -> Row:
    vocoder, device = token2wav.code2wav_bigvgan_model, torch.device(args.device)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(50 * seconds, 100 * seconds, count).round().int().tolist()
    mels = [(torch.randn(n, 80, generator=generator) - 4).to(device) for n in lengths]

    def ours() -> list[torch.Tensor]:
        with products(cfg, device):
            return [wave.cpu() for wave in vocode(vocoder, mels)]  # as upstream gives them

    def theirs() -> list[torch.Tensor]:
        with torch.no_grad(), products(cfg, device):
            return [vocoder(m.T[None]) for m in mels]

    snr = min(snr_db(a.numpy(), b.numpy()) for a, b in zip(ours(), theirs(), strict=True))
    case = (f"{which}, {count} of {lengths[0] / 100:g} to {lengths[-1] / 100:g} s, wave SNR {snr:.0f} dB; "
            "against transformers' module")
    row = compare("vocoder", case, ours, theirs, furthest, repeats=args.repeats)
    codes = [[0] * (n // 2) for n in lengths]
    return noted(row, share(decoding(counted(token2wav=token2wav), codes, cfg)[1:], row.ours_s, device))
