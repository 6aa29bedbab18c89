"""What each stage really takes: run as a script, it prints measured and forecast peaks as JSON.

    python tests/memory_probe.py '{"model": "micro", "sampling": [64, 96], "decoding": [8, 120], "training": [8, 120],
                                   "conditioning": 32}'

Measured is the high-water mark of resident memory (VmHWM, reset before each stage) above the interpreter with its
libraries, once the weights are loaded: while they are read, the pages of the files count as resident as well, and the
system takes those back as it pleases. ``sampling``: [rows, codes]; ``decoding``: [utterances, codes]; ``training``:
[pairs, codes]; ``conditioning``: prompts.
"""

from __future__ import annotations

import ctypes
import gc
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from talker_rl.config import RunConfig
from talker_rl.data.pairs import pair_id_of
from talker_rl.data.records import Pair, Prompt
from talker_rl.omni.checkpoint import Omni, load_omni
from talker_rl.omni.conditioning import Conditioning, compute_conditioning
from talker_rl.omni.rollouts import sample_candidates
from talker_rl.omni.token2wav import decode
from talker_rl.planning import memory
from talker_rl.planning.cost import Lengths
from talker_rl.planning.geometry import read_geometry
from talker_rl.train.run import train_variant

PREFIX, REPLY = 60, 20


def resident(key: str) -> int:
    """VmRSS or VmHWM, bytes."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key)]
    return int(line.split()[1]) * 1024


def settle() -> int:
    """Give back what is free, forget the high-water mark; returns what is resident now."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def warm_up() -> None:
    """The first product, attention and backward pass load libraries and make their thread's buffers."""
    x = torch.randn(1, 2, 64, 64, requires_grad=True)
    y = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True) @ torch.randn(64, 64)
    torch.nn.functional.conv1d(y[0], torch.randn(4, 64, 3)).sum().backward()


def conditionings(count: int, width: int) -> list[Conditioning]:
    return [Conditioning(f"p{i}", torch.randn(PREFIX, width), torch.randn(REPLY, width), "f1") for i in range(count)]


def pairs_of(count: int, codes: int) -> list[Pair]:
    rng = random.Random(0)
    found = []
    for i in range(count):
        chosen, rejected = ([rng.randrange(8000) for _ in range(codes - 1)] + [8294] for _ in range(2))
        found.append(Pair(f"p{i}", pair_id_of(f"p{i}", chosen, rejected), "", "f1", f"{i}c", f"{i}r", chosen, rejected,
                          1.0, 0.0, 1.0, codes / 50, codes / 50))
    return found


def measure(load: Callable[[], Any], work: Callable[[Any], Any]) -> dict[str, float]:
    """Resident above the baseline: after loading, and at the peak of the work."""
    base = settle()
    loaded = load()
    weights = settle() - base
    work(loaded)
    found = {"loaded": weights, "measured": resident("VmHWM") - base}
    print(found, file=sys.stderr, flush=True)
    return found


def main(options: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warm_up()
    config = RunConfig.model_validate({
        "model": {"path": options["model"], "device": "cpu", "dtype": options.get("dtype", "float32")},
        "token2wav": {"num_steps": 2, "guidance_scale": 0.5},
        "train": {"args": {"max_steps": 2, "logging_steps": 1}, "lora": options.get("lora", {"r": 16})},
    })  # fmt: skip
    geo = read_geometry(config.model.path)
    width = geo.embedding
    out: dict[str, Any] = {"parameters": geo.parameters}

    def load(*parts: str) -> Callable[[], Omni]:
        return lambda: load_omni(config.model, parts=parts)

    if "sampling" in options:
        rows, codes = options["sampling"]
        sampling = config.rollouts.sampling.model_copy(update={"max_new_tokens": codes, "min_new_tokens": codes})
        given = conditionings(max(1, rows // 4), width)
        out["rollouts"] = measure(load("talker", "token2wav"), lambda omni: sample_candidates(
            omni.talker, given, [[4 * i + k for k in range(4)] for i in range(len(given))], sampling, batch_size=rows))
        out["rollouts"]["forecast"] = memory.sampling(geo, config, Lengths(codes, PREFIX, REPLY), rows, codes)
    if "decoding" in options:
        count, codes = options["decoding"]
        config.token2wav.batch_size = count
        said = [[7] * (codes - 1)] * count
        out["scores"] = measure(load("talker", "token2wav"), lambda omni: decode(
            omni.token2wav, said, [next(iter(omni.speakers.values()))] * count, list(range(count)), config.token2wav))
        out["scores"]["forecast"] = memory.decoding(geo, config, Lengths(codes, PREFIX, REPLY), True)
    if "training" in options:
        count, codes = options["training"]
        cfg = config.train["default"]
        cfg.args["per_device_train_batch_size"] = count
        given = conditionings(2 * count, width)
        with tempfile.TemporaryDirectory() as folder:
            out["training"] = measure(load("talker"), lambda omni: train_variant(
                omni, pairs_of(2 * count, codes), given, cfg, folder, progress=False))
        out["training"]["forecast"] = memory.training(geo, config, cfg, Lengths(codes, PREFIX, REPLY))
    if "conditioning" in options:
        config.conditioning.batch_size = options["conditioning"]
        words = (Path(__file__).parents[1] / "talker_rl/micro/checkpoint/omni/words.txt").read_text().split()
        text = " ".join(words[i % len(words)] for i in range(options.get("words", 12)))
        made: list[Conditioning] = []

        def condition(omni: Omni) -> None:
            speaker = next(iter(omni.speakers))
            prompts = [Prompt(f"{text} {words[i % len(words)]}.", speaker, prompt_id=str(i))
                       for i in range(config.conditioning.batch_size)]
            made.extend(compute_conditioning(omni, prompts, config.conditioning))

        out["conditioning"] = measure(load("thinker"), condition)
        at = Lengths(1, len(made[0].prefix), len(made[0].reply_stream))
        out["conditioning"]["forecast"] = memory.conditioning(geo, config, at)
        out["conditioning"]["positions"] = at.prefix + at.reply
    return out


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
