"""A small trainable world for the trainer's tests: a random tiny Talker and pairs that differ in length and codes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from omni_factory import SPEAKERS, omni_config, random_conditionings, tiny_omni
from safetensors.torch import load_file
from said import said
from transformers import TrainerCallback

from talker_rl.records.pair import Pair, pair_id_of
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.qwen2_5_omni.checkpoint import Omni
from talker_rl.speech.qwen2_5_omni.generator import OmniGenerator
from talker_rl.train.config import TrainConfig

EOS = 8294


class StopAt(TrainerCallback):
    """Raises in the middle of training, as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def make_omni(seed: int = 0) -> Omni:
    """An `Omni` with only its Talker, in memory."""
    return Omni(
        settings=ModelConfig(path="tiny", device="cpu"),
        path=Path("tiny"),
        config=omni_config(),
        speakers={name: {} for name in SPEAKERS},
        device=torch.device("cpu"),
        hashes={"talker": f"tiny-{seed}"},
        talker=tiny_omni(seed).talker.float(),
        parts=("talker",),
    )


def make_generator(seed: int = 0) -> OmniGenerator:
    """The same as a generator."""
    return OmniGenerator(make_omni(seed))


def make_pairs(n: int, seed: int = 0, prompts: int | None = None) -> tuple[list[Pair], list[Any]]:
    """`n` pairs of `prompts` prompts (one each by default) with their conditionings."""
    rng = random.Random(seed)
    prompts = prompts or n
    conditionings = random_conditionings([(rng.randint(5, 9), rng.randint(2, 6)) for _ in range(prompts)], seed)
    pairs = []
    for i in range(n):
        prompt_id = conditionings[i % prompts].prompt_id
        chosen = [rng.randrange(64) for _ in range(rng.randint(4, 12))] + [EOS]
        cut = rng.random() < 0.2
        rejected = [rng.randrange(64) for _ in range(rng.randint(4, 12))] + ([] if cut else [EOS])
        pair_id = pair_id_of(prompt_id, chosen, rejected)
        pairs.append(
            Pair(prompt_id, pair_id, "stop go.", "Ann", f"{pair_id}-c", f"{pair_id}-r", said(chosen), said(rejected),
                 1.0, 0.0, 1.0)
        )  # fmt: skip
    return pairs, conditionings


def make_config(**changes: Any) -> TrainConfig:
    """Six steps of four pairs, a log line per step, a checkpoint every three."""
    args = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 3,
        "seed": 7,
        **changes.pop("args", {}),
    }
    lora = changes.pop("lora", {"r": 4, "lora_alpha": 8})
    return TrainConfig(args=args, lora=lora, **changes)


def losses(folder: Path, key: str = "loss") -> list[tuple[int, float]]:
    from talker_rl.train.callbacks import read_log

    return [(row["step"], row[key]) for row in read_log(folder / "log.jsonl") if key in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / "adapter_model.safetensors"
    return load_file(file if file.is_file() else folder / "model.safetensors")


def curve(folder: Path) -> list[dict[str, Any]]:
    """What was logged, but for the clock."""
    from talker_rl.train.callbacks import read_log

    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(folder / "log.jsonl")]


def apart(one: Path, two: Path) -> tuple[float, float]:
    """Largest relative difference of what was logged, and of a weight."""
    logs = [curve(folder) for folder in (one, two)]
    assert [[*row] for row in logs[0]] == [[*row] for row in logs[1]] and logs[0]
    # In the first window policy and reference are one, and which of two rewards is the larger is rounding's to say.
    for log in logs:
        log[0] = {name: value for name, value in log[0].items() if name not in ("rewards/accuracies",
                                                                               "length/reward_corr")}
    scale = {name: 100.0 for name in ("length/reward_corr", "eval_length/reward_corr")}  # of rewards of nearly 0
    logged = max(abs(a[k] - b[k]) / max(scale.get(k, 1.0), abs(a[k])) for a, b in zip(*logs, strict=True) for k in a)
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    return logged, max(float((a[k] - b[k]).abs().max()) for k in a)
