"""Qwen3-Omni's decoder: a batch of unequal lengths against transformers' loop over utterances, and a long utterance in
pieces against its `chunked_decode`.

Random weights of transformers' own class. micro: the shape of the small model; published: that of Qwen3-Omni-30B-A3B
(minutes and gigabytes on two cores; --seconds less). `chunked_decode` loses 555 samples at every boundary and cuts
the transformer's window, so it is faster by what it leaves out, and its sound is another one: the row says by how much.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from talker_rl.micro.qwen3.sound import new_code2wav
from talker_rl.records.codec import Codec
from talker_rl.speech.qwen3_omni.code2wav import decode
from talker_rl.speech.qwen3_omni.codec import of_size
from talker_rl.speech.qwen3_omni.shapes import shipped_config

from ._measure import Row, compare, noted

SHAPES = ("micro", "published")
UTTERANCES, SHORTEST = 8, 2.0
"""Of the batch, and seconds of its shortest."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="micro")
    parser.add_argument("--longest", type=float, default=12.0, help="seconds of the batch's longest (default 12)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the long utterance (default 60)")


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """The batch; the long utterance against the whole, and against upstream's pieces."""
    model, codec = _model(args.shape, args.device)
    lengths = torch.linspace(SHORTEST, args.longest, 3 if args.quick else UTTERANCES).tolist()
    batch = [_codes(codec, seconds, i) for i, seconds in enumerate(lengths)]
    case = f"{args.shape}, {len(batch)} utterances of {lengths[0]:g} to {lengths[-1]:g} s"
    yield compare("code2wav", f"{case}; against transformers' loop", lambda: decode(model, batch, codec),
                  lambda: [_whole(model, codes, codec) for codes in batch], _apart, repeats=args.repeats)
    seconds = min(args.seconds, 30.0) if args.quick else args.seconds
    long = _codes(codec, seconds, 99)
    case = f"{args.shape}, {seconds:g} s in pieces"
    yield compare("code2wav", f"{case}; against transformers' whole", lambda: decode(model, [long], codec),
                  lambda: [_whole(model, long, codec)], _apart, repeats=args.repeats)
    row = compare("code2wav", f"{case}; against chunked_decode", lambda: decode(model, [long], codec),
                  lambda: [_chunked(model, long, codec)], repeats=args.repeats)
    exact, theirs = _whole(model, long, codec), _chunked(model, long, codec)
    first = int(300 / codec.rate * codec.sample_rate)  # upstream's chunk
    same = min(len(exact), len(theirs))
    behind = float(np.abs(exact[first:same] - theirs[first:same]).max()) if same > first else 0.0
    yield noted(row, f"its sound is {len(exact) - len(theirs)} samples short, and off by up to {behind:.2g} behind "
                     "the first boundary")


def _model(shape: str, device: str) -> tuple[Any, Codec]:
    torch.manual_seed(0)
    if shape == "micro":
        model = new_code2wav()
    else:
        from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

        model = Qwen3OmniMoeCode2Wav(shipped_config().code2wav_config).float()
    with torch.no_grad():
        for name, value in model.named_parameters():  # unit gain, so that differences are to be seen
            if value.ndim >= 2:
                value.normal_(0, (value[0].numel() if value.ndim == 2 else value.shape[1] * value.shape[2]) ** -0.5)
            elif name.endswith(("scale", "gamma")):
                value.fill_(1.0)
        model.code_embedding.weight.normal_()
        model.decoder[-1].conv.weight.mul_(0.01)
    config = model.config
    return model.to(device).eval(), of_size(config.num_quantizers, config.codebook_size)


def _codes(codec: Codec, seconds: float, seed: int) -> list[int]:
    frames = round(seconds * codec.rate)
    return np.random.default_rng(seed).integers(0, codec.sizes[0], frames * codec.groups).tolist()


@torch.no_grad()
def _whole(model: Any, codes: list[int], codec: Codec) -> np.ndarray:
    return model(_tensor(model, codes, codec))[0, 0].cpu().numpy()


@torch.no_grad()
def _chunked(model: Any, codes: list[int], codec: Codec) -> np.ndarray:
    return model.chunked_decode(_tensor(model, codes, codec))[0, 0].cpu().numpy()


def _tensor(model: Any, codes: list[int], codec: Codec) -> torch.Tensor:
    return torch.tensor(codes, device=model.code_embedding.weight.device).view(1, -1, codec.groups).transpose(1, 2)


def _apart(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
