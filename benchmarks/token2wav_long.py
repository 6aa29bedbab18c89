"""One layer, one forward of the DiT over a long utterance, with guidance: against transformers' dense attention."""

from __future__ import annotations

import argparse

import torch

from talker_rl.speech.config import Token2WavConfig
from talker_rl.speech.qwen2_5_omni.flow import network, sample_mels
from talker_rl.speech.qwen2_5_omni.token2wav import products

from ._limits import counted, decoding, share
from ._measure import Row, compare, noted
from ._upstream import furthest, random_codes
from .geometry import Models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0)


def rows(args: argparse.Namespace) -> list[Row]:
    """Both sides take one step of Euler's rule, which is one forward."""
    models = Models.of(args)
    seconds = min(args.seconds, 30.0) if args.quick else args.seconds
    token2wav, speaker = models.token2wav(1), models.speaker()
    dit, codes = token2wav.code2wav_dit_model, random_codes(seconds, 0)
    (noise,) = models.noise([codes], dit.mel_dim)
    ids, zero = torch.tensor([codes], device=models.device), torch.tensor(0.0, device=models.device)
    cfg = Token2WavConfig(num_steps=2, solver="euler")

    def ours() -> torch.Tensor:
        with torch.no_grad(), products(cfg, models.device):
            return sample_mels(*network(dit, cfg), [codes], [speaker], [noise])[0]

    def theirs() -> torch.Tensor:
        with torch.no_grad(), products(cfg, models.device):
            plain, null = dit(
                hidden_states=noise[None], condition_vector=speaker["ref_mel"], quantized_code=ids,
                speaker_embedding=speaker["cond"][:, None].expand(1, len(noise), -1), time_step=zero,
            )  # fmt: skip
            return noise + plain + (plain - null) * cfg.guidance_scale

    case = f"{seconds:g} s, one layer that looks back and ahead, one forward; against transformers'"
    row = compare("token2wav_long", case, ours, theirs, lambda a, b: furthest([a], [b]), repeats=args.repeats)
    works = decoding(counted(token2wav=token2wav), [codes], cfg)[:1]
    return [noted(row, share(works, row.ours_s, models.device))]
