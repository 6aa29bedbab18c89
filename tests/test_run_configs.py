"""configs/runs/: eight configurations of the published models, each runs alone, and they differ where they say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from talker_rl import cli
from talker_rl.base.errors import ConfigError
from talker_rl.config import RunConfig, load_config

RUNS = Path(__file__).resolve().parents[1] / "configs" / "runs"
TRAININGS = ("dpo", "ld_dpo", "sft", "speakers")
BY_SIZE = ("name", "model.path", "model.adapter", "conditioning.batch_size", "rollouts.batch_size",
           "per_device_train_batch_size", "gradient_accumulation_steps")


def load(size: str, training: str) -> RunConfig:
    return load_config([RUNS / f"qwen2.5-omni-{size}-{training}.yaml"])


@pytest.mark.parametrize("size", ["7b", "3b"])
@pytest.mark.parametrize("training", TRAININGS)
def test_each_is_what_its_name_says(size: str, training: str) -> None:
    config = load(size, training)
    assert config.name == f"qwen2.5-omni-{size}-{training}" and config.model.path == f"Qwen/Qwen2.5-Omni-{size.upper()}"
    assert list(config.variants) == [training] and config.model.dtype == "bfloat16"
    variant = config.variants[training]
    assert variant.lora is not None and variant.args["bf16"]
    types = {term["loss"]["type"] for term in variant.loss.get("terms", [])} or {variant.loss["type"]}
    assert types == {"dpo": {"dpo"}, "ld_dpo": {"ld_dpo", "sft"}}.get(training, {"sft"})
    assert (variant.data == "best_of_n") == (training in ("sft", "speakers"))
    assert config.model.adapter == (f"runs/qwen2.5-omni-{size}-dpo" if training == "speakers" else None)
    assert config.reward.recognizer.path == "SenseVoiceSmall"  # and evaluators that reward nothing
    judges = {lang: config.reward.evaluator.for_lang(lang).path for lang in ("zh", "en")}
    assert judges == {"zh": "paraformer-zh", "en": "whisper-large-v3"}  # as seed-tts-eval has them


@pytest.mark.parametrize("training", TRAININGS)
def test_the_sizes_differ_in_nothing_else(training: str) -> None:
    """What a step of training sees is the same; only how it is divided differs."""
    def flat(data: Any, path: str = "") -> dict[str, Any]:
        if not isinstance(data, dict):
            return {path: data}
        parts = [flat(value, f"{path}.{name}" if path else name) for name, value in data.items()]
        return {key: value for part in parts for key, value in part.items()}

    large, small = (flat(load(size, training).resolved()) for size in ("7b", "3b"))
    assert large.keys() == small.keys()
    differing = [key for key in large if large[key] != small[key]]
    assert all(key.endswith(BY_SIZE) for key in differing) and "model.path" in differing
    for config in (large, small):
        args = "train.args"
        assert config[f"{args}.per_device_train_batch_size"] * config[f"{args}.gradient_accumulation_steps"] == 32


@pytest.mark.parametrize("size", ["7b", "3b"])
def test_plan_forecasts_them_on_the_published_geometry(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    for training in ("dpo", "speakers"):
        assert cli.main(["plan", "-c", str(RUNS / f"qwen2.5-omni-{size}-{training}.yaml"), "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["geometry"] == f"qwen2.5-omni-{size}"
        assert {"rollouts", "scores", "training", "evaluation"} <= {stage["stage"] for stage in plan["stages"]}
        assert max(stage["memory_bytes"] for stage in plan["stages"]) < 40 << 30  # one GPU of 40 GB or more


def test_the_readmes_own_file_is_a_configuration(tmp_path: Path) -> None:
    root = RUNS.parents[1]
    block = (root / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "my.yaml").write_text(block)
    config = load_config([tmp_path / "my.yaml"])
    assert (config.name, list(config.variants), config.prompts.eval) == ("my-7b", ["dpo"], "texts/eval.txt")


def test_a_file_extends_others(tmp_path: Path) -> None:
    folder = tmp_path / "sizes"
    folder.mkdir()
    (tmp_path / "common.yaml").write_text("seed: 3\npairs: {margin: 0.2, max_pairs_per_prompt: 3}\n")
    (folder / "middle.yaml").write_text("extends: ../common.yaml\npairs: {margin: 0.3}\n")
    (folder / "last.yaml").write_text("extends: [middle.yaml]\nseed: 4\n")
    config = load_config([folder / "last.yaml"])
    assert (config.seed, config.pairs.margin, config.pairs.max_pairs_per_prompt) == (4, 0.3, 3)
    (tmp_path / "common.yaml").write_text("extends: sizes/last.yaml\n")
    for name, text, message in (("last.yaml", None, "extends itself"), ("bad.yaml", "extends: {a: 1}", "list of files"),
                                ("lost.yaml", "extends: commn.yaml", "no such configuration file")):
        if text:
            (folder / name).write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config([folder / name])
