"""``talker-rl doctor``: what it must not call ready, of the weights as their headers show them and as loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sharded_checkpoint import write_sharded

from talker_rl import cli, doctor, micro
from talker_rl.base.errors import ConfigError
from talker_rl.config import RunConfig, load_data
from talker_rl.speech.qwen2_5_omni import checkpoint, model_check
from talker_rl.speech.registry import read_geometry

MICRO = Path(micro.checkpoint_dir()) / "omni"


def failures(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Lines that fail; the exit code and the last line say the same."""
    code = cli.main(["doctor", *arguments])
    lines = capsys.readouterr().out.splitlines()
    found = [line.removeprefix("fail  ") for line in lines if line.startswith("fail")]
    assert code == bool(found) and (lines[-1] == "ready") == (not found)
    return found


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOADED_BYTES", 0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sharded(tmp_path_factory.mktemp("small") / "3b", "3b")


def test_a_talker_of_another_model_is_found_without_loading(
    small: Path, unloaded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for talker, told in ((small, "config.json asks for"), ("/nope", "no such Talker weights")):
        found = failures(capsys, "--model", "micro", f"model.talker={talker}")
        assert found and all(line.startswith("model:") for line in found)
        assert told in found[-1] and str(talker) in found[-1]
    assert not failures(capsys, "--model", "micro", f"model.talker={MICRO / 'talker_clean'}")


def test_an_attention_that_is_not_installed_is_found_without_loading(
    unloaded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = failures(capsys, "--model", "micro", "model.attn_implementation=flash_attention_2")
    assert "model.attn_implementation=flash_attention_2 needs flash_attn" in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
def test_a_device_that_is_not_there_is_a_line(unloaded: None, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = failures(capsys, "--model", "micro", "model.device=cuda")
    assert found == "machine: no CUDA device is there (model.device); use device: cpu or auto"


def test_a_gpu_of_a_number_too_high_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert checkpoint.pick_device("cuda:1").index == 1
    with pytest.raises(ConfigError, match="there is no device 'cuda:2': 2 are there"):
        checkpoint.pick_device("cuda:2")


def test_weights_that_are_no_numbers_are_found_by_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(MICRO, tmp_path / "omni"))
    tensors = load_file(folder / "model.safetensors")
    tensors["talker.codec_head.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (found,) = failures(capsys, "--model", str(folder))
    assert "talker.codec_head.weight holds NaN or infinity" in found and str(folder) in found


def test_an_empty_model_is_not_the_default_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert failures(capsys, "--model", "") == [
        'model: the model\'s path is empty (model.path); give a folder, "micro" or a hub name owner/name']


def test_a_folder_that_is_not_there_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = failures(capsys, "--model", "/no/such/folder")
    assert "no such model folder" in found


@pytest.mark.parametrize("error", [IndexError(), AssertionError("first\nsecond"), RecursionError("too deep")])
def test_no_check_ends_the_others(error: Exception) -> None:
    def check(_: RunConfig) -> Iterator[Any]:
        yield "ok", "begun"
        raise error

    (begun, (level, text)) = model_check.guarded(check, RunConfig())
    assert begun == ("ok", "begun") and level == "fail"
    assert text.startswith(f"{type(error).__name__}: ") and "\n" not in text


# -- hub names ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline hub cache, in which each name is the micro model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("me/my-omni", "me/qwen2.5-omni-3b"):
        cached = tmp_path / f"models--{name.replace('/', '--')}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("a" * 40)
        shutil.copytree(MICRO, cached / "snapshots" / ("a" * 40))
    return tmp_path


def test_any_hub_name_is_measured_by_its_own_config(
    hub: Path, unloaded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    small = read_geometry("micro").parameters
    for name in ("me/my-omni", "me/qwen2.5-omni-3b"):
        assert not failures(capsys, "--model", name)
        assert cli.main(["plan", "--json", f"model.path={name}"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["geometry"] == name and plan["parameters"] == small
    published = read_geometry("Qwen/Qwen2.5-Omni-3B")  # needs no files
    assert published.name == "qwen2.5-omni-3b" and published.parameters != small
    assert cli.main(["plan", "--geometry", "me/none"]) == 1
    assert "neither a folder nor a model that the hub gives" in capsys.readouterr().err


@pytest.mark.parametrize(("targets", "told"), [("(", "no regular expression"), (["query"], "no module 'query'")])
def test_lora_on_what_the_talker_has_not_is_found(targets: object, told: str) -> None:
    config = load_data({"train": {"lora": {"target_modules": targets}}})
    with pytest.raises(ConfigError, match=told):
        list(doctor._training(config))
