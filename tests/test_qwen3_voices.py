"""Voices of one's own for Qwen3-Omni: added, listed, spoken with, exported; mistakes are told before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import write_world
from qwen3_factory import SPEAKERS, tiny_qwen3, write_checkpoint
from safetensors.torch import save_file
from transformers import Qwen3OmniMoeForConditionalGeneration

import talker_rl
from talker_rl import cli
from talker_rl.base.errors import CheckpointError
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.qwen3_omni.checkpoint import part_hash
from talker_rl.speech.qwen3_omni.merge import MERGE
from talker_rl.speech.qwen3_omni.speaking_code import speaking_code
from talker_rl.speech.qwen3_omni.voices import Voice, read_voices, write_voices
from talker_rl.speech.registry import family_of
from talker_rl.speech.usage import Usage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("qwen3"), tiny_qwen3())


@pytest.fixture
def add(folder: Path) -> Any:
    def run(out: Path, *more: str, name: str = "Nova", mix: tuple[str, ...] = ("Ann:3", "Bob")) -> int:
        return cli.main(["speaker", "add", "--model", str(folder), "--name", name, "-o", str(out), "--no-sound", *more,
                         *(["--cond-from", *mix] if mix else [])])

    return run


def test_a_voice_is_mixed_and_spoken_with(folder: Path, tmp_path: Path, add: Any, capsys: Any) -> None:
    first, both = tmp_path / "one.safetensors", tmp_path / "both.safetensors"
    assert add(first) == 0
    assert add(both, f"model.speakers={first}", name="Other", mix=("Nova",)) == 0
    settings = ModelConfig(path=str(folder), device="cpu", speakers=str(both), system_prompt="")
    plain = settings.model_copy(update={"speakers": None})
    generator: Any = talker_rl.load(settings)
    rows = generator.model.talker.model.codec_embedding.weight
    before = talker_rl.load(plain, parts=("talker",)).model.talker.model.codec_embedding.weight  # type: ignore[attr-defined]
    ann, bob = (before[SPEAKERS[name]] for name in ("ann", "bob"))
    assert torch.allclose(rows[3000], 0.75 * ann + 0.25 * bob, atol=1e-6) and torch.equal(rows[3001], rows[3000])
    assert torch.equal(rows[:3000], before[:3000]) and torch.equal(rows[3002:], before[3002:])
    seen = generator.condition([Prompt("stop.", speaker="Nova"), Prompt("stop.", speaker="Ann")])
    assert [one.speaker_id for one in seen] == [3000, SPEAKERS["ann"]]
    family = family_of(folder)
    assert family.speakers(settings) == ["Ann", "Bob", "Nova", "Other"]
    assert family.own_speakers(settings) == ["Ann", "Bob"]
    assert part_hash(settings, "talker") != part_hash(plain, "talker")
    assert part_hash(settings, "code2wav") == part_hash(plain, "code2wav")
    capsys.readouterr()
    assert cli.main(["speaker", "list", "--model", str(folder), f"model.speakers={both}"]) == 0
    assert "Nova        3000        file" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, mix, name, told",
    [
        (("--wav", __file__), ("Ann",), "Nova", "row of the Talker"),
        (("--bos-token", "7"), ("Ann",), "Nova", "--bos-token"),
        ((), (), "Nova", "Whose voice"),
        ((), ("Ann", "Carl"), "Nova", "'Carl' is no speaker"),
        ((), ("Ann:much",), "Nova", "'Ann:much' is no speaker and no NAME:WEIGHT"),
        ((), ("Ann:nan", "Bob"), "Nova", "'Ann:nan' is no speaker"),
        ((), ("Ann:inf", "Bob"), "Nova", "'Ann:inf' is no speaker"),
        ((), ("Ann:0",), "Nova", "add up to 0"),
        ((), ("Ann",), "Bob", "There is a speaker 'Bob' already"),
        ((), ("Ann",), "McAdam", "write Mcadam"),
    ],
)
def test_a_voice_that_cannot_be_is_told(
    tmp_path: Path, add: Any, capsys: Any, more: tuple[str, ...], mix: tuple[str, ...], name: str, told: str
) -> None:
    assert add(tmp_path / "out.safetensors", *more, mix=mix, name=name) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_where_it_may_be_written(folder: Path, tmp_path: Path, add: Any, capsys: Any) -> None:
    (there := tmp_path / "there.safetensors").write_bytes(b"")
    for out, told in ((folder / "nova.safetensors", "the checkpoint itself"), (tmp_path / "nova.pt", ".safetensors"),
                      (there, "there already")):
        assert add(out) == 2
        assert told in capsys.readouterr().err
    assert add(there, "--overwrite") == 0 and there.stat().st_size > 0


@pytest.mark.parametrize(("content", "told"), [
    (b"spk_dict", "no file of voices"), ('["Nova"]', "no file of voices"), ('{"Nova": "3000"}', "no file of voices"),
    ('{"Nova": 3000.5}', "no file of voices"), ('{"Nova": true}', "no file of voices"),
    ({"Nova": (3000, 7)}, "of another Talker"), ({"Nova": (9999, 32)}, "row 9999, which is none for voices"),
    ({"Nova": (5, 32)}, "row 5, which"), ({"Nova": (-1, 32)}, "row -1, which"),
    ({"Nova": (2150, 32)}, "row 2150, which"),
    ({"Nova": (SPEAKERS["ann"], 32)}, "none for voices"), ({"Ann": (3000, 32)}, "has the name of the checkpoint's own"),
    ({"Nova": (3000, 32), "Zed": (3000, 32)}, "the voice Nova is on row 3000, as Zed is"),
    ({"Nova": (3000, -32)}, "has values that are not finite"),
])
def test_a_file_of_other_voices_is_refused(folder: Path, tmp_path: Path, content: Any, told: str) -> None:
    file = tmp_path / "nova.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, str):
        save_file({"rows": torch.zeros(1, 32)}, str(file), metadata={"voices": content})
    else:
        values = {name: torch.full((abs(width),), 0.0 if width > 0 else torch.nan)
                  for name, (_, width) in content.items()}
        write_voices({name: Voice(row, values[name]) for name, (row, _) in content.items()}, file)
    with pytest.raises(CheckpointError, match=told):
        talker_rl.load(ModelConfig(path=str(folder), device="cpu", speakers=str(file)), parts=("talker",))


def test_a_voice_that_is_another_is_warned_of(tmp_path: Path, add: Any, capsys: Any) -> None:
    assert add(tmp_path / "one.safetensors", mix=("Ann",)) == 0
    assert "cannot tell Nova from Ann" in capsys.readouterr().out
    assert add(tmp_path / "two.safetensors", mix=("Ann:0.5", "Ann:0.5", "Bob")) == 0
    assert "cannot tell" not in capsys.readouterr().out


def test_what_was_trained_of_a_voice_stands(folder: Path, tmp_path: Path, add: Any) -> None:
    """Full weights that were trained with it hold its row: the file's, which it began with, does not go over it."""
    file, trained = tmp_path / "nova.safetensors", tmp_path / "trained"
    assert add(file) == 0
    settings = ModelConfig(path=str(folder), device="cpu", speakers=str(file))
    generator: Any = talker_rl.load(settings, parts=("talker",))
    with generator.policy(train="full") as policy:
        with torch.no_grad():
            policy.module.model.codec_embedding.weight[3000] = 7.0
        policy.save(trained)
    rows = MERGE.merged_talker(trained, settings).model.codec_embedding.weight
    assert bool((rows[3000] == 7).all())
    again: Any = talker_rl.load(settings.model_copy(update={"talker": str(trained)}), parts=("talker",))
    assert bool((again.part("talker").model.codec_embedding.weight[3000] == 7).all())
    # (a Talker that was trained before there was the voice gets it)
    plain: Any = talker_rl.load(settings.model_copy(update={"speakers": None}), parts=("talker",))
    with plain.policy(train="full") as policy:
        policy.save(tmp_path / "before")
    later: Any = talker_rl.load(settings.model_copy(update={"talker": str(tmp_path / "before")}), parts=("talker",))
    held = generator.part("talker").model.codec_embedding.weight[3000]
    assert torch.equal(later.part("talker").model.codec_embedding.weight[3000], held)


def test_exports_have_the_voice(folder: Path, tmp_path: Path, add: Any, capsys: Any) -> None:
    """A merged checkpoint speaks with it in plain transformers; beside an adapter lies its file, and the code that uses
    it."""
    file = tmp_path / "nova.safetensors"
    assert add(file) == 0
    sampling = {"max_new_tokens": 12, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "sequence_bias": [[[2150], 9.0]]}
    config = write_world(
        tmp_path, model={"path": str(folder), "device": "cpu", "speakers": str(file)},
        rollouts={"num_candidates": 3, "batch_size": 6, "shard_size": 4, "sampling": sampling},
        train={"loss": {"type": "dpo"}, "lora": {"r": 2}, "args": {"max_steps": 1, "save_steps": 1}})
    run = tmp_path / "run"
    assert cli.main(["run", "-c", str(config), "--run-dir", str(run), "-q", "prompts.speaker=Nova"]) == 0
    assert cli.main(["export", "--run-dir", str(run), "--merge", str(tmp_path / "merged")]) == 0
    assert cli.main(["export", "--run-dir", str(run), "--adapter", str(tmp_path / "adapter")]) == 0
    whole = Qwen3OmniMoeForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert whole.config.talker_config.speaker_id == {**SPEAKERS, "nova": 3000}
    held = read_voices(tmp_path / "adapter/voices.safetensors", whole.config)["Nova"]
    assert torch.equal(whole.talker.model.codec_embedding.weight[3000], held.values)
    lineage = json.loads((tmp_path / "merged/export.json").read_text())
    assert lineage["speakers"] == ["Ann", "Bob", "Nova"]

    code = speaking_code(Usage(folder=str(tmp_path / "adapter"), base=str(folder), speaker="Nova", system="", user="go",
                               own_speakers=True, dtype="torch.float32"), adapter=True)
    ready = code[: code.index("tokenizer = ")].replace('device_map="auto"', 'device_map="cpu"')
    names: dict[str, Any] = {"torch": torch}
    exec(compile(ready, "card", "exec"), names)  # as a reader of the card would
    table = names["model"].talker.model.codec_embedding.weight
    assert torch.equal(table[3000], held.values) and names["model"].config.talker_config.speaker_id["nova"] == 3000
