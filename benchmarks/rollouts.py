"""Rollouts against transformers' `generate`, with the same options, on the same conditionings.

`rollouts`: prompts x candidates of a fixed number of codes (every id that ends speech is suppressed on
both sides). Baselines: one `generate` call a prompt with num_return_sequences, and one left-padded call over all rows.
The micro model: candidates end where they end, so rows of a call wait for its longest.

Other geometries than mid leave the micro model out; on a GPU a row tells what CUDA graphs give.

Both draw from their own noise, so codes differ; that the distributions are equal is what tests show.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from talker_rl.speech.config import ModelConfig, SamplingConfig
from talker_rl.speech.qwen2_5_omni.codec import CODEC
from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning, compute_conditioning
from talker_rl.speech.qwen2_5_omni.rollouts import sample_candidates

from ._limits import counted, goal, rollouts, share
from ._measure import Row, compare, noted
from ._upstream import generate
from .geometry import Models

MICRO_CODES = 400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=8, help="of each prompt")
    parser.add_argument("--codes", type=int, default=256, help="of each candidate")
    parser.add_argument("--micro-prompts", type=int, default=24)


def rows(args: argparse.Namespace) -> Iterator[Row]:
    models, n = Models.of(args), args.candidates
    codes = 16 if args.quick else args.codes
    talker = models.talker()
    conditionings = random_conditionings(args.prompts, talker.config.embedding_size)
    silent = sorted({talker.codec_pad_token, talker.codec_eos_token, *range(CODEC.sizes[0], 8448)})
    sampling = SamplingConfig(max_new_tokens=codes, suppress_tokens=silent)
    size = f"{models.geometry}, {args.prompts} prompts x {n}, {codes} codes"
    works = rollouts(counted(talker=talker), conditionings, n, codes, models.dtype)

    def judged(row: Row, times: int | None = None) -> Row:
        met = "" if times is None else goal(f"{times} x", row.ratio >= times, models)
        return noted(row, share(works, row.ours_s, models.device), met)

    yield judged(_row(f"{size}, against a generate call a prompt", talker, conditionings, n, sampling, 1, args), 8)
    yield judged(_row(f"{size}, against one generate call", talker, conditionings, n, sampling, args.prompts, args))
    if models.device.type == "cuda":
        case, seeds = f"{size}, against ours without CUDA graphs", seeds_of(conditionings, n)
        ours, theirs = (partial(sample_candidates, talker, conditionings, seeds, sampling, cuda_graphs=graphs)
                        for graphs in (True, False))  # fmt: skip
        yield judged(compare("rollouts", case, ours, theirs, repeats=args.repeats))
    if models.mid:
        yield from micro_rows(args)


def micro_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Candidates that end where they end."""
    count, n = 4 if args.quick else args.micro_prompts, args.candidates
    talker, conditionings = micro(count, args.device)
    sampling = SamplingConfig(max_new_tokens=64 if args.quick else MICRO_CODES)
    calls = min(8, count)
    size = f"micro, {count} prompts x {n}, unequal ends"
    yield _row(f"{size}, against a generate call a prompt", talker, conditionings, n, sampling, 1, args)
    yield _row(f"{size}, against a call for {calls} prompts", talker, conditionings, n, sampling, calls, args)


def _row(
    case: str,
    talker: Any,
    conditionings: Sequence[Conditioning],
    candidates: int,
    sampling: SamplingConfig,
    prompts_a_call: int,
    args: argparse.Namespace,
) -> Row:
    seeds = seeds_of(conditionings, candidates)
    return compare(
        "rollouts",
        case,
        lambda: sample_candidates(talker, conditionings, seeds, sampling),
        lambda: theirs(talker, conditionings, candidates, sampling, prompts_a_call),
        repeats=args.repeats,
    )


def seeds_of(conditionings: Sequence[Conditioning], candidates: int) -> list[list[int]]:
    """A seed a candidate."""
    return [[1000 * i + k for k in range(candidates)] for i in range(len(conditionings))]


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


def micro(count: int, device: str) -> tuple[Any, list[Conditioning]]:
    """The shipped Talker and conditionings of its train prompts."""
    from talker_rl.data.prompts import read_prompts
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni

    omni = load_omni(ModelConfig(path="micro", device=device))
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
