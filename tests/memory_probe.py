"""What each stage really takes: run as a script, it prints measured and forecast peaks as JSON.

    python tests/memory_probe.py '{"model": "micro", "sampling": [64, 64]}'

Measured are the bytes of the loaded weights and how far resident memory rose above them: its high-water mark (VmHWM,
reset before each work) over what was resident once they were loaded. A tiny model has warmed the libraries up. Resident
memory before loading is no base: loading finds room in what the warm-up left, and while files are read their pages
count as resident as well, which the system takes back as it pleases.

A stage a call: ``sampling``: [rows, codes]; ``decoding``: [utterances, codes]; ``training``: [pairs, codes];
``conditioning``: [prompts].
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
from omni_factory import EMBED, random_conditionings, speakers, tiny_omni
from said import said
from train_helpers import make_config, make_generator, make_pairs

from talker_rl import micro
from talker_rl.config import RunConfig
from talker_rl.planning import memory
from talker_rl.planning.cost import Lengths
from talker_rl.records.pair import Pair, pair_id_of
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ConditioningConfig, ModelConfig, SamplingConfig
from talker_rl.speech.qwen2_5_omni.checkpoint import Omni, load_omni
from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning, compute_conditioning, text_model
from talker_rl.speech.qwen2_5_omni.generator import OmniGenerator
from talker_rl.speech.qwen2_5_omni.rollouts import sample_candidates
from talker_rl.speech.qwen2_5_omni.token2wav import decode
from talker_rl.speech.registry import read_geometry
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
        found.append(Pair(f"p{i}", pair_id_of(f"p{i}", chosen, rejected), "", "f1", f"{i}c", f"{i}r", said(chosen),
                          said(rejected), 1.0, 0.0, 1.0))
    return found


def measure(load: Callable[[], Omni], work: Callable[..., Any], *size: int) -> dict[str, Any]:
    """Bytes at the peak of the work, and of them the weights."""
    loaded = load()
    weights = 0
    for part in loaded.parts:
        for value in getattr(loaded, part).parameters():
            value.sum()  # stored in the wanted type they stay in the file till used
            weights += value.nbytes
    before = settle()
    work(loaded, *size)
    return {"loaded": weights, "measured": weights + resident("VmHWM") - before}


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
        cfg = self.config.variants["default"].model_copy(deep=True)
        cfg.args["per_device_train_batch_size"] = count
        given = conditionings(2 * count, self.geo.embedding)
        with tempfile.TemporaryDirectory() as folder:
            train_variant(OmniGenerator(omni), pairs_of(2 * count, codes), given, cfg, folder, progress=False)

    def condition(self, omni: Omni, count: int) -> None:
        words = (Path(micro.checkpoint_dir()) / "omni" / "words.txt").read_text().split()
        speaker = next(iter(omni.speakers))
        prompts = [Prompt(f"{' '.join(words)} {words[i % 20]}.", speaker, prompt_id=str(i)) for i in range(count)]
        made = compute_conditioning(omni, prompts, ConditioningConfig(batch_size=count))
        self.positions = Lengths(1, len(made[0].prefix), len(made[0].reply_stream))

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        """Measured and forecast bytes of the stage that the options name."""
        stages = {"sampling": self.rollouts, "decoding": self.scores, "training": self.training,
                  "conditioning": self.conditioning}
        load_omni(ModelConfig(path="micro", device="cpu"))  # what loading itself brings in is a library's
        (stage,) = stages.keys() & options.keys()  # one per process: none finds what another one left in the heap
        return {stage: stages[stage](*options[stage])}

    def rollouts(self, rows: int, codes: int) -> dict[str, Any]:
        sample_candidates(tiny_omni().talker, random_conditionings([(9, 3)]), [[0]], SamplingConfig(max_new_tokens=3))
        found = measure(self.load("talker", "token2wav"), self.sample, rows, codes)
        return found | {"forecast": memory.sampling(self.geo, self.config, lengths(codes), rows, codes, True)}

    def scores(self, count: int, codes: int) -> dict[str, Any]:
        decode(tiny_omni().token2wav, [[7] * 9], [speakers()["Ann"]], [0], self.config.token2wav)
        found = measure(self.load("talker", "token2wav"), self.decode, count, codes)
        self.config.token2wav.__dict__["batch_size"] = count
        return found | {"forecast": memory.decoding(self.geo, self.config, lengths(codes), True)}

    def training(self, count: int, codes: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            train_variant(make_generator(), *make_pairs(4), make_config(args={"max_steps": 2}), folder, progress=False)
        found = measure(self.load("talker"), self.train, count, codes)
        cfg = self.config.variants["default"]
        cfg.args["per_device_train_batch_size"] = count
        return found | {"forecast": memory.training(self.geo, self.config, cfg, lengths(codes), True)}

    def conditioning(self, count: int) -> dict[str, Any]:
        text_model(tiny_omni().thinker)(inputs_embeds=torch.zeros(1, 5, EMBED), use_cache=False)
        found = measure(self.load("thinker"), self.condition, count)
        self.config.conditioning.__dict__["batch_size"] = count
        at = vars(self.positions)
        return found | {"forecast": memory.conditioning(self.geo, self.config, self.positions, True), "lengths": at}


def lengths(codes: int) -> Lengths:
    return Lengths(codes, PREFIX, REPLY)


if __name__ == "__main__":
    memory.HEAP = memory.DECODING_HEAP = 1  # what is held; what a heap keeps of what is freed is luck
    torch.set_num_threads(1)
    torch.manual_seed(0)
    asked = json.loads(sys.argv[1])
    print(json.dumps(Probe(asked).run(asked)))
