"""Rollouts against transformers' `generate`, with the same options, on the same conditionings.

`rollouts`, mid geometry: prompts x candidates of a fixed number of codes (every id that ends speech is suppressed on
both sides). Baselines: one `generate` call a prompt with num_return_sequences, and one left-padded call over all rows.
The micro model: candidates end where they end, so rows of a call wait for its longest.

Both draw from their own noise, so codes differ; that the distributions are equal is what tests show.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from talker_rl.data.records import NUM_CODES
from talker_rl.omni.conditioning import Conditioning, compute_conditioning
from talker_rl.omni.config import ModelConfig, SamplingConfig
from talker_rl.omni.rollouts import sample_candidates

from ._measure import Row, compare
from ._upstream import generate
from .geometry import mid_talker

MICRO_CODES = 400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=8, help="of each prompt")
    parser.add_argument("--codes", type=int, default=256, help="of each candidate, mid geometry")
    parser.add_argument("--micro-prompts", type=int, default=24)


def rows(args: argparse.Namespace) -> list[Row]:
    codes = 16 if args.quick else args.codes
    talker, n = mid_talker(), args.candidates
    conditionings = random_conditionings(args.prompts, talker.config.embedding_size)
    silent = sorted({talker.codec_pad_token, talker.codec_eos_token, *range(NUM_CODES, 8448)})
    sampling = SamplingConfig(max_new_tokens=codes, suppress_tokens=silent)
    size = f"{args.prompts} prompts x {n}, {codes} codes"
    found = [
        _row(f"mid, {size}, against a generate call a prompt", talker, conditionings, n, sampling, 1, args),
        _row(f"mid, {size}, against one generate call", talker, conditionings, n, sampling, args.prompts, args),
    ]
    count = 4 if args.quick else args.micro_prompts
    talker, conditionings = micro(count)
    sampling = SamplingConfig(max_new_tokens=64 if args.quick else MICRO_CODES)
    calls = min(8, count)
    size = f"micro, {count} prompts x {n}, unequal ends"
    return [
        *found,
        _row(f"{size}, against a generate call a prompt", talker, conditionings, n, sampling, 1, args),
        _row(f"{size}, against a call for {calls} prompts", talker, conditionings, n, sampling, calls, args),
    ]


def _row(
    case: str,
    talker: Any,
    conditionings: Sequence[Conditioning],
    candidates: int,
    sampling: SamplingConfig,
    prompts_a_call: int,
    args: argparse.Namespace,
) -> Row:
    seeds = [[1000 * i + k for k in range(candidates)] for i in range(len(conditionings))]
    return compare(
        "rollouts",
        case,
        lambda: sample_candidates(talker, conditionings, seeds, sampling),
        lambda: theirs(talker, conditionings, candidates, sampling, prompts_a_call),
        repeats=args.repeats,
    )


def random_conditionings(count: int, width: int) -> list[Conditioning]:
    """Prefixes of 40 to 60 positions and replies of 20 to 40, as of a sentence or two."""
    generator = torch.Generator().manual_seed(0)
    lengths = [(40 + 20 * i // max(1, count - 1), 20 + 20 * i // max(1, count - 1)) for i in range(count)]
    return [
        Conditioning(
            f"p{i}", torch.randn(p, width, generator=generator), torch.randn(r, width, generator=generator), "A"
        )
        for i, (p, r) in enumerate(lengths)
    ]


def micro(count: int) -> tuple[Any, list[Conditioning]]:
    """The shipped Talker and conditionings of its train prompts."""
    from talker_rl.data.prompts import read_prompts
    from talker_rl.omni.checkpoint import load_omni

    omni = load_omni(ModelConfig(path="micro", device="cpu"))
    prompts = read_prompts("micro:train").prompts
    step = max(1, len(prompts) // count)
    return omni.talker, compute_conditioning(omni, prompts[::step][:count])


def theirs(
    talker: Any, conditionings: Sequence[Conditioning], candidates: int, sampling: SamplingConfig, prompts_a_call: int
) -> list[torch.Tensor]:
    """The same by transformers, in calls of so many prompts: ids (rows, steps) of each call."""
    torch.manual_seed(0)
    options = sampling.model_dump(exclude_none=True)
    options["suppress_tokens"] = sorted({talker.codec_bos_token, *options.get("suppress_tokens", [])})
    out = []
    for start in range(0, len(conditionings), prompts_a_call):
        chunk = conditionings[start : start + prompts_a_call]
        sequences, begin = generate(talker, chunk, num_return_sequences=candidates, **options)
        out.append(sequences[:, begin:])
    return out
