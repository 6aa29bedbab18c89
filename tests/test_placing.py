"""A Thinker in parts gives what it gives in one; a map that cannot be is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from qwen3_factory import tiny_qwen3, write_checkpoint

import talker_rl
from talker_rl.base.errors import ConfigError
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ConditioningConfig, ModelConfig
from talker_rl.speech.qwen2_5_omni.conditioning import text_model

CPU = torch.device("cpu")
ANSWER = ConditioningConfig(mode="generate", max_reply_tokens=4, max_reply_wer=None)


@pytest.fixture(scope="module", params=["qwen2_5_omni", "qwen3_omni"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if request.param == "qwen2_5_omni":
        return {"path": "micro", "device": "cpu"}
    return {"path": str(write_checkpoint(tmp_path_factory.mktemp("qwen3"), tiny_qwen3())), "device": "cpu",
            "system_prompt": ""}


def seen(generator: Any) -> list[torch.Tensor]:
    texts = ("red, two.", "blue.") if hasattr(generator, "model") else ("river garden.", "window, river.")
    prompts = [Prompt(text, speaker=speaker) for text, speaker in zip(texts, generator.speakers, strict=False)]
    return [value for cfg in (ConditioningConfig(), ANSWER) for one in generator.condition(prompts, cfg)
            for value in one.tensors().values()]


def layers_of(model: dict[str, Any]) -> str:
    module = thinker_of(talker_rl.load(ModelConfig(**model), parts=("conditioner",)))
    return next(name for name, _ in module.named_modules()
                if name.endswith("layers") and "audio" not in name and "visual" not in name)


def thinker_of(generator: Any) -> Any:
    return generator.omni.thinker if hasattr(generator, "omni") else generator.model.read_thinker()


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_by_a_map_and_waiting_in_memory_it_is_the_same(model: dict[str, Any]) -> None:
    plain = seen(talker_rl.load(ModelConfig(**model), parts=("conditioner",)))
    layer = f"{layers_of(model)}.0"
    mapped = {"": "cpu", layer: "cpu"}
    generator = talker_rl.load(ModelConfig(**model, thinker_device_map=mapped), parts=("conditioner",))
    assert same(seen(generator), plain)
    placed = thinker_of(generator).hf_device_map
    assert layer in placed and "lm_head" in placed and "" not in placed and layer.rpartition(".")[0] not in placed
    assert not [(a, b) for a in placed for b in placed if b.startswith(f"{a}.")]  # none inside another
    generator = talker_rl.load(ModelConfig(**model), parts=("conditioner",))
    cpu_offload(thinker_of(generator), execution_device=CPU)
    assert next(thinker_of(generator).parameters()).device.type == "meta"  # as where a GPU cannot hold all of it
    assert same(seen(generator), plain)


@pytest.mark.parametrize(("device_map", "told"), [
    ("auto", "none is there"), ({"thinker": "cpu"}, "no module 'thinker'"), ({"lm_head": "cpu"}, "no device is named"),
    ({"": "disk"}, "not read from the disk"), ({"": 7}, "no device 7"), ({"": "cuda:3"}, "no device 'cuda:3'"),
    ({"": -1}, "no device -1"), ({"": "gpu"}, "no device 'gpu'"), ({"": "meta"}, "no device 'meta'"),
    ({"": "0"}, "no device '0'"),
])
def test_a_map_that_cannot_be_is_told(model: dict[str, Any], device_map: Any, told: str) -> None:
    settings = ModelConfig(**model, thinker_device_map=device_map)
    with pytest.raises(ConfigError, match=told):
        thinker_of(talker_rl.load(settings, parts=("conditioner",)))


def test_what_ends_on_another_device_than_it_begins_is_brought_back() -> None:
    """There is no second GPU here: the norm's place is "meta", from where nothing can be copied, which says that it
    was tried; to add what lies on two devices raises something else."""
    generator: Any = talker_rl.load(ModelConfig(path="micro", device="cpu"), parts=("conditioner",))
    norm = text_model(generator.omni.thinker).norm.to("meta")
    norm.register_forward_pre_hook(lambda _, args: tuple(x.to("meta") for x in args))
    with pytest.raises(NotImplementedError, match="copy out of meta"):
        generator.condition([Prompt("red, two.", speaker=generator.speakers[0])], ConditioningConfig())


def test_a_talker_needs_none(model: dict[str, Any], tmp_path: Path) -> None:
    settings = ModelConfig(**model, thinker_device_map="auto")
    assert talker_rl.load(settings, parts=("talker",)).part("talker") is not None
