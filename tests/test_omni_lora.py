"""LoRA on the Talker: what is trained, what the reference is, what is written, what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from omni_factory import omni_config, random_conditionings, tiny_omni
from safetensors.torch import load_file, save_file
from said import sequence

from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.speech import adapter_check
from talker_rl.speech.config import LoraSettings
from talker_rl.speech.lora import attach_lora, check_adapter, load_lora, reference_logps, save_lora
from talker_rl.speech.qwen2_5_omni.adapters import check_adapter_of, check_lora_of
from talker_rl.speech.qwen2_5_omni.layout import collate
from talker_rl.speech.qwen2_5_omni.logps import token_logps

SETTINGS = LoraSettings(r=4, lora_alpha=8)


def batch():
    conditionings = random_conditionings([(9, 4), (14, 6)])
    return collate([sequence(c, list(range(20 + i, 40))) for i, c in enumerate(conditionings)])


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


def test_initialization_is_a_function_of_the_seed():
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


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    trained_adapter(folder)
    return folder


def test_an_adapter_is_checked_once_and_again_when_a_file_has_changed(adapter, tmp_path, monkeypatch):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    built = []
    real = adapter_check.on_meta
    monkeypatch.setattr(adapter_check, "on_meta", lambda *of: built.append(of) or real(*of))
    monkeypatch.setattr(adapter_check, "_sound", set())
    check_adapter(tiny_omni().talker, folder)
    check_adapter(tiny_omni().talker, folder)
    check_adapter_of(omni_config(), folder)  # the same Talker, by its config
    assert len(built) == 1
    held = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(held.items())[1:]), folder / "adapter_model.safetensors")
    for _ in range(2):  # a refusal is no pass
        with pytest.raises(CheckpointError, match="no whole adapter"):
            check_adapter(tiny_omni().talker, folder)


TENSORS = {
    "nothing of it": (lambda held: {"a": torch.zeros(1)}, "no whole adapter: it lacks"),
    "no tensor": (lambda held: {}, "28 of the 28 tensors"),
    "other names": (lambda held: {k.removeprefix("base_model.model."): v for k, v in held.items()}, "it lacks"),
    "other modules": (lambda held: {k.replace("layers", "blocks"): v for k, v in held.items()}, "no such module"),
    "one layer": (lambda held: {k: v for k, v in held.items() if ".layers.0." in k}, "14 of the 28 tensors"),
    "one half": (lambda held: {k: v for k, v in held.items() if "lora_A" in k}, "lora_B.weight .14 of the 28"),
    "one more": (lambda held: held | {"a": torch.zeros(1)}, "holds 'a', which adapter_config.json does not ask for"),
    "whole numbers": (lambda held: {k: v.long() for k, v in held.items()}, "as I64"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_an_adapter_that_holds_other_tensors_than_its_settings_say(case, adapter, tmp_path):
    """peft would load what it finds, and warn: the base would speak under the adapter's name."""
    change, message = TENSORS[case]
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    for check in (lambda: check_adapter_of(omni_config(), folder), lambda: load_lora(tiny_omni().talker, folder)):
        with pytest.raises(CheckpointError, match=message) as raised:
            check()
        assert raised.value.where == str(file) and "tiny" in raised.value.fix


ALL = LoraSettings().target_modules
SETTINGS_REFUSED = [
    ({"r": 8}, "is of rank 4, the settings say 8"), ({"r": "x"}, "r is 'x'"), ({"r": 0}, "r is 0"),
    ({"rank_pattern": {"q_proj": 2}}, "is of rank 4, the settings say 2"), ({"rank_pattern": {"(": 2}}, "unterminated"),
    ({"target_modules": ["q_proj"]}, "does not ask for .24 such"),
    ({"target_modules": [*ALL, "codec_head"]}, "lacks .*codec_head.lora_A"),
    ({"target_modules": [*ALL, "query"]}, "no module 'query'"), ({"target_modules": "("}, "no regular expression"),
    ({"target_modules": r".*\.q_proj"}, "does not ask for"), ({"target_modules": []}, "no module is named"),
    ({"target_modules": None}, "target_modules is None"), ({"exclude_modules": ["q_proj"]}, "does not ask for"),
    ({"layers_to_transform": [0]}, "layers.1.* does not ask for"), ({"modules_to_save": ["codec_head"]}, "lacks"),
    ({"lora_alpha": float("nan")}, "lora_alpha is nan"), ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern"),
    ({"peft_type": "IA3"}, "is of a 'IA3'"), ({"use_dora": True}, "use_dora is True"),
    ({"bias": "all"}, "bias is 'all'"), ({"init_lora_weights": "pissa"}, "changes the base"),
    ({"megatron_core": "os"}, "megatron_core is 'os'"), ({"megatron_config": {"a": 1}}, "megatron_config"),
    ({"of_a_later_peft": 3}, "of_a_later_peft is 3"), ({"task_type": "SEQ_CLS"}, "task_type"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), SETTINGS_REFUSED, ids=[str(s) for s, _ in SETTINGS_REFUSED])
def test_settings_that_do_not_fit_or_cannot_be_checked(settings, message, adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(CheckpointError, match=message) as raised:
        check_adapter_of(omni_config(), folder)
    assert "\n" not in raised.value.what and str(folder) in raised.value.where


def test_settings_that_are_said_in_another_way(adapter, tmp_path):
    """A regular expression for the same modules, and keys of a later peft that ask for nothing."""
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    file = folder / "adapter_config.json"
    same = {"target_modules": rf".*\.({'|'.join(ALL)})", "of_a_later_peft": None, "init_lora_weights": "gaussian"}
    file.write_text(json.dumps(json.loads(file.read_text()) | same))
    check_adapter_of(omni_config(), folder)
    assert torch.equal(logps(load_lora(tiny_omni().talker, folder)), logps(load_lora(tiny_omni().talker, adapter)))


@pytest.mark.parametrize("text", ["[]", "{}", "null", "{", "[" * 100_000], ids=lambda text: text[:5])
def test_settings_that_cannot_be_read(text, adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="adapter_config.json cannot be read") as raised:
        check_adapter_of(omni_config(), folder)
    assert "saved with the adapter's weights" in raised.value.fix


def test_weights_that_are_not_finite_are_named(adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    held = load_file(file)
    name = sorted(held)[3]
    held[name][0, 0] = float("nan")
    save_file(held, file)
    with pytest.raises(CheckpointError, match=f"{name} is not finite"):
        load_lora(tiny_omni().talker, folder)


def test_a_check_leaves_talker_and_random_numbers_alone(adapter):
    talker = tiny_omni().talker
    names, state = [name for name, _ in talker.named_modules()], torch.random.get_rng_state()
    check_adapter(talker, adapter)
    check_adapter_of(omni_config(), adapter)
    check_lora_of(omni_config(), SETTINGS)
    assert names == [name for name, _ in talker.named_modules()]
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(("targets", "message"), [
    ("(", "no regular expression"), ("[query]", "no module that"), ([], "no module is named"),
    (["q_proj", "query"], "no module 'query'"), (["self_attn"], "is no linear layer"), (".*", "is no linear layer"),
])  # fmt: skip
def test_modules_that_cannot_be_trained_are_told_without_a_model(targets, message):
    settings = LoraSettings(target_modules=targets)
    for check in (lambda: check_lora_of(omni_config(), settings),
                  lambda: attach_lora(tiny_omni().talker, settings, base_model="tiny")):
        with pytest.raises(ConfigError, match=message) as raised:
            check()
        assert "q_proj" in raised.value.fix and raised.value.where == "lora.target_modules"


def test_unknown_modules_and_missing_adapters():
    with pytest.raises(ConfigError, match="no adapter"), reference_logps(tiny_omni().talker):
        pass
