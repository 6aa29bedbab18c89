"""What each stage really takes: run as a script, it prints measured and forecast peaks as JSON.

    python tests/memory_probe.py '{"model": "micro", "sampling": [64, 64], "decoding": [8, 80], "training": [8, 80],
                                   "conditioning": 32}'

Measured is the high-water mark of resident memory (VmHWM, reset before each work) above the interpreter with its
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

from talker_rl import micro
from talker_rl.config import RunConfig
from talker_rl.data.pairs import pair_id_of
from talker_rl.data.records import Pair, Prompt
from talker_rl.omni.checkpoint import Omni, load_omni
from talker_rl.omni.conditioning import Conditioning, compute_conditioning
from talker_rl.omni.config import ConditioningConfig
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


def measure(load: Callable[[], Any], work: Callable[..., Any], small: Any, full: Any) -> dict[str, Any]:
    """Bytes: what loading left, and that with the peak of the work on top.

    The work is done on a ``small`` load first: kernels that are loaded, and buffers that libraries keep, are theirs.
    """
    before = settle()
    loaded = load()
    weights = settle() - before
    work(loaded, *small)
    base = settle()
    work(loaded, *full)
    return {"loaded": weights, "measured": weights + resident("VmHWM") - base}


class Probe:
    """The stages of one model."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.config = RunConfig.model_validate({
            "model": {"path": options["model"], "device": "cpu", "dtype": options.get("dtype", "float32")},
            "token2wav": {"num_steps": 2, "guidance_scale": 0.5},
            "train": {"args": {"max_steps": 2, "logging_steps": 1, **options.get("args", {})},
                      "lora": options.get("lora", {"r": 16})},
        })  # fmt: skip
        self.geo = read_geometry(self.config.model.path)

    def load(self, *parts: str) -> Callable[[], Omni]:
        return lambda: load_omni(self.config.model, parts=parts)

    def sample(self, omni: Omni, rows: int, codes: int) -> None:
        options = self.config.rollouts.sampling.model_copy(update={"max_new_tokens": codes, "min_new_tokens": codes})
        given = conditionings(max(1, rows // 4), self.geo.embedding)
        seeds = [[4 * i + k for k in range(4)] for i in range(len(given))]
        sample_candidates(omni.talker, given, seeds, options, batch_size=rows)

    def decode(self, omni: Omni, count: int, codes: int) -> None:
        speaker = next(iter(omni.speakers.values()))
        cfg = self.config.token2wav.model_copy(update={"batch_size": count})
        decode(omni.token2wav, [[7] * (codes - 1)] * count, [speaker] * count, list(range(count)), cfg)

    def train(self, omni: Omni, count: int, codes: int) -> None:
        cfg = self.config.train["default"].model_copy(deep=True)
        cfg.args["per_device_train_batch_size"] = count
        given = conditionings(2 * count, self.geo.embedding)
        with tempfile.TemporaryDirectory() as folder:
            train_variant(omni, pairs_of(2 * count, codes), given, cfg, folder, progress=False)

    def condition(self, omni: Omni, count: int) -> None:
        words = (Path(micro.checkpoint_dir()) / "omni" / "words.txt").read_text().split()
        speaker = next(iter(omni.speakers))
        prompts = [Prompt(f"{' '.join(words)} {words[i % 20]}.", speaker, prompt_id=str(i)) for i in range(count)]
        made = compute_conditioning(omni, prompts, ConditioningConfig(batch_size=count))
        self.positions = Lengths(1, len(made[0].prefix), len(made[0].reply_stream))

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        """Measured and forecast bytes of every stage that the options name."""
        geo, config, out = self.geo, self.config, {}
        if "sampling" in options:
            rows, codes = options["sampling"]
            found = measure(self.load("talker", "token2wav"), self.sample, (4, 4), (rows, codes))
            out["rollouts"] = found | {"forecast": memory.sampling(geo, config, lengths(codes), rows, codes)}
        if "decoding" in options:
            count, codes = options["decoding"]
            found = measure(self.load("talker", "token2wav"), self.decode, (1, 8), (count, codes))
            config.token2wav.batch_size = count
            out["scores"] = found | {"forecast": memory.decoding(geo, config, lengths(codes), True)}
        if "training" in options:
            count, codes = options["training"]
            found = measure(self.load("talker"), self.train, (1, 4), (count, codes))
            cfg = config.train["default"]
            cfg.args["per_device_train_batch_size"] = count
            out["training"] = found | {"forecast": memory.training(geo, config, cfg, lengths(codes))}
        if "conditioning" in options:
            count = options["conditioning"]
            found = measure(self.load("thinker"), self.condition, (1,), (count,))
            config.conditioning.batch_size = count
            out["conditioning"] = found | {"forecast": memory.conditioning(geo, config, self.positions)}
        return out


def lengths(codes: int) -> Lengths:
    return Lengths(codes, PREFIX, REPLY)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    asked = json.loads(sys.argv[1])
    print(json.dumps(Probe(asked).run(asked)))
