"""The DiT, exact: a batch of unequal lengths against transformers' loop over utterances (`sample`, one by one).

Same weights, noise and settings. The first row is measured at the real width with few layers and evaluations. The
second is what all layers and evaluations cost, projected from it: what a layer costs, from runs with and without
layers, times their number. FLOPs are counted (linear layers and attention), and the floor is what this machine's matrix
products would need for those of the linear layers alone.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch

from talker_rl.omni.config import Token2WavConfig
from talker_rl.omni.flow import network, sample_mels
from talker_rl.omni.streaming import stream
from talker_rl.omni.token2wav import decode, utterance_noise
from talker_rl.planning.geometry import read_geometry

from ._measure import Row, compare, peak_of, say, seconds_of
from ._upstream import furthest, random_codes, snr_db, upstream_mel, upstream_wave
from .geometry import random_speaker, real_width_token2wav


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="time points (default 2: one step, four evaluations)")
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--shortest", type=float, default=2.0, help="seconds")
    parser.add_argument("--longest", type=float, default=12.0, help="seconds")


def rows(args: argparse.Namespace) -> list[Row]:
    """The DiT, its projection to the whole model, and the exactness of the sound."""
    count = 3 if args.quick else args.utterances
    longest = min(args.longest, 5.0) if args.quick else args.longest
    token2wav = real_width_token2wav(layers=args.layers)
    dit, speaker = token2wav.code2wav_dit_model, random_speaker()
    lengths = torch.linspace(args.shortest, longest, count).tolist()
    codes = [random_codes(s + 0.02, i) for i, s in enumerate(lengths)]  # no multiple of a block
    noise = [utterance_noise(i, 2 * len(c), dit.mel_dim) for i, c in enumerate(codes)]
    cfg = Token2WavConfig(num_steps=args.steps)

    def ours() -> list[torch.Tensor]:
        with torch.no_grad():
            return sample_mels(*network(dit, cfg), codes, [speaker] * count, noise)

    def theirs() -> list[torch.Tensor]:
        return [upstream_mel(dit, c, speaker, n, num_steps=args.steps) for c, n in zip(codes, noise, strict=True)]

    case = (f"DiT alone, {count} utterances of {lengths[0]:g} to {lengths[-1]:g} s, {args.layers} layers, "
            f"{cfg.passes // 2} forwards; against transformers' loop")
    row = compare("token2wav", case, ours, theirs, furthest, repeats=args.repeats)
    with without_layers(dit):
        bare = [min(seconds_of(call) for _ in range(2)) for call in (ours, theirs)]
    frames = sum(len(n) for n in noise)
    return [row, projected(row, bare, args, frames), sounds(token2wav, codes[0][:50], speaker, cfg),
            packets(token2wav, 2.0 if args.quick else 10.0), growth(token2wav, 1.0 if args.quick else 4.0)]


@contextlib.contextmanager
def without_layers(dit: Any) -> Iterator[None]:
    """The DiT without its transformer blocks."""
    blocks, dit.transformer_blocks = dit.transformer_blocks, torch.nn.ModuleList()
    try:
        yield
    finally:
        dit.transformer_blocks = blocks


def projected(row: Row, bare: list[float], args: argparse.Namespace, frames: int) -> Row:
    """All layers and evaluations, from seconds with ``args.layers`` and with none (ours, theirs)."""
    dit = read_geometry("qwen2.5-omni-7b").dit
    evaluations = Token2WavConfig().passes // 2
    share = evaluations / (4 * (args.steps - 1))
    ours, theirs = (
        share * (none + dit.layers * (some - none) / args.layers)
        for some, none in zip((row.ours_s, row.theirs_s), bare, strict=True)
    )
    rows = 2 * evaluations * frames
    linear, attention = rows * 2 * dit.weights, rows * 4 * dit.width * dit.keys
    rate = product_rate(dit.width)
    floor = linear / rate
    case = (f"projected: {dit.layers} layers, {evaluations} forwards; {(linear + attention) / 1e12:.1f} TFLOP, "
            f"{linear / (linear + attention):.1%} of it linear layers: floor {floor:.0f} s at {rate / 1e9:.0f} "
            f"GFLOP/s; ours {ours / floor:.2f} x floor, transformers {theirs / floor:.2f} x")
    return Row("token2wav", case, ours, theirs, theirs / ours, math.nan, math.nan, None, 0)


def product_rate(width: int) -> float:
    """FLOP/s of products of the DiT's size."""
    a, b = torch.randn(1536, width), torch.randn(width, width)
    best = min(seconds_of(lambda: [a @ b for _ in range(8)]) for _ in range(5))
    return 8 * 2 * a.shape[0] * width**2 / best


def sounds(token2wav: Any, codes: list[int], speaker: dict[str, Any], cfg: Token2WavConfig) -> Row:
    """DiT and vocoder together, one utterance."""
    noise = utterance_noise(0, 2 * len(codes), 80)

    def ours() -> Any:
        return decode(token2wav, [codes], [speaker], [0], cfg)[0]

    def theirs() -> Any:
        return upstream_wave(token2wav, codes, speaker, noise, num_steps=cfg.num_steps)

    (mine, my_peak), (other, other_peak) = peak_of(ours), peak_of(theirs)
    seconds, their_seconds = seconds_of(ours), seconds_of(theirs)
    case = f"DiT and vocoder, {len(codes) / 50:g} s: wave SNR {snr_db(mine, other):.0f} dB; against transformers"
    return Row("token2wav", case, seconds, their_seconds, their_seconds / seconds, my_peak, other_peak,
               furthest([mine], [other]), 1)


def packets(token2wav: Any, seconds: float) -> Row:
    """The first packet of a stream against the whole decode (preset reward), in the columns ours and theirs."""
    codes, speaker, cfg = random_codes(seconds, 0), random_speaker(), Token2WavConfig(preset="reward")
    first: dict[str, Any] = {}

    def ours() -> None:
        first["packet"] = next(stream(token2wav, codes, speaker, 0, cfg, blocks=1))

    def whole() -> None:
        first["whole"] = decode(token2wav, [codes], [speaker], [0], cfg)[0]

    say("token2wav: stream")
    (_, my_peak), (_, other_peak) = peak_of(ours), peak_of(whole)
    mine, other = seconds_of(ours), seconds_of(whole)
    packet = first["packet"]
    gap = furthest([packet], [first["whole"][: len(packet)]])
    case = (f"first packet ({len(packet) / 24000:.2f} s) of a stream of {seconds:g} s, preset reward; "
            "against the whole decode")
    return Row("token2wav", case, mine, other, other / mine, my_peak, other_peak, gap, 1)


def growth(token2wav: Any, seconds: float) -> Row:
    """Most memory of a stream, and of one four times as long, in the columns ours and theirs: it must not grow."""
    speaker, cfg = random_speaker(), Token2WavConfig(preset="reward")

    def run(codes: list[int]) -> int:
        return sum(len(packet) for packet in stream(token2wav, codes, speaker, 0, cfg, blocks=1))

    say("token2wav: memory of streams")
    short, long = random_codes(seconds, 0), random_codes(4 * seconds, 0)
    run(short[:50])
    (_, short_peak), (_, long_peak) = peak_of(lambda: run(short)), peak_of(lambda: run(long))
    mine, other = seconds_of(lambda: run(short)), seconds_of(lambda: run(long))
    case = f"whole stream of {seconds:g} s, preset reward; beside one of {4 * seconds:g} s: memory must not grow"
    return Row("token2wav", case, mine, other, other / mine, short_peak, long_peak, None, 1)
