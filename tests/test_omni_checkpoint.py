"""Loading: a folder's parts, what is missing or damaged, replaced Talker weights, hashes."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omni_factory import speakers, tiny_omni, write_checkpoint

from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.locate import resolve_model_path
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
from talker_rl.speech.registry import family_of


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("omni"))


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "omni"))


def load(folder, parts=("talker",), **settings):
    return load_omni(ModelConfig(path=str(folder), **settings), parts=parts)


def test_every_part_is_what_was_saved(original):
    expected = tiny_omni()
    omni = load(original, parts=("thinker", "talker", "token2wav"))
    for part in omni.parts:
        mine, theirs = getattr(omni, part).state_dict(), getattr(expected, part).state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)
        assert not any(p.requires_grad for p in getattr(omni, part).parameters())
        assert not getattr(omni, part).training
    buffers = dict(expected.named_buffers())
    for part in omni.parts:
        for name, value in getattr(omni, part).named_buffers():
            assert torch.equal(value, buffers[f"{part}.{name}"])
    assert omni.tokenizer is not None and sorted(omni.speakers) == ["Ann", "Bob"]
    assert torch.equal(omni.speaker("Ann")["cond"], speakers()["Ann"]["cond"])


def test_only_the_asked_parts_are_read(folder):
    """Talker and token2wav load although the Thinker's tensors are not in the files at all."""
    from safetensors.torch import load_file, save_file

    for file in folder.glob("*.safetensors"):
        kept = {k: v for k, v in load_file(file).items() if not k.startswith("thinker.")}
        save_file(kept, file, metadata={"format": "pt"})
    omni = load(folder, parts=("talker", "token2wav"))
    assert omni.thinker is None and omni.tokenizer is None
    with pytest.raises(ConfigError, match="thinker was not loaded"):
        omni.need("thinker")
    with pytest.raises(CheckpointError, match="does not hold 'thinker.*which model.safetensors.index.json"):
        load(folder, parts=("thinker",))


@pytest.mark.parametrize("part", ["conditioner", "talker", "decoder"])
def test_a_generator_names_the_part_that_was_not_loaded(original, part):
    others = [name for name in ("conditioner", "talker", "decoder") if name != part]
    generator = family_of(str(original)).load(ModelConfig(path=str(original), device="cpu"), others)
    uses = {"conditioner": lambda: generator.condition([]), "talker": lambda: generator.policy().__enter__(),
            "decoder": lambda: generator.decode([])}
    with pytest.raises(ConfigError, match=rf'The {part} was not loaded\s+fix:   load\(.*"{part}"'):
        uses[part]()


def test_precision(original):
    omni = load(original, parts=("talker", "token2wav"), dtype="bfloat16")
    assert omni.talker.codec_head.weight.dtype == torch.bfloat16
    assert omni.token2wav.code2wav_dit_model.proj_out.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["config.json", "spk_dict.pt", "tokenizer.json", "model-00002-of-00003.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError) as raised:
        load(folder, parts=("thinker", "talker"))
    wanted = "vocab.json" if name == "tokenizer.json" else name
    assert wanted in str(raised.value) and str(folder) in str(raised.value) and "fix:" in str(raised.value)


def test_missing_weights_and_folders_are_named(folder, tmp_path):
    for file in folder.glob("model*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="neither model.safetensors nor model.safetensors.index.json"):
        load(folder)
    with pytest.raises(CheckpointError, match="no such model folder"):
        resolve_model_path(str(tmp_path / "nothing here"))
    with pytest.raises(ConfigError, match="unknown model part 'voice'"):
        load(folder, parts=("voice",))


def test_truncated_weights_are_named(folder):
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=f"{file.name} cannot be read"):
        load(folder, parts=("thinker", "talker"))


def test_missing_and_misshapen_tensors_are_named(folder):
    from safetensors.torch import load_file, save_file

    (file,) = [f for f in folder.glob("*.safetensors") if "talker.codec_head.weight" in load_file(f)]
    tensors = load_file(file)
    head = tensors.pop("talker.codec_head.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{file.name} does not hold 'talker.codec_head.weight'"):
        load(folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["talker.codec_head.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="1 tensor missing, the first is 'codec_head.weight'"):
        load(folder)
    content["weight_map"]["talker.codec_head.weight"] = file.name
    index.write_text(json.dumps(content))
    save_file({**tensors, "talker.codec_head.weight": head[:, :16].contiguous()}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="codec_head.weight"):
        load(folder)


def test_config_of_another_model(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="'llama'"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json cannot be used"):
        load(folder)


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_speaker_files_that_are_wrong(folder, capsys):
    good = speakers()["Ann"]
    file = folder / "spk_dict.pt"
    for bad, message in [
        ({}, "no speakers"),
        ({"Ann": {"cond": good["cond"]}}, "bos_token"),
        ({"Ann": {**good, "cond": good["cond"][0]}}, "cond has shape"),
        ({"Ann": {**good, "cond": good["cond"][:, :128]}}, "cond has width 128, this model's token2wav takes 192"),
        ({"Ann": {**good, "bos_token": 151872}}, "bos_token 151872 is no text id of this model"),
        ({"Ann": {**good, "ref_mel": good["ref_mel"][..., :40]}}, "ref_mel has shape"),
        ({"Ann": {**good, "cond": good["cond"] * float("nan")}}, "not finite"),
    ]:
        torch.save(bad, file)
        with pytest.raises(CheckpointError, match=message):
            load(folder)
    file.write_bytes(pickle.dumps({"Ann": Evil()}))
    with pytest.raises(CheckpointError, match="plain tensors"):
        load(folder)
    torch.save({"Ann": Evil()}, file)
    with pytest.raises(CheckpointError, match="plain tensors"):
        load(folder)
    assert "never run" not in capsys.readouterr().out


def test_index_cannot_point_outside(folder):
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["talker.codec_head.weight"] = "../other.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load(folder)


def test_other_talker_weights(original, tmp_path):
    from safetensors.torch import save_file

    other = tiny_omni(seed=7).talker
    file = tmp_path / "clean" / "model.safetensors"
    file.parent.mkdir()
    save_file({k: v.contiguous() for k, v in other.state_dict().items()}, file)
    plain = load(original)
    for path in (file, file.parent):
        omni = load(original, talker=str(path))
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in omni.talker.state_dict().items())
        assert omni.hash_of("talker") != plain.hash_of("talker")
        assert omni.hash_of("token2wav") == plain.hash_of("token2wav")
    with pytest.raises(CheckpointError, match="no such Talker weights"):
        load(original, talker=str(tmp_path / "none"))
    save_file({"codec_head.weight": torch.zeros(3, 3)}, file)
    with pytest.raises(CheckpointError, match="talker"):
        load(original, talker=str(file))


def test_hash_is_of_the_content(original, folder):
    assert load(original).hash_of("talker") == load(folder).hash_of("talker")
    (folder / "notes.md").write_text("not part of the model")
    assert load(original).hash_of("talker") == load(folder).hash_of("talker")
    config = (folder / "generation_config.json").read_text()
    (folder / "generation_config.json").write_text(config + "\n")
    assert load(original).hash_of("talker") != load(folder).hash_of("talker")


def test_config_needs_no_torch():
    code = "import sys, talker_rl.speech.config; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_generation_needs_neither_trl_nor_funasr():
    code = "import sys; from talker_rl.speech import lora, qwen2_5_omni\n"
    code += "from talker_rl.speech.qwen2_5_omni import rollouts, token2wav, checkpoint"
    code += "; assert not {'trl', 'funasr', 'deepspeed', 'peft'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
