"""Export: adapters that are not of the base, folders that are no run, and the parts that need no trained run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sharded_checkpoint import write_sharded

from talker_rl import cli
from talker_rl.speech import adapter_check
from talker_rl.speech.config import LoraSettings, ModelConfig
from talker_rl.speech.files import read_spans
from talker_rl.speech.lora import attach_lora, save_lora
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
from talker_rl.speech.qwen2_5_omni.merge import MERGE as merge


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the published layout."""
    return write_sharded(tmp_path_factory.mktemp("base") / "omni")


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of it that changes every module."""
    talker = load_omni(ModelConfig(path=str(base), device="cpu"), parts=("talker",)).talker
    model = attach_lora(talker, LoraSettings(r=2), base_model=str(base))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("adapter")
    save_lora(model, folder)
    return folder


def test_a_single_file_of_odd_sizes_is_widened_too(tmp_path: Path) -> None:
    """No index; a tensor of an odd number of halves before a float32 one, which must not begin at an odd place."""
    base, out = tmp_path / "base", tmp_path / "out"
    held = {"talker.a": torch.ones(3, dtype=torch.bfloat16), "talker.b": torch.ones(3, dtype=torch.bfloat16),
            "thinker.c": torch.ones(5, dtype=torch.float16), "token2wav.d": torch.ones(2)}
    for folder in (base, out):
        folder.mkdir()
    save_file(held, base / "model.safetensors", metadata={"format": "pt", "note": "ä"})
    merged = {"talker.b"}
    written = merge.entries(base, merged, widen=True)
    value = torch.tensor([1.0, 1.0001, 1.0])
    rounding = merge.write_checkpoint(base, out, written, merged, {"b": value}, widen=True)
    assert (rounding.merged, rounding.changed, rounding.error) == (1, 1, 0)
    got = load_file(out / "model.safetensors")
    assert torch.equal(got.pop("talker.b"), value) and held.pop("talker.b") is not None
    assert all(torch.equal(got[k], v) and got[k].dtype == v.dtype for k, v in held.items())
    assert got.keys() == held.keys()
    assert [e.size for e in written] == [(out / "model.safetensors").stat().st_size]
    for name, span in read_spans(out / "model.safetensors").items():
        assert span.begin % got.get(name, value).element_size() == 0
    with safe_open(out / "model.safetensors", framework="pt") as reader:
        assert reader.metadata() == {"format": "pt", "note": "ä"}


def test_only_tensors_whose_value_differs_are_counted(base: Path, trained: Path, tmp_path: Path, capsys: Any) -> None:
    """An adapter of which one module alone was trained."""
    adapter, out = Path(shutil.copytree(trained, tmp_path / "adapter")), tmp_path / "out"
    file = adapter / adapter_check.WEIGHTS
    held = load_file(file)
    kept = next(name for name in held if name.endswith("q_proj.lora_B.weight"))
    save_file({k: v * (k == kept or "lora_A" in k) for k, v in held.items()}, file)
    assert cli.main(["export", str(adapter), "--model", str(base), "--merge", str(out), "--debug"]) == 0
    told = f"1 tensor of the Talker changed of the {len(held) // 2} that were merged, stored as BF16"
    for text in (capsys.readouterr().err, (out / "README.md").read_text(), (out / "export.json").read_text()):
        assert told in text


@pytest.mark.parametrize("kind", ["--adapter", "--merge"])
@pytest.mark.parametrize("damage", ["geometry", "rank", "names", "kind", "list", "nan"])
def test_an_adapter_that_does_not_fit_is_not_written(
    damage: str, kind: str, base: Path, trained: Path, tmp_path: Path, capsys: Any
) -> None:
    adapter = Path(shutil.copytree(trained, tmp_path / "adapter"))
    file, settings = adapter / adapter_check.WEIGHTS, adapter / "adapter_config.json"
    held, said = load_file(file), json.loads(settings.read_text())
    name = min(held)
    if damage == "geometry":
        base = write_sharded(tmp_path / "3b", "3b")
    elif damage == "nan":
        save_file(held | {name: held[name] * float("nan")}, file)
    elif damage == "names":
        save_file({f"{k}.x": v for k, v in held.items()}, file)
    else:
        change = {"rank": said | {"r": 4}, "kind": said | {"peft_type": "IA3"}, "list": []}[damage]
        settings.write_text(json.dumps(change))
    message = {"geometry": "another geometry", "rank": "the settings say 4", "names": "no whole adapter",
               "kind": "is of a 'IA3'", "list": "adapter_config.json cannot be read", "nan": f"{name} is not finite"}
    options = ["export", str(adapter), "--model", str(base), kind, str(tmp_path / "out"), "-q"]
    for more in (["--dry-run"], []) if damage != "nan" else ([],):  # a dry run reads no weights
        assert cli.main([*options, *more]) == 1
        err = capsys.readouterr().err
        assert message[damage] in err.splitlines()[0] and str(adapter) in err and "of the run is damaged" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"config": {}, "stages": {}}', "[" * 100_000],
                         ids=lambda text: text[:12])
def test_a_manifest_of_no_run_is_told(text: str, trained: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run / "train/default")
    (run / "train/default/chosen.json").write_text('{"round": 1, "step": 1}')
    (run / "round1/train/default").mkdir(parents=True)
    for name in ("result", "variant"):
        (run / f"round1/train/default/{name}.json").write_text("{}")
    (run / "manifest.json").write_text(text)
    assert cli.main(["export", "--run-dir", str(run), "--adapter", str(tmp_path / "out"), "-q"]) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("error: ") and str(run) in err and not (tmp_path / "out").exists()
