"""An adapter that stays on between two shards changes nothing but the time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import talker_rl
from talker_rl.base.errors import CheckpointError
from talker_rl.speech.adapter_check import PREFIX
from talker_rl.speech.config import LoraSettings, ModelConfig
from talker_rl.stages.worn import policy_with, take_off


@pytest.fixture(scope="module")
def generator() -> Any:
    return talker_rl.load(ModelConfig(path="micro", device="cpu"), parts=("talker",))


@pytest.fixture(scope="module")
def adapters(generator: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of the same settings, and one of another rank."""
    folders = []
    for i, rank in enumerate((4, 4, 2)):
        with generator.policy(train=LoraSettings(r=rank), seed=i) as policy:
            for name, value in policy.module.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(value.data, std=0.1, generator=torch.Generator().manual_seed(i))
            folders.append(tmp_path_factory.mktemp("adapter"))
            policy.save(folders[-1])
    return folders


def weights_of(policy: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in policy.module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_adapter_of_another_base_is_refused_whether_one_is_worn_or_not(
    generator: Any, tmp_path: Path
) -> None:
    """peft saves the base's embedding beside an adapter of it: put into the Talker, it would stay there."""
    folders = [tmp_path / "mine", tmp_path / "other"]
    bare = {name: value.clone() for name, value in generator.part("talker").state_dict().items()}
    for folder, values in zip(folders, (0, 1), strict=True):
        with generator.policy(train=LoraSettings(r=2, target_modules=["embed_tokens", "q_proj"])) as policy:
            policy.save(folder)
        file = folder / "adapter_model.safetensors"
        embedding = {f"{PREFIX}model.embed_tokens.base_layer.weight": bare["model.embed_tokens.weight"] + values}
        save_file(load_file(file) | embedding, file, metadata={"format": "pt"})
    file = folders[0] / "adapter_model.safetensors"
    held = load_file(file)
    save_file({name: value.bfloat16() if "base_layer" in name else value for name, value in held.items()}, file)
    again = shutil.copytree(folders[0], tmp_path / "again")  # the next version of it
    save_file({name: value * 2 if "lora_A" in name else value for name, value in load_file(file).items()},
              again / "adapter_model.safetensors")
    for first in ((), (folders[0],), (folders[0], again)):
        for folder in first:
            with policy_with(generator, folder) as policy:
                inner = policy.module.get_base_model().model.embed_tokens.base_layer.weight
                assert torch.equal(inner, bare["model.embed_tokens.weight"])  # not the file's, rounded to 16 bits
        with pytest.raises(CheckpointError, match="a weight of its base"), policy_with(generator, folders[1]):
            pass
        take_off(generator)
        assert same(generator.part("talker").state_dict(), bare)


def test_whatever_came_before_it_is_the_adapter_that_was_asked_for(generator: Any, adapters: list[Path]) -> None:
    bare = {name: value.clone() for name, value in generator.part("talker").state_dict().items()}
    fresh = []
    for folder in adapters:
        with generator.policy(folder) as policy:
            fresh.append(weights_of(policy))
    seen = []
    for i in (0, 0, 1, 2, 1, 0):
        with policy_with(generator, adapters[i]) as policy:
            assert same(weights_of(policy), fresh[i])
            seen.append(policy)
    assert seen[0] is seen[1] is seen[2] and seen[3] is not seen[2] and seen[4] is seen[5]
    with policy_with(generator, None) as policy:
        assert same(weights_of(policy), bare)
    with policy_with(generator, adapters[0], adapters[1]) as policy:
        assert any(".reference." in name for name in weights_of(policy))
    assert same(dict(generator.part("talker").state_dict()), bare)


def test_a_version_that_was_written_over_is_read_again(generator: Any, adapters: list[Path], tmp_path: Path) -> None:
    (folder := tmp_path / "live").mkdir()
    for i in (0, 1):
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / file).unlink(missing_ok=True)
            (folder / file).write_bytes((adapters[i] / file).read_bytes())
        with policy_with(generator, folder) as policy, generator_apart(adapters[i]) as other:
            assert same(weights_of(policy), weights_of(other))
    take_off(generator)


def generator_apart(folder: Path) -> Any:
    return talker_rl.load(ModelConfig(path="micro", device="cpu"), parts=("talker",)).policy(folder)


@pytest.mark.parametrize("damage", ["not finite", "missing", "of another geometry"])
def test_a_bad_version_leaves_the_base_behind(
    generator: Any, adapters: list[Path], tmp_path: Path, damage: str
) -> None:
    bare = {name: value.clone() for name, value in generator.part("talker").state_dict().items()}
    tensors = load_file(adapters[1] / "adapter_model.safetensors")
    first = min(tensors)
    tensors[first] = tensors[first] * torch.nan if damage == "not finite" else tensors[first][:, :1].contiguous()
    (tmp_path / "adapter_config.json").write_bytes((adapters[1] / "adapter_config.json").read_bytes())
    if damage != "missing":
        save_file(tensors, tmp_path / "adapter_model.safetensors")
    with policy_with(generator, adapters[0]):
        pass
    with pytest.raises(CheckpointError), policy_with(generator, tmp_path):
        pass
    assert same(dict(generator.part("talker").state_dict()), bare)


def test_nor_does_a_shard_that_failed(generator: Any, adapters: list[Path]) -> None:
    names = set(generator.part("talker").state_dict())
    with pytest.raises(ValueError, match="in the middle"), policy_with(generator, adapters[0]):
        raise ValueError("in the middle")
    assert set(generator.part("talker").state_dict()) == names
