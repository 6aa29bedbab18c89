"""LoRA on the Talker: what is trained, what the reference is, what is written, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from omni_factory import omni_config, random_conditionings, tiny_omni

from talker_rl.errors import CheckpointError, ConfigError
from talker_rl.omni.config import LoraSettings
from talker_rl.omni.layout import TalkerExample, collate
from talker_rl.omni.logps import token_logps
from talker_rl.omni.lora import attach_lora, load_lora, reference_logps, save_lora

SETTINGS = LoraSettings(r=4, lora_alpha=8)


def batch():
    conditionings = random_conditionings([(9, 4), (14, 6)])
    return collate([TalkerExample(c, list(range(20 + i, 40))) for i, c in enumerate(conditionings)])


def nudge(model, amount=0.05, seed=0):
    """What training would do: change the trainable weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(amount * torch.randn(p.shape, generator=generator))


@torch.no_grad()
def logps(model):
    return token_logps(model, batch())


def trained_adapter(folder):
    model = attach_lora(tiny_omni().talker, SETTINGS, base_model="tiny").eval()
    nudge(model)
    save_lora(model, folder)
    return logps(model)


def test_a_new_adapter_changes_nothing_and_only_it_is_trained():
    talker = tiny_omni().talker
    base = logps(talker)
    model = attach_lora(talker, SETTINGS, base_model="tiny").eval()
    assert torch.equal(logps(model), base)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable and all(".lora_" in n for n in trainable)
    assert {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in trainable} == set(SETTINGS.target_modules)
    token_logps(model, batch()).sum().backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            # B is zero, so A's gradient is zero at first, but it is there
            assert p.grad is not None and (("lora_A" in name) or p.grad.abs().max() > 0)
        else:
            assert p.grad is None


def test_initialisation_is_a_function_of_the_seed():
    def a(seed):
        torch.manual_seed(123 + seed)
        model = attach_lora(tiny_omni().talker, SETTINGS, base_model="tiny", seed=seed)
        return torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n])

    assert torch.equal(a(1), a(1)) and not torch.equal(a(1), a(2))


def test_reference_of_a_training_from_the_base():
    talker = tiny_omni().talker
    base = logps(talker)
    model = attach_lora(talker, SETTINGS, base_model="tiny").eval()
    nudge(model)
    policy = logps(model)
    assert (policy - base).abs().max() > 0.01
    with reference_logps(model):
        assert torch.equal(logps(model), base)
    assert torch.equal(logps(model), policy)


def test_reference_of_a_training_from_an_adapter(tmp_path):
    start = trained_adapter(tmp_path / "first")
    base = logps(tiny_omni().talker)
    model = load_lora(tiny_omni().talker, tmp_path / "first", trainable=True, reference=tmp_path / "first").eval()
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable and all(".default." in n for n in trainable)
    assert torch.allclose(logps(model), start, atol=1e-6)
    nudge(model, seed=5)
    policy = logps(model)
    assert (policy - start).abs().max() > 0.01
    with reference_logps(model):
        assert torch.allclose(logps(model), start, atol=1e-6)  # the adapter as it began, not the base
        assert (logps(model) - base).abs().max() > 0.01
    assert torch.equal(logps(model), policy)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable
    save_lora(model, tmp_path / "second")
    assert sorted(p.name for p in (tmp_path / "second").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    again = load_lora(tiny_omni().talker, tmp_path / "second").eval()
    assert torch.allclose(logps(again), policy, atol=1e-6)
    assert not any(p.requires_grad for p in again.parameters())


def test_peft_itself_loads_what_is_saved(tmp_path):
    from peft import PeftModel

    expected = trained_adapter(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    model = PeftModel.from_pretrained(tiny_omni().talker, str(tmp_path)).eval()
    assert torch.allclose(logps(model), expected, atol=1e-6)


def test_an_adapter_of_another_geometry_is_named(tmp_path):
    from transformers import Qwen2_5OmniTalkerForConditionalGeneration as Talker

    trained_adapter(tmp_path)
    wide = omni_config().talker_config
    wide.intermediate_size = 56
    with pytest.raises(CheckpointError, match=r"another geometry: model\.layers\.0\.mlp\.\w+: it has 48"):
        load_lora(Talker(wide), tmp_path)
    short = omni_config().talker_config
    short.num_hidden_layers, short.layer_types = 1, ["full_attention"]
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\..*no such module"):
        load_lora(Talker(short), tmp_path)


def test_damaged_adapters_are_named(tmp_path):
    trained_adapter(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="adapter_model.safetensors cannot be read"):
        load_lora(tiny_omni().talker, tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="adapter_model.safetensors is missing"):
        load_lora(tiny_omni().talker, tmp_path)


def test_unknown_modules_and_missing_adapters():
    with pytest.raises(ConfigError, match="q_proj"):
        attach_lora(tiny_omni().talker, LoraSettings(target_modules=["query"]), base_model="tiny")
    with pytest.raises(ConfigError, match="no adapter"), reference_logps(tiny_omni().talker):
        pass
