"""A whole run in seconds: a random tiny model in a checkpoint folder, prompts, and a configuration over both."""

from __future__ import annotations

import atexit
import random
import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from omni_factory import SPEAKERS, WORDS, write_checkpoint


def write_prompts(folder: Path, counts: dict[str, int], seed: int = 0) -> dict[str, str]:
    """Prompt files train.txt, dev.txt, eval.txt of distinct sentences."""
    rng = random.Random(seed)
    seen: set[str] = set()
    files = {}
    for name, count in counts.items():
        lines = []
        while len(lines) < count:
            words = rng.choices(WORDS, k=rng.randint(2, 4))
            text = f"{words[0]}, {' '.join(words[1:])}."
            if text not in seen:
                seen.add(text)
                lines.append(text)
        file = folder / f"{name}.txt"
        file.write_text("\n".join(lines) + "\n")
        files[name] = str(file)
    return files


@lru_cache(maxsize=1)
def _checkpoint() -> Path:
    """The tiny model, made once a test session."""
    kept = TemporaryDirectory()
    atexit.register(kept.cleanup)
    return write_checkpoint(Path(kept.name) / "omni")


def write_world(folder: Path, quick: bool = False, **overrides: Any) -> Path:
    """Model, prompts and ``config.yaml`` in a folder; returns the configuration file.

    Args:
        quick: fewer steps, checkpoints and utterances, for what does not hang on them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "omni"
    if not model.exists():
        shutil.copytree(_checkpoint(), model)
    config: dict[str, Any] = {
        "name": "tiny",
        "model": {"path": str(model), "device": "cpu", "instruction": "{text}", "system_prompt": ""},
        "prompts": {**write_prompts(folder, {"train": 8, "dev": 3, "eval": 4}), "speaker": next(iter(SPEAKERS))},
        "rollouts": {"num_candidates": 3, "batch_size": 6, "shard_size": 2,
                     "sampling": {"max_new_tokens": 24, "top_k": 0, "top_p": 1.0, "temperature": 1.0,
                                  "min_new_tokens": 4, "sequence_bias": [[[8294], 11.0]]}},
        "token2wav": {"num_steps": 2, "guidance_scale": 0.0, "batch_size": 4},
        "audio": {"keep": "none"},
        "reward": {
            "recognizer": {"type": "toy:recognizer", "path": "toy"},
            "evaluator": {"type": "toy:recognizer", "path": "toy", "silence_dbfs": -70.0},
            "weights": {"wer": 0.0, "pause": 0.0},
            "gates": [],
            "components": [{"name": "variety", "import_path": "toy:variety", "weight": 1.0}],
            "max_failure_rate": 1.0,
        },
        "pairs": {"margin": 0.01},
        "train": {
            "loss": {"type": "dpo", "beta": 0.1},
            "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
            "args": {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-3,
                     "per_device_train_batch_size": 2, "lr_scheduler_type": "constant"},
        },
        "checkpoint": {"num_candidates": 1},
        "eval": {"seeds": 2, "bootstrap_samples": 200, "extras": 0},
        "report": {"before_after": 2, "pairs": 2},
    }
    if quick:
        config["train"]["args"] |= {"max_steps": 2}
        config["checkpoint"]["tried"] = "last"
        config["eval"] |= {"seeds": 1, "bootstrap_samples": 100}
    for key, value in overrides.items():
        merge = isinstance(config.get(key), dict) and isinstance(value, dict)
        config[key] = {**config[key], **value} if merge else value
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file
