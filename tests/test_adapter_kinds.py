"""Adapters as peft and other tools save them: taken where they are of this Talker, else refused with what is true."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from omni_factory import omni_config, tiny_omni
from safetensors.torch import load_file, save_file
from test_omni_lora import logps, nudge

from talker_rl.base.errors import CheckpointError
from talker_rl.speech.adapter_check import KEEPING
from talker_rl.speech.adapter_files import PREFIX, SETTINGS, WEIGHTS
from talker_rl.speech.lora import load_lora, resolve_adapter
from talker_rl.speech.qwen2_5_omni.adapters import check_adapter_of
from talker_rl.speech.qwen2_5_omni.merge import MERGE

pytestmark = pytest.mark.filterwarnings("ignore")


def saved(folder: Path, *, adapter_name: str = "default", **settings: Any) -> tuple[Path, torch.Tensor]:
    """An adapter as peft itself saves it, and what the Talker says with it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **settings})
        model = get_peft_model(tiny_omni().talker, config, adapter_name=adapter_name).eval()
        nudge(model)
        model.save_pretrained(str(folder))
    return folder, logps(model)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / SETTINGS
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refused(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as raised:
        load_lora(tiny_omni().talker, folder)
    assert "\n" not in raised.value.what and raised.value.fix
    return raised.value


def do_as_told(error: CheckpointError, folder: Path) -> None:
    """Run the line of Python that a message gives, in the adapter's folder."""
    line = re.search(r"python -c '.*?'(?=[;,]|$)", error.fix or "")
    assert line, error.fix
    subprocess.run([sys.executable, *shlex.split(line[0])[1:]], cwd=folder, check=True)


@pytest.mark.parametrize("settings", [
    {"init_lora_weights": "orthogonal"}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "mica"},
    {"init_lora_weights": False}, {"use_rslora": True}, {"modules_to_save": ["codec_head"]},
    {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 4}}, {"target_modules": "all-linear"},
    {"target_modules": ["q_proj", "embed_tokens"]}, {"target_modules": ["embed_tokens"]},
    {"target_modules": r".*\.(q_proj|embed_tokens)"}, {"layers_to_transform": [0]},
], ids=str)  # fmt: skip
def test_what_peft_saves_of_this_talker_is_taken(settings: dict[str, Any], tmp_path: Path) -> None:
    folder, expected = saved(tmp_path / "adapter", **settings)
    check_adapter_of(omni_config(), folder)
    model = load_lora(tiny_omni().talker, folder).eval()
    assert torch.allclose(logps(model), expected, atol=1e-5)
    assert torch.allclose(logps(model.merge_and_unload()), expected, atol=1e-4)


@pytest.mark.parametrize("value", ["eva", "Gaussian", "MICA", None, True])
def test_ways_to_begin_that_leave_the_base_alone(value: Any, tmp_path: Path) -> None:
    folder, expected = saved(tmp_path / "adapter")
    edit(folder, init_lora_weights=value, **({"eva_config": {"rho": 2.0, "tau": 0.99}} if value == "eva" else {}))
    check_adapter_of(omni_config(), folder)
    assert torch.allclose(logps(load_lora(tiny_omni().talker, folder).eval()), expected, atol=1e-5)


@pytest.mark.parametrize("value", ["pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga"])
def test_ways_to_begin_that_change_the_base(value: str, tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "adapter")
    edit(folder, init_lora_weights=value)
    error = refused(folder)
    assert value in error.what and "changes the base's weights" in error.what
    assert "path_initial_model_for_weight_conversion" in (error.fix or "")


def test_every_way_that_is_taken_leaves_the_base_alone_in_this_peft() -> None:
    """What the list says, held against peft itself."""
    from peft import LoraConfig, get_peft_model

    for way in KEEPING:
        targets = ["q_proj"] if way in ("eva", "orthogonal", "mica") else ["q_proj", "embed_tokens"]
        talker = tiny_omni().talker
        before = {name: value.clone() for name, value in talker.named_parameters()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            get_peft_model(talker, LoraConfig(r=4, target_modules=targets, init_lora_weights=way))
        after = {name.replace(".base_layer.", "."): value for name, value in talker.named_parameters()}
        assert all(torch.equal(after[name], value) for name, value in before.items()), way


@pytest.mark.parametrize("value", ["better", "EVA", "Orthogonal", "", 1])
def test_an_unknown_way_to_begin_is_told(value: Any, tmp_path: Path) -> None:
    """peft compares some of its words with their case."""
    folder, _ = saved(tmp_path / "adapter")
    edit(folder, init_lora_weights=value)
    assert f"{value!r}, which peft does not know" in refused(folder).what


@pytest.mark.parametrize("name", ["model.embed_tokens.base_layer.weight", "model.embed_tokens.weight",
                                  "codec_head.weight"])
@pytest.mark.parametrize("same", [True, False])
def test_the_bases_own_weights_beside_the_adapter(name: str, same: bool, tmp_path: Path) -> None:
    folder, expected = saved(tmp_path / "adapter")
    own = dict(tiny_omni().talker.named_parameters())[name.replace(".base_layer", "")].detach()
    held = load_file(folder / WEIGHTS)
    save_file(held | {PREFIX + name: own.clone() if same else own + 0.01}, folder / WEIGHTS)
    check_adapter_of(omni_config(), folder)
    if same:
        assert torch.allclose(logps(load_lora(tiny_omni().talker, folder).eval()), expected, atol=1e-5)
    else:
        error = refused(folder)
        assert "a weight of its base, with other values" in error.what and "model.path" in (error.fix or "")


def test_the_bases_weight_in_another_shape_or_half_precision(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "adapter")
    held, name = load_file(folder / WEIGHTS), f"{PREFIX}model.embed_tokens.base_layer.weight"
    own = tiny_omni().talker.get_input_embeddings().weight.detach()
    save_file(held | {name: own.bfloat16()}, folder / WEIGHTS)
    load_lora(tiny_omni().talker, folder)
    save_file(held | {name: own[:-1].clone()}, folder / WEIGHTS)
    assert "embed_tokens" in refused(folder).what


def test_merging_leaves_the_bases_tensors_out(tmp_path: Path) -> None:
    from talker_rl.speech.config import ModelConfig

    folder, _ = saved(tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"])
    names = MERGE.merged_tensors(tmp_path, folder, ModelConfig())
    assert "talker.model.embed_tokens.weight" in names and not any("base_layer" in name for name in names)


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    for name in ("adapter_model.bin", "adapter_model.pt"):
        folder, expected = saved(tmp_path / name)
        torch.save(load_file(folder / WEIGHTS), folder / name)
        (folder / WEIGHTS).unlink()
        error = refused(folder)
        assert f"{name}, a pickle" in error.what and "download" not in (error.fix or "")
        do_as_told(error, folder)
        assert torch.allclose(logps(load_lora(tiny_omni().talker, folder).eval()), expected, atol=1e-5)


@pytest.mark.parametrize("regex", [False, True])
def test_an_adapter_of_the_whole_model_is_told_how_to_become_one_of_the_talker(regex: bool, tmp_path: Path) -> None:
    folder, expected = saved(tmp_path / "adapter")
    held = load_file(folder / WEIGHTS)
    save_file({k.replace(PREFIX, f"{PREFIX}talker."): v for k, v in held.items()}, folder / WEIGHTS)
    if regex:
        edit(folder, target_modules=r"^(talker\.model.*\.(q_proj|v_proj))$")
    error = refused(folder)
    assert "tuned on the whole model" in error.what
    assert (r"talker\." in (error.fix or "")) == regex
    do_as_told(error, folder)
    if regex:
        edit(folder, target_modules=r"^(model.*\.(q_proj|v_proj))$")
    assert torch.allclose(logps(load_lora(tiny_omni().talker, folder).eval()), expected, atol=1e-5)


@pytest.mark.parametrize(("module", "part"), [
    ("thinker.model.layers.0.self_attn.q_proj", "Thinker"), ("thinker.visual.blocks.0.attn.q", "Thinker"),
    ("token2wav.code2wav_dit_model.x", "token2wav"), ("visual.blocks.0.attn.q", "Thinker"),
    ("model.language_model.layers.0.self_attn.q_proj", "Thinker"),
])  # fmt: skip
def test_an_adapter_of_another_part_is_refused_as_such(module: str, part: str, tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "adapter")
    held = load_file(folder / WEIGHTS)
    save_file({f"{PREFIX}{module}.lora_A.weight": v for v in list(held.values())[:1]}, folder / WEIGHTS)
    error = refused(folder)
    assert f"is an adapter of the {part}" in error.what and "merge it into the whole model" in (error.fix or "")
    talkers = {k.replace(PREFIX, f"{PREFIX}talker."): v for k, v in held.items()}
    save_file(load_file(folder / WEIGHTS) | talkers, folder / WEIGHTS)
    assert f"beside {len(talkers)} of the Talker" in refused(folder).what


def test_names_that_peft_does_not_write(tmp_path: Path) -> None:
    changes = {
        "carry the adapter's name (speech)": lambda k: k.replace(".weight", ".speech.weight"),
        f"lacks {PREFIX}": lambda k: k.removeprefix(PREFIX),
    }
    for i, (message, change) in enumerate(changes.items()):
        folder, expected = saved(tmp_path / str(i))
        save_file({change(k): v for k, v in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
        error = refused(folder)
        assert message in error.what
        do_as_told(error, folder)
        assert torch.allclose(logps(load_lora(tiny_omni().talker, folder).eval()), expected, atol=1e-5)


def test_weights_in_several_files(tmp_path: Path) -> None:
    folder, expected = saved(tmp_path / "adapter")
    held = list(load_file(folder / WEIGHTS).items())
    save_file(dict(held[:3]), folder / "adapter_model-00001-of-00002.safetensors")
    save_file(dict(held[3:]), folder / "adapter_model-00002-of-00002.safetensors")
    (folder / WEIGHTS).unlink()
    error = refused(folder)
    assert "are in 2 files" in error.what
    do_as_told(error, folder)
    assert torch.allclose(logps(load_lora(tiny_omni().talker, folder).eval()), expected, atol=1e-5)


@pytest.mark.parametrize(("settings", "message"), [
    ({"peft_type": "IA3"}, "'IA3', not of a LoRA"), ({"peft_type": "PROMPT_TUNING"}, "'PROMPT_TUNING', not of a LoRA"),
    ({"peft_type": "ADALORA"}, "'ADALORA', not of a LoRA"), ({"use_dora": True}, "use_dora is True"),
    ({"lora_bias": True}, "lora_bias is True"), ({"trainable_token_indices": [1]}, "trainable_token_indices"),
])  # fmt: skip
def test_other_kinds_are_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "adapter")
    edit(folder, **settings)
    assert message in refused(folder).what


def test_an_adapter_of_another_name_lies_in_a_folder_of_its_own(tmp_path: Path) -> None:
    folder, expected = saved(tmp_path / "adapter", adapter_name="speech")
    assert not (folder / SETTINGS).exists()
    with pytest.raises(CheckpointError, match="no adapter here .*, but inside") as raised:
        resolve_adapter(folder)
    assert raised.value.fix == f"name it: {folder / 'speech'}"
    assert torch.allclose(logps(load_lora(tiny_omni().talker, folder / "speech").eval()), expected, atol=1e-5)
    assert str(folder / "speech") in (refused(folder).fix or "")
    shutil.copytree(folder / "speech", folder / "other")
    with pytest.raises(CheckpointError, match="but inside this folder") as raised:
        resolve_adapter(folder)
    assert "speech" in (raised.value.fix or "") and "other" in (raised.value.fix or "")


def test_what_is_no_adapter_is_named(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="An adapter is a folder, this is a file"):
        resolve_adapter(folder / WEIGHTS)
    (folder / SETTINGS).unlink()
    with pytest.raises(CheckpointError, match=f"{SETTINGS} is missing"):
        resolve_adapter(folder)
    (tmp_path / "omni").mkdir()
    (tmp_path / "omni/config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="a whole model, not an adapter") as raised:
        resolve_adapter(tmp_path / "omni")
    assert "model.path" in (raised.value.fix or "")


@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "settings gone"])
def test_a_damaged_adapter_of_a_run_of_ones_own_is_not_downloaded_again(damage: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder, _ = saved(run / "train/dpo")
    shutil.copytree(folder, run / "round1/train/dpo/checkpoint-6")
    (run / "manifest.json").write_text("{}")
    file = folder / (SETTINGS if damage == "settings gone" else WEIGHTS)
    content = file.read_bytes()
    if damage in ("gone", "settings gone"):
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    error = refused(folder)
    assert "download" not in str(error) and str(run / "round1/train/dpo/checkpoint-6") in (error.fix or "")
    assert "--force-stage round1/train/dpo" in (error.fix or "")


def test_a_damaged_adapter_of_elsewhere_is_copied_again(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "adapter")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])
    assert "copy it again" in (refused(folder).fix or "")
    (folder / "export.json").write_text("{}")
    assert "export it again" in (refused(folder).fix or "")
