"""Export: a run on a checkpoint in the published layout, merged into it again, read by transformers and PEFT; cards."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from pipeline_helpers import write_world
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from said import sequence
from sharded_checkpoint import INDEX, parts_by_shard, write_sharded

from talker_rl import cli
from talker_rl.base.errors import TalkerRLError
from talker_rl.base.figures import span
from talker_rl.planning.command import size
from talker_rl.records.candidate import Candidate
from talker_rl.speech import merging
from talker_rl.speech.cache import ConditioningCache
from talker_rl.speech.config import SPEECH_SYSTEM_PROMPT, ModelConfig
from talker_rl.speech.lora import load_lora
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni, quiet_transformers
from talker_rl.speech.qwen2_5_omni.layout import collate
from talker_rl.speech.qwen2_5_omni.logps import token_logps
from talker_rl.speech.qwen2_5_omni.speaking_code import speaking_code
from talker_rl.speech.usage import Usage
from talker_rl.stages.export import EXAMPLE_TEXT
from talker_rl.store.shards import ShardFolder

LAYOUT = ("config.json", INDEX, "spk_dict.pt", "tokenizer.json", "tokenizer_config.json", "chat_template.json",
          "preprocessor_config.json", "generation_config.json")


def store_talker_in_float32(folder: Path) -> None:
    """So that merging rounds nothing."""
    for file in folder.glob("*.safetensors"):
        tensors = {k: v.float() if k.startswith("talker.") else v for k, v in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` (Talker stored in float32), ``base16`` (as published) and ``run``, trained two steps on the first."""
    folder = tmp_path_factory.mktemp("export")
    write_sharded(folder / "base16")
    shutil.copytree(folder / "base16", folder / "base")
    store_talker_in_float32(folder / "base")
    config = write_world(
        folder, model={"path": str(folder / "base"), "instruction": "Read aloud: {text}"},
        prompts={**{name: f"micro:{name}" for name in ("train", "dev", "eval")}, "speaker": None,
                 "limit": {"train": 4, "dev": 1, "eval": 2}}, eval={"seeds": 1},
        rollouts={"num_candidates": 4, "batch_size": 16, "shard_size": 4,
                  "sampling": {"max_new_tokens": 32, "min_new_tokens": 4, "top_k": 0, "top_p": 1.0, "temperature": 1.0,
                               "sequence_bias": [[[8294], 14.0]]}},
        train={"loss": {"type": "dpo", "beta": 0.1}, "lora": {"r": 2, "lora_alpha": 4},
               "args": {"max_steps": 2, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2,
                        "per_device_train_batch_size": 2, "lr_scheduler_type": "constant"}},
        report={"before_after": 0, "pairs": 0},
    )  # fmt: skip
    assert cli.main(["run", "-c", str(config), "--run-dir", str(folder / "run"), "-q", "--debug"]) == 0
    return folder


def export(*options: Any) -> int:
    return cli.main(["export", *map(str, options), "-q", "--debug"])


@torch.no_grad()
def logps(talker: Any, run: Path) -> torch.Tensor:
    """Of the run's candidates that ended by themselves: (B, T)."""
    candidates = [c for c in ShardFolder(run / "rollouts").read_all(Candidate) if c.codes]
    conditionings = ConditioningCache(run / "conditioning").load()
    examples = [sequence(conditionings[c.prompt_id], c.speech.ids) for c in candidates]
    return token_logps(talker, collate(examples))


def talker_of(folder: Path) -> Any:
    return load_omni(ModelConfig(path=str(folder)), parts=("talker",)).talker


def read_by_transformers(folder: Path, dtype: Any = torch.float32) -> Any:
    from transformers import Qwen2_5OmniForConditionalGeneration

    with quiet_transformers():
        return Qwen2_5OmniForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()


def code_of(folder: Path) -> str:
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert found
    return found[1]


def test_the_docs_show_the_code_of_the_cards() -> None:
    readme = Path(__file__).resolve().parents[1] / "docs" / "EXPORT.md"
    usage = Usage("exports/my-7b", "", "Chelsie", SPEECH_SYSTEM_PROMPT, "Please say: hello.")
    assert speaking_code(usage, adapter=False) in readme.read_text()


def trained_tensors(run: Path) -> set[str]:
    """Names, as stored, of the weights that the run's adapter changes."""
    lora = load_file(run / "train/default/adapter_model.safetensors")
    modules = {k.removeprefix("base_model.model.").removesuffix(".lora_B.weight") for k in lora if "lora_B" in k}
    return {f"talker.{name}.weight" for name in modules}


def header(file: Path) -> bytes:
    blob = file.read_bytes()
    return blob[: 8 + int.from_bytes(blob[:8], "little")]


def test_the_whole_checkpoint_in_its_original_layout(world: Path, tmp_path: Path) -> None:
    base, run, out = world / "base", world / "run", tmp_path / "out"
    assert export("--run-dir", run, "--merge", out) == 0
    for name in LAYOUT:
        assert (out / name).read_bytes() == (base / name).read_bytes(), name
    assert json.loads((out / "export.json").read_text())["kind"] == "checkpoint"
    parts = parts_by_shard(base)
    assert len(parts) >= 3 and any("talker" not in held for held in parts.values())
    assert {f.name for f in out.glob("*.safetensors")} == set(parts)
    trained, changed, linked = trained_tensors(run), set[str](), set[str]()
    for name in parts:
        assert header(out / name) == header(base / name)
        before, after = load_file(base / name), load_file(out / name)
        changed |= {key for key in before if not torch.equal(before[key], after[key])}
        if not trained & before.keys():
            linked.add(name)
        assert os.path.samefile(out / name, base / name) == (name in linked)
    assert changed == trained and 0 < len(linked) < len(parts)

    policy = logps(load_lora(talker_of(base), run / "train/default"), run)
    assert (policy - logps(talker_of(base), run)).abs().max() > 0.01
    reloaded = read_by_transformers(out)
    assert (logps(reloaded.talker, run) - policy).abs().max() <= 1e-5
    assert set(reloaded.speaker_map) == set(torch.load(base / "spk_dict.pt", weights_only=True))


def test_bfloat16_is_merged_in_float32_and_then_rounded(world: Path, tmp_path: Path, capsys: Any) -> None:
    base, adapter, out = world / "base16", world / "run/train/default", tmp_path / "out"
    assert cli.main(["export", str(adapter), "--model", str(base), "--merge", str(out), "--debug"]) == 0
    told = re.search(r"stored as BF16; rounding them moved the weights by ([\d.]+)% of the update's norm",
                     capsys.readouterr().err)
    exact = load_lora(talker_of(base), adapter).merge_and_unload().state_dict()
    original, stored, error, update = talker_of(base).state_dict(), {}, 0.0, 0.0
    for file in out.glob("*.safetensors"):
        with safe_open(file, framework="pt") as reader:
            mine = [key for key in reader.keys() if key.startswith("talker.")]
            stored |= {key.removeprefix("talker."): reader.get_tensor(key) for key in mine}
    for name, value in exact.items():
        assert stored[name].dtype == torch.bfloat16 and torch.equal(stored[name], value.to(torch.bfloat16))
        error += float((stored[name].float() - value).double().square().sum())
        update += float((value - original[name]).double().square().sum())
    assert told and float(told[1]) == pytest.approx(100 * (error / update) ** 0.5, abs=0.06)
    # eight bits of mantissa in the trained matrices: what rounding does to a log-prob, against what training did
    policy = logps(load_lora(talker_of(base), adapter), world / "run")
    difference = (logps(talker_of(out), world / "run") - policy).abs()
    assert difference.max() <= 0.1 and difference.mean() <= 0.01


def test_the_talker_in_float32_says_what_the_unmerged_adapter_says(world: Path, tmp_path: Path, capsys: Any) -> None:
    """The published layout, in bf16: the shards of the Talker get another header, and nothing is rounded."""
    base, run, out = world / "base16", world / "run", tmp_path / "out"
    options = ["export", "--run-dir", str(run), "--model", str(base), "--merge", str(out)]
    assert cli.main([*options, "--talker-dtype", "float32", "--dry-run"]) == 0
    promised = dict(re.findall(r"(model-\S+) +(\S+ .iB)  written anew", capsys.readouterr().out))
    assert cli.main([*options, "--talker-dtype", "float32", "--debug"]) == 0
    err = capsys.readouterr().err
    assert "tensors of the Talker changed, stored as F32" in err and "rounding" not in err and "dtype=torch" in err

    trained, parts, total = trained_tensors(run), parts_by_shard(base), 0
    for name in parts:
        before, after = load_file(base / name), load_file(out / name)
        assert before.keys() == after.keys() and os.path.samefile(base / name, out / name) == (name not in promised)
        for key, value in after.items():
            total += value.nbytes
            assert value.dtype == (torch.float32 if key in trained else before[key].dtype)
            assert torch.equal(value, before[key]) == (key not in trained)
        with safe_open(out / name, framework="pt") as reader:
            assert reader.metadata() == {"format": "pt"}
        if name in promised:
            assert promised[name] == size((out / name).stat().st_size)
    before, after = (json.loads((folder / INDEX).read_text()) for folder in (base, out))
    assert after["metadata"]["total_size"] == total > before["metadata"]["total_size"]
    assert after["weight_map"] == before["weight_map"]
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()

    policy = logps(load_lora(talker_of(base), run / "train/default"), run)
    assert (policy - logps(talker_of(base), run)).abs().max() > 0.01
    assert (logps(read_by_transformers(out).talker, run) - policy).abs().max() <= 1e-5
    rounded = read_by_transformers(out, dtype="auto")
    assert {p.dtype for p in rounded.talker.parameters()} == {torch.bfloat16}
    assert "dtype=torch.float32" in code_of(out) and compile(code_of(out), "card", "exec")
    assert cli.main(["doctor", "--model", str(out)]) == 0
    assert "warn  model: the talker is stored as BF16, F32" in capsys.readouterr().out

    assert cli.main(["export", "--run-dir", str(run), "--adapter", str(out), "--talker-dtype", "float32"]) == 2
    assert "belongs to --merge" in capsys.readouterr().err


def test_the_adapter_alone_and_peft_reads_it(world: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    out = tmp_path / "adapter"
    assert export("--run-dir", world / "run", "--adapter", out, "--base-name", "Qwen/Qwen2.5-Omni-7B") == 0
    assert sorted(f.name for f in out.iterdir()) == ["README.md", "adapter_config.json", "adapter_model.safetensors",
                                                     "export.json"]
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "Qwen/Qwen2.5-Omni-7B"
    policy = logps(load_lora(talker_of(world / "base"), world / "run/train/default"), world / "run")
    model = PeftModel.from_pretrained(talker_of(world / "base"), str(out)).eval()
    assert torch.equal(logps(model, world / "run"), policy)
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == "Qwen/Qwen2.5-Omni-7B" and card.data.library_name == "peft"
    assert card.data.license is None and "PeftModel.from_pretrained(model.talker" in code_of(out)
    assert "WARNING" not in card.text
    other = tmp_path / "other"
    assert export("--run-dir", world / "run", "--adapter", other, "--model", world / "base16") == 0
    assert "is not what the run was trained on" in (other / "README.md").read_text()


def test_full_weights_are_put_back_too(world: Path, tmp_path: Path) -> None:
    full, out = tmp_path / "full", tmp_path / "out"
    full.mkdir()
    state = {k: v.float() + 0.01 * torch.randn(v.shape, generator=torch.Generator().manual_seed(1))
             for k, v in talker_of(world / "base").state_dict().items()}
    save_file(state, full / "model.safetensors")
    assert export(full, "--model", world / "base", "--merge", out) == 0
    assert all(torch.equal(v, state[k]) for k, v in talker_of(out).state_dict().items())
    with pytest.raises(TalkerRLError, match="full weights and no adapter"):
        export(full, "--model", world / "base", "--adapter", tmp_path / "adapter")


def test_the_card_says_where_it_comes_from(world: Path, tmp_path: Path) -> None:
    run, out = world / "run", tmp_path / "out"
    assert export("--run-dir", run, "--merge", out, "--base-name", "Qwen/Qwen2.5-Omni-3B") == 0
    manifest = json.loads((run / "manifest.json").read_text())
    summary = json.loads((run / "eval/default/summary.json").read_text())
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == "Qwen/Qwen2.5-Omni-3B" and card.data.library_name == "transformers"
    (result,) = card.data.eval_results
    assert result.metric_type == "wer" and result.metric_value == round(summary["trained"]["wer"], 5)
    low, high = summary["wer_diff_ci95"]
    for expected in (
        manifest["config_hash"], manifest["stages"]["prompts"]["inputs"]["prompts.train"], f"seed {manifest['seed']}",
        manifest["stages"]["round1/train/default"]["inputs"]["model"], "train prompts: 4 of",
        '"type": "dpo"', '"max_steps": 2',
        f" points {span((low, high), '{:+.2%}')} |",
        "round 1: from the base, reference the base", "log-probs of 4 of the run's",
        f"transformers {manifest['commands'][-1]['versions']['transformers']}",
    ):
        assert expected in card.text, expected


def test_a_dry_run_writes_nothing_and_tells_sizes(world: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    options = ["export", "--run-dir", str(world / "run"), "--merge", str(out)]
    assert cli.main([*options, "--dry-run"]) == 0
    told = capsys.readouterr().out
    parts, trained = parts_by_shard(world / "base"), trained_tensors(world / "run")
    for name in parts:
        anew = bool(trained & load_file(world / "base" / name).keys())
        assert re.search(rf"{name} +[\d.]+ .iB  {'written anew' if anew else 'as it is'}", told)
    assert not out.exists() and not list(tmp_path.iterdir())
    assert cli.main([*options, "--copy", "--no-check", "-q"]) == 0
    assert not any(os.path.samefile(out / name, world / "base" / name) for name in parts)


def test_what_exists_is_kept(world: Path, tmp_path: Path, capsys: Any) -> None:
    run, mine = world / "run", tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    options = ["export", "--run-dir", str(run), "--no-check", "-q", "--adapter"]
    for target, more, message in (
        (mine, [], "OUT exists"), (mine, ["--overwrite"], "not an earlier export"),
        (mine / "thesis.txt" / "a" / "b", [], "below a file"),
        (run, ["--overwrite"], "holds what is exported"), (run / "train", ["--overwrite"], "holds what is exported"),
    ):
        assert cli.main([*options, str(target), *more]) == 1
        assert message in capsys.readouterr().err
    assert (mine / "thesis.txt").read_text() == "precious"
    out = tmp_path / "out"
    for whole in (out, out / "whole"):  # the second would be written over the first, or into it
        assert cli.main([*options, str(out), "--merge", str(whole)]) == 2
        assert "write into each other" in capsys.readouterr().err
    assert not out.exists()
    assert cli.main([*options, str(out)]) == 0
    (out / "stale").write_text("")
    assert cli.main([*options, str(out)]) == 1 and cli.main([*options, str(out), "--overwrite"]) == 0
    assert not (out / "stale").exists() and sorted(f.name for f in tmp_path.iterdir()) == ["mine", "out"]


def test_a_full_disk_is_told(world: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from collections import namedtuple

    options = ["export", "--run-dir", str(world / "run"), "--no-check", "-q", "--merge", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "free")(1000))
        assert cli.main(options) == 1
    assert "the export needs" in capsys.readouterr().err

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging.shutil, "copyfile", full)
    assert cli.main(options) == 1
    assert "The disk is full" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "message"), [
    (["--run-dir", "RUN"], "Nothing to write"),
    (["--merge", "OUT"], "Name one source"),
    (["--run-dir", "RUN", "--variant", "sft", "--merge", "OUT"], "no variant 'sft'"),
    (["--run-dir", "base", "--merge", "OUT"], "no run in this folder"),
    (["nowhere", "--merge", "OUT"], "no such folder"),
    (["RUN/train/default", "--model", "micro", "--merge", "OUT"], "(not in the checkpoint|another geometry)"),
])  # fmt: skip
def test_mistakes_are_one_message(
    world: Path, tmp_path: Path, capsys: Any, options: list[str], message: str
) -> None:
    places = {"RUN": world / "run", "OUT": tmp_path / "out", "base": world / "base"}
    given = [str(places[head] / tail if tail else places[head]) if (head := o.partition("/")[0]) in places else o
             for o in options for tail in [o.partition("/")[2]]]
    assert cli.main(["export", *given, "-q"]) in (1, 2)
    assert re.search(message, capsys.readouterr().err) and not list(tmp_path.iterdir())


def test_the_cards_code_speaks_in_plain_transformers(tmp_path: Path, monkeypatch: Any) -> None:
    """The micro model with a small adapter: transformers' own generate, the sound of talker_rl's decode, understood."""
    import numpy as np
    import soundfile
    import soxr
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavModel as Token2Wav

    from talker_rl.reward.asr.registry import build_recognizer
    from talker_rl.reward.config import RecognizerConfig
    from talker_rl.speech.config import LoraSettings
    from talker_rl.speech.lora import attach_lora, save_lora
    from talker_rl.speech.qwen2_5_omni import token2wav

    talker = load_omni(ModelConfig(path="micro"), parts=("talker",)).talker
    model = attach_lora(talker, LoraSettings(r=2), base_model="micro")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 1e-3, generator=torch.Generator().manual_seed(0))
    save_lora(model, tmp_path / "lora")
    assert export(tmp_path / "lora", "--merge", tmp_path / "merged", "--adapter", tmp_path / "adapter") == 0

    forward, seen = Token2Wav.forward, {}

    def listen(self: Any, codes: torch.Tensor, **more: Any) -> torch.Tensor:
        noise = token2wav.utterance_noise(1, 2 * codes.shape[1], 80)[None]
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", lambda size, **_: noise.reshape(size).clone())
            wave = forward(self, codes, **more)
        seen.update(codes=codes[0].tolist(), speaker={"cond": more["conditioning"], "ref_mel": more["reference_mel"]})
        return wave

    monkeypatch.setattr(Token2Wav, "forward", listen)
    monkeypatch.chdir(tmp_path)
    recognizer = build_recognizer(RecognizerConfig(path="micro:eval"))
    for kind in ("merged", "adapter"):
        torch.manual_seed(0)
        names: dict[str, Any] = {}
        with quiet_transformers():
            exec(code_of(tmp_path / kind).replace(EXAMPLE_TEXT, "bottle captain village."), names)
        wave, rate = soundfile.read("speech.wav", dtype="float32")
        assert rate == 24000 and len(wave) == 480 * len(seen["codes"])
        mine = token2wav.decode(names["model"].token2wav, [seen["codes"]], [seen["speaker"]], [1])[0]
        assert np.abs(mine - names["wave"].numpy()).max() <= 1e-5 and np.abs(mine).max() > 0.05
        (heard,) = recognizer.transcribe([soxr.resample(wave, 24000, 16000)], "en")
        assert len({"bottle", "captain", "village"} & set(heard.tokens)) >= 2, heard  # the base stumbles now and then
