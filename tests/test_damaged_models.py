"""Damaged, swapped and hostile model folders: every verb refuses in one line that names the file, and runs nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from sharded_checkpoint import INDEX, MICRO, parts_by_shard, record_opens, write_sharded

from talker_rl import cli, doctor
from talker_rl.base.errors import CheckpointError
from talker_rl.speech.config import LoraSettings, ModelConfig
from talker_rl.speech.lora import attach_lora, load_lora, save_lora
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
from talker_rl.stages.worker import generator_of

Damage = Callable[[Path], str]
"""Damages the folder; returns the name of the file that must be named."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded checkpoint beside its configuration and a run whose conditioning is done."""
    world = tmp_path_factory.mktemp("damaged")
    write_sharded(world / "omni")
    words = (MICRO / "words.txt").read_text().split()
    for i, name in enumerate(("train", "dev", "eval")):
        (world / f"{name}.txt").write_text(f"{words[i]} {words[i + 3]}.\n{words[i + 6]}, {words[i + 9]}.\n")
    write_config(world)
    for verb in ("prompts", "condition"):
        assert start(world, verb) == 0
    return world


def write_config(world: Path) -> None:
    (world / "config.yaml").write_text(yaml.safe_dump({
        "model": {"path": str(world / "omni"), "device": "cpu"},
        "prompts": {name: str(world / f"{name}.txt") for name in ("train", "dev", "eval")} | {"speaker": "Chelsie"},
        "rollouts": {"num_candidates": 2, "sampling": {"max_new_tokens": 64}},
    }))  # fmt: skip


def start(world: Path, verb: str) -> int:
    return cli.main([verb, "-c", str(world / "config.yaml"), "--run-dir", str(world / "run"), "-q"])


@pytest.fixture
def world(sound: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(sound, tmp_path / "world"))
    write_config(copy)
    return copy


def shard_of(folder: Path, parts: set[str]) -> Path:
    return folder / next(file for file, held in sorted(parts_by_shard(folder).items()) if held == parts)


def edit(file: Path, change: Callable[[dict], None]) -> str:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    return file.name


def missing_shard(folder: Path) -> str:
    file = shard_of(folder, {"talker", "thinker"})
    file.unlink()
    return file.name


def truncated_shard(folder: Path) -> str:
    file = shard_of(folder, {"thinker"})
    file.write_bytes(file.read_bytes()[:-1000])
    return file.name


def no_safetensors_at_all(folder: Path) -> str:
    file = shard_of(folder, {"talker", "token2wav"})
    file.write_bytes(b"<html>404 not found</html>")
    return file.name


def index_that_is_wrong(folder: Path) -> str:
    other = shard_of(folder, {"thinker"}).name
    edit(folder / INDEX, lambda x: x["weight_map"].update({"talker.codec_head.weight": other}))
    return other  # which does not hold it


def tensor_of_another_model(folder: Path) -> str:
    file = shard_of(folder, {"talker", "token2wav"})
    tensors = load_file(file)
    tensors["talker.codec_head.weight"] = tensors["talker.codec_head.weight"][:, :16].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    return file.name


def _speakers(folder: Path, **changes: object) -> str:
    table = torch.load(folder / "spk_dict.pt", weights_only=True)
    for entry in table.values():
        entry.update(changes)
    torch.save(table, folder / "spk_dict.pt")
    return "spk_dict.pt"


def speakers_of_another_width(folder: Path) -> str:
    return _speakers(folder, cond=torch.zeros(1, 256))


def speakers_of_another_vocabulary(folder: Path) -> str:
    return _speakers(folder, bos_token=151872)


def remote_code(name: str) -> Damage:
    """The folder's own classes, which leave a mark beside it when they run."""

    def damage(folder: Path) -> str:
        mark = folder.parent / "ran"
        code = f"open({str(mark)!r}, 'w').close()\nclass Model: pass\nclass Tokenizer: pass\nclass Processor: pass\n"
        for module in ("modeling_x", "configuration_x", "__init__"):
            (folder / f"{module}.py").write_text(code)
        own = {"AutoConfig": "modeling_x.Model", "AutoModel": "modeling_x.Model",
               "AutoTokenizer": ["modeling_x.Tokenizer", None], "AutoProcessor": "modeling_x.Processor"}
        return edit(folder / name, lambda x: x.update(auto_map=own))

    return damage


def tensor_that_is_not_listed(folder: Path) -> str:
    """The file holds it, but a loader goes by the index."""
    return edit(folder / INDEX, lambda x: x["weight_map"].pop("talker.codec_head.weight"))


def talker_of_integers(folder: Path) -> str:
    file = shard_of(folder, {"talker", "token2wav"})
    save_file({name: x.long() if name.startswith("talker.") else x for name, x in load_file(file).items()}, file,
              metadata={"format": "pt"})
    return file.name


def empty_speakers(folder: Path) -> str:
    (folder / "spk_dict.pt").write_bytes(b"")
    return "spk_dict.pt"


def template_that_raises(folder: Path) -> str:
    """In chat_template.json, as the published layout has it."""
    edit(folder / "tokenizer_config.json", lambda x: x.pop("chat_template", None))
    return edit(folder / "chat_template.json", lambda x: x.update(chat_template="{{ raise_exception('no') }}"))


def attention_from_the_hub(folder: Path) -> str:
    return edit(folder / "config.json", lambda x: x.update(attn_implementation="kernels-community/flash-attn2"))


CASES: dict[str, tuple[Damage, str]] = {
    "missing shard": (missing_shard, "rollout"),
    "truncated shard": (truncated_shard, "condition"),
    "no safetensors": (no_safetensors_at_all, "rollout"),
    "wrong index": (index_that_is_wrong, "rollout"),
    "another model's tensor": (tensor_of_another_model, "rollout"),
    "speakers of another width": (speakers_of_another_width, "prompts"),
    "speakers of another vocabulary": (speakers_of_another_vocabulary, "prompts"),
    "a tensor that the index does not list": (tensor_that_is_not_listed, "rollout"),
    "a Talker of integers": (talker_of_integers, "rollout"),
    "empty speakers": (empty_speakers, "prompts"),
    "a chat template that raises": (template_that_raises, "condition"),
    "attention from the hub": (attention_from_the_hub, "prompts"),
    "code in config.json": (remote_code("config.json"), "prompts"),
    "code in tokenizer_config.json": (remote_code("tokenizer_config.json"), "condition"),
    "code in preprocessor_config.json": (remote_code("preprocessor_config.json"), "rollout"),
}


@pytest.mark.parametrize("case", CASES)
def test_damage_is_refused_in_one_line_that_names_the_file(
    case: str, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LOADED_BYTES", 0)  # what a folder of the real size is told without its weights
    damage, verb = CASES[case]
    if verb != "rollout":
        shutil.rmtree(world / "run")
        assert verb == "prompts" or start(world, "prompts") == 0
    name = damage(world / "omni")
    capsys.readouterr()
    assert start(world, verb) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and name in err.splitlines()[0] and err.count("error:") == 1
    assert str(world / "omni") in err and "Traceback" not in err
    assert cli.main(["doctor", "--model", str(world / "omni")]) == 1
    failures = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    assert failures and any(name in line for line in failures)
    assert not (world / "ran").exists()


def test_a_sound_folder_passes_and_says_what_is_needed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "omni" / "modeling_x.py").write_text(f"open({str(world / 'ran')!r}, 'w').close()\n")
    assert cli.main(["doctor", "--model", str(world / "omni"), "--json", "model.dtype=bfloat16"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] and told["problems"] == 0
    texts = [finding["text"] for finding in told["findings"]]
    assert any("tensors, all of the names and shapes that config.json asks for" in text for text in texts)
    assert "speakers: Chelsie, Ethan" in texts
    assert "modeling_x.py is no part of a Qwen2.5-Omni; it is never run" in texts
    needs = {f["text"].split(" needs")[0]: f["bytes"] for f in told["findings"] if "bytes" in f}
    assert needs.keys() == {"conditioning", "rollouts", "scores", "training", "choice", "evaluation"}
    assert needs["evaluation"] >= max(needs["rollouts"], needs["scores"])
    assert start(world, "rollout") == 0 and not (world / "ran").exists()


def test_a_rollout_from_cached_conditioning_reads_no_thinker(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = record_opens(monkeypatch)
    assert start(world, "rollout") == 0
    held = parts_by_shard(world / "omni")
    speaking = {file for file, parts in held.items() if parts != {"thinker"}}
    assert set(opened) & set(held) == speaking < set(held)
    for file in set(held) - speaking:
        (world / "omni" / file).unlink()
    assert start(world, "rollout") == 0


def test_weights_that_change_between_two_runs_of_a_process_are_loaded_again(world: Path, tmp_path: Path) -> None:
    assert start(world, "rollout") == 0
    model = ModelConfig(path=str(world / "omni"), device="cpu")
    before = generator_of(model)
    assert generator_of(model) is before
    shutil.rmtree(world / "omni")
    write_sharded(world / "omni", seed=5)
    assert not torch.equal(generator_of(model).omni.talker.codec_head.weight, before.omni.talker.codec_head.weight)


def no_adapter(world: Path) -> str:
    return str(world / "nowhere")


def adapter_of_another_model(world: Path) -> str:
    other = load_omni(ModelConfig(path=str(write_sharded(world / "3b", "3b")), device="cpu"), parts=("talker",))
    save_lora(attach_lora(other.talker, LoraSettings(r=2), base_model="Qwen/Qwen2.5-Omni-3B"), world / "adapter")
    return str(world / "adapter")


@pytest.mark.parametrize("adapter", [no_adapter, adapter_of_another_model])
def test_an_adapter_that_does_not_fit_is_refused_by_every_verb(
    adapter: Callable[[Path], str], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    override = f"model.adapter={adapter(world)}"
    config = str(world / "config.yaml")
    capsys.readouterr()
    assert cli.main(["rollout", "-c", config, "--run-dir", str(world / "run"), "-q", override]) == 1
    assert str(world) in capsys.readouterr().err
    assert cli.main(["doctor", "--model", str(world / "omni"), override]) == 1
    (failure,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    assert override.removeprefix("model.adapter=") in failure


def write_adapter(folder: Path, base: Path, name: str = "Qwen/Qwen2.5-Omni-7B") -> Path:
    talker = load_omni(ModelConfig(path=str(base), device="cpu"), parts=("talker",)).talker
    save_lora(attach_lora(talker, LoraSettings(r=2), base_model=name), folder)
    return folder


def only_a_foreign_tensor(adapter: Path) -> str:
    save_file({"a": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    return "adapter_model.safetensors"


def adapter_settings(**changes: object) -> Damage:
    return lambda adapter: edit(adapter / "adapter_config.json", lambda x: x.update(changes))


def settings_that_are_a_list(adapter: Path) -> str:
    (adapter / "adapter_config.json").write_text("[]")
    return "adapter_config.json"


ADAPTERS: dict[str, Damage] = {
    "a foreign tensor": only_a_foreign_tensor, "fewer targets": adapter_settings(target_modules=["q_proj"]),
    "another rank": adapter_settings(r=4), "a bracket": adapter_settings(target_modules="("),
    "code": adapter_settings(megatron_config={"a": 1}, megatron_core="this"), "a list": settings_that_are_a_list,
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_no_candidate_is_sampled_from_a_base_under_an_adapters_name(
    case: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = write_adapter(tmp_path / "adapter", world / "omni")
    name = ADAPTERS[case](adapter)
    for verb in ("rollout", "run"):
        command = [verb, "-c", str(world / "config.yaml"), "--run-dir", str(world / "run"), "-q"]
        assert cli.main([*command, f"model.adapter={adapter}"]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and name in err.splitlines()[0] and str(adapter) in err
        assert len(err.splitlines()) == 3 and "Traceback" not in err
    assert not list((world / "run").glob("rollouts/shard-*"))


@pytest.mark.parametrize("targets", ["'('", "'[query]'", "[]"])
def test_modules_that_cannot_be_trained_are_told_before_a_run(
    targets: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["run", "-c", str(world / "config.yaml"), "--run-dir", str(run), "-q"]
    assert cli.main([*command, f"train.lora.target_modules={targets}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: LoRA cannot be attached") and "train.lora.target_modules" in err
    assert not (run / "prompts").exists()


def test_an_adapter_for_another_geometry_is_named(world: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", write_sharded(tmp_path / "3b", "3b"), "Qwen/Qwen2.5-Omni-3B")
    talker = load_omni(ModelConfig(path=str(world / "omni"), device="cpu"), parts=("talker",)).talker
    with pytest.raises(CheckpointError) as raised:
        load_lora(talker, folder)
    assert raised.value.what.startswith("adapter_model.safetensors is an adapter of another geometry")
    assert "Qwen/Qwen2.5-Omni-3B" in str(raised.value)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="adapter_model.safetensors cannot be read"):
        load_lora(talker, folder)
