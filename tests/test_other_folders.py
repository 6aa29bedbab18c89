"""What is given as model.path and is another folder: one message that names what to give."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from talker_rl import cli
from talker_rl.base.errors import CheckpointError
from talker_rl.micro import checkpoint_dir
from talker_rl.speech.files import INDEX, weight_files
from talker_rl.speech.locate import resolve_model_path
from talker_rl.speech.qwen2_5_omni.config_json import read_config
from talker_rl.speech.qwen2_5_omni.model_check import check_model

OMNI = checkpoint_dir() / "omni"


def linked(folder: Path) -> Path:
    """A checkpoint whose files are links, as a snapshot's are."""
    folder.mkdir(parents=True)
    for file in OMNI.iterdir():
        if file.is_file():
            os.symlink(file, folder / file.name)
    return folder


def cached(
    root: Path, name: str = "Own--Omni", hashes: tuple[str, ...] = ("0123abc",), main: str | None = None
) -> Path:
    """A model in the hub's cache."""
    model = root / f"models--{name}"
    for value in hashes:
        linked(model / "snapshots" / value)
    (model / "blobs").mkdir(parents=True)
    (model / "refs").mkdir()
    if main:
        (model / "refs/main").write_text(main)
    return model


def refused(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as raised:
        resolve_model_path(str(path))
    assert "\n" not in raised.value.what and raised.value.fix
    return raised.value


@pytest.mark.parametrize("part", [".", "blobs", "refs", "snapshots"])
def test_the_hub_caches_own_folders_name_the_snapshot(part: str, tmp_path: Path) -> None:
    model = cached(tmp_path)
    error = refused(model / part)
    assert str(model / "snapshots/0123abc") in (error.fix or "") and "Own/Omni" in error.what
    assert "download" not in (error.fix or "")
    assert resolve_model_path(str(model / "snapshots/0123abc")) == model / "snapshots/0123abc"


def test_of_several_snapshots_the_one_of_main(tmp_path: Path) -> None:
    model = cached(tmp_path / "a", hashes=("old", "new"), main="new\n")
    assert f"give {model}/snapshots/new," in (refused(model).fix or "")
    model = cached(tmp_path / "b", hashes=("old", "new"), main="gone")
    error = refused(model)
    assert "several snapshots" in error.what and "snapshots/old" in (error.fix or "")
    model = cached(tmp_path / "c", hashes=())
    assert "no snapshot" in refused(model).what and "download it first" in (refused(model).fix or "")


def test_a_link_to_the_hub_caches_folder_of_another_name(tmp_path: Path) -> None:
    model = cached(tmp_path / "cache")
    (tmp_path / "mine").symlink_to(model)
    assert "snapshots/0123abc" in (refused(tmp_path / "mine").fix or "")


@pytest.mark.parametrize("above", ["", "hub"])
def test_the_caches_root(above: str, tmp_path: Path) -> None:
    root = tmp_path / "hf" / above
    cached(root, "Other--Text")
    (root / "models--Other--Text/snapshots/0123abc/config.json").unlink()
    model = cached(root)
    error = refused(tmp_path / "hf")
    assert "cache of 2 models" in error.what and str(model / "snapshots/0123abc") in (error.fix or "")
    shutil.rmtree(model)
    assert "no Qwen2.5-Omni" in (refused(tmp_path / "hf").fix or "")


@pytest.mark.parametrize("inside", ["omni", "a/omni"])
def test_one_folder_too_high(inside: str, tmp_path: Path) -> None:
    linked(tmp_path / "models" / inside)
    (tmp_path / "models/empty").mkdir()
    error = refused(tmp_path / "models")
    assert f"inside this one ({inside})" in error.what
    assert error.fix == f"give {tmp_path / 'models' / inside}"
    linked(tmp_path / "models/another")
    assert "2 models" in refused(tmp_path / "models").what


@pytest.mark.parametrize(("names", "what", "fix"), [
    (["omni-q4.gguf"], "only as omni-q4.gguf, which cannot be trained", "original checkpoint"),
    (["model.onnx", "model.onnx_data"], "only as model.onnx", "original checkpoint"),
    (["pytorch_model-1.bin", "pytorch_model-2.bin"], "pickles, which are never opened", "save_pretrained"),
    (["consolidated.00.pth"], "only as consolidated.00.pth, pickles", "save_pretrained"),
    (["model.gguf", "config.json"], "only as model.gguf", "original checkpoint"),
    (["pytorch_model.bin", "config.json", "generation_config.json", "spk_dict.pt"], "pytorch_model.bin", "pickles"),
])  # fmt: skip
def test_weights_in_other_formats(names: list[str], what: str, fix: str, tmp_path: Path) -> None:
    for name in names:
        source = OMNI / name
        (tmp_path / name).write_bytes(source.read_bytes() if source.is_file() else b"GGUF" * 400)
    error = refused(tmp_path)
    assert what in error.what and fix in (error.fix or "")


def test_git_lfs_pointers(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(OMNI, tmp_path / "omni"))
    for file in folder.glob("*.safetensors"):
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4977222960\n")
    error = refused(folder)
    assert "1 file is a Git LFS pointer" in error.what and "lfs pull" in (error.fix or "")
    (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5000\n")
    assert "config.json" in refused(folder).what


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    folder = linked(tmp_path / "omni")
    assert refused(folder / "model.safetensors").fix == f"give its folder: {folder}"
    for name, said in (("omni.gguf", ".gguf files cannot"), ("omni.zip", "unpack it"), ("omni.txt", "give the folder")):
        (tmp_path / name).write_text("x")
        assert said in (refused(tmp_path / name).fix or "")


def test_folders_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen2.5-Omni-7B"}))
    error = refused(tmp_path)
    assert "LoRA adapter" in error.what and "Qwen/Qwen2.5-Omni-7B" in (error.fix or "")
    assert "model.adapter" in (error.fix or "")
    (tmp_path / "adapter_config.json").write_text("[]")
    assert "LoRA adapter" in refused(tmp_path).what
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text("{}")
    assert "a run's folder" in refused(run).what and "export --run-dir" in (refused(run).fix or "")


@pytest.mark.parametrize(("kind", "what"), [
    ("qwen3_omni_moe_thinker", "a part of a Qwen3-Omni"), ("qwen2", "text-only"), ("qwen3", "text-only"),
    ("qwen2_5_vl", "no Talker"), ("qwen2_audio", "Qwen2-Audio"), ("qwen2_5_omni_thinker", "a part of one alone"),
    ("llama", ""),
])  # fmt: skip
def test_other_models_are_one_finding(kind: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"model_type is '{kind}'") as raised:
        read_config(tmp_path)
    assert what in raised.value.what and "Qwen/Qwen2.5-Omni-7B" in (raised.value.fix or "")
    assert [level for level, _ in check_model(tmp_path)] == ["fail"]


@pytest.mark.parametrize("where", ["a.safetensors.incomplete", ".cache/huggingface/download/x.incomplete", "a.part",
                                   "blobs"])
def test_a_download_that_goes_on(where: str, tmp_path: Path) -> None:
    folder = linked(cached(tmp_path, hashes=()) / "snapshots/0") if where == "blobs" else linked(tmp_path / "omni")
    weights = folder / "model.safetensors"
    weights.unlink()
    index = {"weight_map": {"talker.a": "model-1.safetensors", "talker.b": "model-2.safetensors",
                            "thinker.c": "model-3.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))
    part = folder.parents[1] / "blobs/f00.incomplete" if where == "blobs" else folder / where
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text("")
    with pytest.raises(CheckpointError, match="model-1.safetensors is missing") as raised:
        weight_files(folder)
    assert "the download is not finished" in (raised.value.fix or "")
    failed = [text for level, text in check_model(folder) if level == "fail"]
    assert len(failed) == 1 and "3 of the 3 files" in failed[0] and "not finished" in failed[0]


@pytest.mark.parametrize("make", [cached, lambda root: linked(root / "models/omni").parent,
                                  lambda root: Path(shutil.copy(OMNI / "spk_dict.pt", root / "m.gguf"))])
def test_doctor_says_it_once(make: Callable[[Path], Path], tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["doctor", "--model", str(make(tmp_path))]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    assert len(failed) == 1 and "download" not in failed[0] and "give" in failed[0]


def test_what_is_not_recognized_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert resolve_model_path(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match="config.json is missing"):
        read_config(tmp_path)


def test_a_recognizers_folder_in_the_hubs_cache(tmp_path: Path) -> None:
    from talker_rl.reward.asr.names import model_folder

    model = tmp_path / "models--openai--whisper-large-v3"
    snapshot = model / "snapshots/0123abc"
    snapshot.mkdir(parents=True)
    for place in (model, model / "snapshots"):
        with pytest.raises(CheckpointError, match="hub cache's folder of openai/whisper-large-v3") as raised:
            model_folder(str(place), ["config.json"])
        assert str(snapshot) in (raised.value.fix or "")
