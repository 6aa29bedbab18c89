"""`python -m benchmarks NAME [options]`: figures of one benchmark, or of `all` of those that compare speeds.

Each name's module has `main(argv) -> int`, or `add_arguments(parser)` and `rows(args)`, the Rows one by one.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

SPEED = {
    "token2wav": "benchmarks.token2wav",
    "token2wav_long": "benchmarks.token2wav_long",
    "token2wav_reward": "benchmarks.token2wav_reward",
    "vocoder": "benchmarks.vocoder",
    "code2wav": "benchmarks.code2wav",
    "rollouts": "benchmarks.rollouts",
    "train": "benchmarks.train",
    "train_precomputed": "benchmarks.train_precomputed",
    "train_long_context": "benchmarks.train_long_context",
    "score": "benchmarks.score",
    "online": "benchmarks.online",
    "freed_memory": "benchmarks.freed_memory",
}
"""Ours against upstream's way; `all` runs these in this order."""
MICRO = {"score", "online", "code2wav", "freed_memory"}
"""Of these the ones that measure one model whatever the geometry, trained micro ones and Qwen3-Omni's: not in `all` of
another geometry than mid."""
OTHER = {"service": "benchmarks.service", "driver_memory": "benchmarks.driver_memory"}


def main(argv: Sequence[str]) -> int:
    names = [*SPEED, *OTHER, "all"]
    if not argv or argv[0] not in names:
        print(f"usage: python -m benchmarks {{{','.join(names)}}} [--help]", file=sys.stderr)
        return 2
    name, *rest = argv
    from talker_rl.base.errors import TalkerRLError

    try:
        if name in OTHER:
            return int(import_module(OTHER[name]).main(rest))
        return compare_speeds(name, list(SPEED) if name == "all" else [name], rest)
    except TalkerRLError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def compare_speeds(prog: str, names: Sequence[str], argv: Sequence[str]) -> int:
    """Run benchmarks one after the other; print their table, write their rows."""
    import torch

    from talker_rl.base.places import check_writable_file

    from ._limits import ceilings
    from ._measure import say, table, write_json
    from .geometry import GEOMETRIES

    single = import_module(SPEED[names[0]]) if len(names) == 1 else None
    about = single.__doc__ if single else "All speed benchmarks."
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {prog}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each side (default 5)")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, two repeats: minutes in all")
    parser.add_argument("--threads", type=int, help="of torch (default: one per core)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu",
                        help="that both sides run on (default cpu); what speaks or recognizes with the micro model in "
                        "token2wav_reward, score and online stays on the CPU")  # fmt: skip
    about_geometries = "; ".join(f"{name}: {what}" for name, what in GEOMETRIES.items())
    parser.add_argument("--geometry", choices=GEOMETRIES, default="mid", help=f"{about_geometries} (default mid)")
    if single:
        single.add_arguments(parser)
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; run on a GPU machine, or with --device cpu")
    if args.json:
        check_writable_file(args.json)
    if args.quick:
        args.repeats = min(args.repeats, 2)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.geometry != "mid":
        names = [name for name in names if single or name not in MICRO]
        say(ceilings(torch.device(args.device)))
    rows, failed = [], []
    for name in names:
        module: Any = import_module(SPEED[name])
        own = args
        if not single:  # each with the defaults of its own options
            options = argparse.ArgumentParser(add_help=False)
            module.add_arguments(options)
            own = argparse.Namespace(**vars(args) | vars(options.parse_args([])))
        say(f"{name} ...")
        try:
            for row in module.rows(own):
                rows.append(row)
                if args.json:  # at once: time on a machine may end
                    write_json(rows, args.json)
        except Exception:
            if single:
                raise
            traceback.print_exc()
            failed.append(name)
    print(table(rows))
    if failed:
        say(f"failed, see above: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
