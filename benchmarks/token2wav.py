"""The DiT, exact: a batch of unequal lengths against transformers' loop over utterances (`sample`, one by one).

Same weights, noise and settings. Geometry mid: the first row is measured at the real width with few layers and
evaluations. The second is what all layers and evaluations cost, projected from it: what a layer costs, from runs with
and without layers, times their number. FLOPs are counted (linear layers and attention), and the floor is what this
machine's matrix products would need for those of the linear layers alone. Other geometries are measured whole, and in
other precisions than upstream's float32 as well; the difference is then that from ours in float32.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
from collections.abc import Iterator
from typing import Any

import torch

from talker_rl.speech.config import Token2WavConfig
from talker_rl.speech.qwen2_5_omni.flow import network, sample_mels
from talker_rl.speech.qwen2_5_omni.streaming import stream
from talker_rl.speech.qwen2_5_omni.token2wav import decode, products, utterance_noise
from talker_rl.speech.registry import read_geometry

from ._limits import counted, decoding, goal, share
from ._measure import Row, compare, noted, peak_of, say, seconds_of
from ._upstream import furthest, random_codes, snr_db, upstream_mel, upstream_wave
from .geometry import Models, random_speaker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, help="of the DiT (default: 2 of mid, all of the others)")
    parser.add_argument("--steps", type=int, help="time points (default: 2 of mid, which is one step of four forwards; "
                        "10 of the others)")  # fmt: skip
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--shortest", type=float, default=2.0, help="seconds")
    parser.add_argument("--longest", type=float, default=12.0, help="seconds")


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """The DiT; where that is not all of it, its projection to the whole model; the sound; a stream's first packet."""
    models = Models.of(args)
    count = 3 if args.quick else args.utterances
    longest = min(args.longest, 5.0) if args.quick else args.longest
    token2wav = models.token2wav(args.layers)
    dit, speaker = token2wav.code2wav_dit_model, models.speaker()
    lengths = torch.linspace(args.shortest, longest, count).tolist()
    codes = [random_codes(s + 0.02, i) for i, s in enumerate(lengths)]  # no multiple of a block
    noise = models.noise(codes, dit.mel_dim)
    cfg = Token2WavConfig(num_steps=args.steps or (2 if models.mid else 10), batch_size=count)

    def ours(cfg: Token2WavConfig = cfg) -> list[torch.Tensor]:
        with torch.no_grad(), products(cfg, models.device):
            return sample_mels(*network(dit, cfg), codes, [speaker] * count, noise)

    def theirs() -> list[torch.Tensor]:
        with products(cfg, models.device):
            return [upstream_mel(dit, c, speaker, n, num_steps=cfg.num_steps)
                    for c, n in zip(codes, noise, strict=True)]

    case = (f"DiT alone, {count} utterances of {lengths[0]:g} to {lengths[-1]:g} s, {len(dit.transformer_blocks)} "
            f"layers, {cfg.passes // 2} forwards; against transformers' loop")
    row = compare("token2wav", case, ours, theirs, furthest, repeats=args.repeats)
    geo = counted(token2wav=token2wav)

    def counts(cfg: Token2WavConfig, seconds: float) -> str:
        return share(decoding(geo, codes, cfg)[:1], seconds, models.device)

    yield noted(row, counts(cfg, row.ours_s), goal("5 x", row.ratio >= 5, models))
    if models.mid:
        with without_layers(dit):
            bare = [min(seconds_of(call) for _ in range(2)) for call in (ours, theirs)]
        yield projected(row, bare, len(dit.transformer_blocks), cfg, sum(len(n) for n in noise))
    else:
        exact = ours()
        for name, options in POINTS.items():
            point = cfg.model_copy(update=options)
            gap = furthest(ours(point), exact)
            seconds = statistics.median(seconds_of(lambda point=point: ours(point)) for _ in range(args.repeats))
            case = f"the same, {name}, against transformers' in float32; {counts(point, seconds)}"
            yield Row("token2wav", case, seconds, row.theirs_s, row.theirs_s / seconds, math.nan, row.theirs_peak_mib,
                      gap, args.repeats)
    yield sounds(token2wav, codes[0][:50], speaker, cfg)
    yield packets(token2wav, 2.0 if args.quick else 10.0)
    yield growth(token2wav, speaker, 1.0 if args.quick else 4.0)


POINTS: dict[str, dict[str, Any]] = {"TF32 products": {"tf32": True}, "bfloat16": {"dtype": "bfloat16"}}
"""Other precisions than upstream's."""


@contextlib.contextmanager
def without_layers(dit: Any) -> Iterator[None]:
    """The DiT without its transformer blocks."""
    blocks, dit.transformer_blocks = dit.transformer_blocks, torch.nn.ModuleList()
    try:
        yield
    finally:
        dit.transformer_blocks = blocks


def projected(row: Row, bare: list[float], layers: int, cfg: Token2WavConfig, frames: int) -> Row:
    """All layers and evaluations, from seconds with ``layers`` and with none (ours, theirs)."""
    dit = read_geometry("qwen2.5-omni-7b").dit
    evaluations = Token2WavConfig().passes // 2
    times = evaluations / (cfg.passes // 2)
    ours, theirs = (
        times * (none + dit.layers * (some - none) / layers)
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
    noise = utterance_noise(0, 2 * len(codes), 80)  # which `decode` draws from seed 0

    def ours() -> Any:
        return decode(token2wav, [codes], [speaker], [0], cfg)[0]

    def theirs() -> Any:
        with products(cfg, token2wav.device):
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


def growth(token2wav: Any, speaker: dict[str, Any], seconds: float) -> Row:
    """Most memory of a stream, and of one four times as long, in the columns ours and theirs: it must not grow."""
    cfg = Token2WavConfig(preset="reward")

    def run(codes: list[int]) -> int:
        return sum(len(packet) for packet in stream(token2wav, codes, speaker, 0, cfg, blocks=1))

    say("token2wav: memory of streams")
    short, long = random_codes(seconds, 0), random_codes(4 * seconds, 0)
    run(short[:50])
    (_, short_peak), (_, long_peak) = peak_of(lambda: run(short)), peak_of(lambda: run(long))
    mine, other = seconds_of(lambda: run(short)), seconds_of(lambda: run(long))
    case = f"whole stream of {seconds:g} s, preset reward; beside one of {4 * seconds:g} s: memory must not grow"
    return Row("token2wav", case, mine, other, other / mine, short_peak, long_peak, None, 1)
