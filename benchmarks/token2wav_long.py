"""One layer, one forward of the DiT over a long utterance, with guidance: against transformers' dense attention."""

from __future__ import annotations

import argparse

import torch

from talker_rl.omni.config import Token2WavConfig
from talker_rl.omni.flow import network, sample_mels
from talker_rl.omni.token2wav import utterance_noise

from ._measure import Row, compare
from ._upstream import furthest, random_codes
from .geometry import random_speaker, real_width_token2wav


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0)


def rows(args: argparse.Namespace) -> list[Row]:
    """Both sides take one step of Euler's rule, which is one forward."""
    seconds = min(args.seconds, 30.0) if args.quick else args.seconds
    dit, speaker = real_width_token2wav(layers=1).code2wav_dit_model, random_speaker()
    codes = random_codes(seconds, 0)
    noise = utterance_noise(0, 2 * len(codes), dit.mel_dim)
    cfg = Token2WavConfig(num_steps=2, solver="euler")

    def ours() -> torch.Tensor:
        with torch.no_grad():
            return sample_mels(*network(dit, cfg), [codes], [speaker], [noise])[0]

    def theirs() -> torch.Tensor:
        with torch.no_grad():
            plain, null = dit(
                hidden_states=noise[None], condition_vector=speaker["ref_mel"], quantized_code=torch.tensor([codes]),
                speaker_embedding=speaker["cond"][:, None].expand(1, len(noise), -1), time_step=torch.tensor(0.0),
            )  # fmt: skip
            return noise + plain + (plain - null) * cfg.guidance_scale

    case = f"{seconds:g} s, one layer that looks back and ahead, one forward; against transformers'"
    return [compare("token2wav_long", case, ours, theirs, lambda a, b: furthest([a], [b]), repeats=args.repeats)]
