"""Stages after each other: a run that begins with another's adapter, and rounds whose reference moves or is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from pipeline_helpers import write_world
from safetensors.torch import load_file, save_file
from train_helpers import losses, make_config, make_generator, make_pairs

from talker_rl import cli
from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.config import load_data
from talker_rl.data.pairs import is_held_out
from talker_rl.records.pair import Completion, Pair
from talker_rl.records.score import ScoreRow
from talker_rl.report.page import round_rows
from talker_rl.speech.lora import resolve_adapter
from talker_rl.store.shards import ShardFolder
from talker_rl.train.run import train_variant

TRAIN = {"data": "best_of_n", "loss": {"type": "sft"},
         "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
         "args": {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2,
                  "per_device_train_batch_size": 2}}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder of the world, folder of a finished run of stage 1)."""
    world = tmp_path_factory.mktemp("chain")
    config = write_world(world, train=TRAIN, checkpoint={"select": "best", "tried": "selected", "held_out_share": 0.4})
    assert cli.main(["run", "-c", str(config), "--run-dir", str(world / "one"), "-q", "--debug"]) == 0
    return world, world / "one"


def test_stage_1_imitates_its_own_best_and_measures_what_it_held_out(first: tuple[Path, Path]) -> None:
    _, run = first
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert list(stages)[4:6] == ["completions/best_of_n", "round1/train/default"] and "pairs" not in stages
    completions = ShardFolder(run / "completions/best_of_n").read_all(Completion)
    scores = {row["candidate_id"]: row for row in ShardFolder(run / "scores").all_rows()}
    for c in completions:
        rivals = [row["reward"] for row in scores.values() if row["prompt_id"] == c.prompt_id and row["reward"]]
        assert c.speech.stop_id in (8292, 8294) and c.reward == scores[c.origin]["reward"] and c.rank == 1
        assert c.reward <= max(rivals)
    held = [c for c in completions if is_held_out(c.prompt_id, 0.4)]
    assert 0 < len(held) < len(completions)
    assert stages["round1/train/default"]["counts"] == {
        "pairs": len(completions) - len(held), "held_out": len(held), "steps": 6}
    summary = json.loads((run / "eval/summary.json").read_text())
    assert summary["nll_of"]["completions"] == len(held)
    # the same figure as the training's own, on the same held-out codes: mean of sequences there, of codes here
    logged = [json.loads(line) for line in (run / "train/default/log.jsonl").read_text().splitlines()]
    tried = {row["step"]: row["eval_loss"] for row in logged if "eval_loss" in row}
    choice = json.loads((run / "round1/choice/default/choice.json").read_text())
    assert set(tried) == {2, 4, 6} and choice["step"] == min(tried, key=lambda step: (tried[step], step))
    assert [row["step"] for row in choice["checkpoints"]] == [0, choice["step"]]  # no other one spoke
    rows = list(ShardFolder(run / "likelihood/default").all_rows())
    mean = sum(-row["trained_logp"] / row["tokens"] for row in rows) / len(rows)
    assert mean == pytest.approx(tried[choice["step"]], abs=1e-4)
    page = (run / "report/index.html").read_text()
    assert "held-out codes, nats per code" in page and "completions" in page


def test_each_sound_of_the_page_shows_the_words_at_their_times(first: tuple[Path, Path]) -> None:
    run = first[1]
    page = (run / "report/index.html").read_text()
    strips = [json.loads(data) for data in re.findall(r'class="strip-data">(.*?)</script>', page)]
    shown = [[tuple(mark[:2]) for mark in strip["marks"] if mark[2] in ("right", "S", "I")] for strip in strips]
    judged = [row["spans"] for name in ("base", "default") for row in ShardFolder(run / "eval" / name).all_rows()]
    times = [list(zip(flat[::2], flat[1::2], strict=True)) for flat in judged]
    times += [row.spans for row in ShardFolder(run / "scores").read_all(ScoreRow)]
    rounded = [[(round(start, 3), round(end, 3)) for start, end in spans] for spans in times]
    assert len(strips) == page.count("<audio") and all(spans in rounded for spans in shown)
    assert any(shown[:4]) and any(shown[4:])  # before and after, then what was imitated


@pytest.fixture(scope="module")
def second(first: tuple[Path, Path]) -> Path:
    """Folder of a finished run of two rounds that began with the first's adapter and kept it as reference."""
    world, one = first
    config = write_world(world / "b", model={"adapter": str(one)}, iterations=2, reference="kept",
                         rollouts={"prompts_per_round": 4}, checkpoint={"tried": "last"})
    assert cli.main(["run", "-c", str(config), "--run-dir", str(world / "two"), "-q", "--debug"]) == 0
    return world / "two"


def test_stage_2_begins_where_stage_1_ended(
    first: tuple[Path, Path], second: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = first[1], second
    spoken = [[row["transcript"] for row in ShardFolder(run / "eval" / name).all_rows()]
              for run, name in ((one, "default"), (two, "base"))]
    assert spoken[0] == spoken[1]  # the base of a stage is what the stage before it made
    begun = json.loads((two / "round1/train/default/variant.json").read_text())
    assert begun["start_adapter"] == str(one / "train/default") and "reference" not in begun
    later = json.loads((two / "round2/train/default/variant.json").read_text())
    assert later["reference"] == str(one / "train/default") and later["start_adapter"] != later["reference"]
    starts = [rows[0][1] for index in (1, 2)
              if (rows := losses(two / f"round{index}/train/default", "rewards/margins"))]
    assert abs(starts[0]) < 1e-5 < abs(starts[1])  # kept: round 2 is measured against the run's start
    weights = load_file(two / "train/default/adapter_model.safetensors")
    assert {t.shape[0] for n, t in weights.items() if "lora_A" in n} == {2}
    summary = json.loads((two / "eval/summary.json").read_text())
    table = summary["rounds"]
    assert [row["round"] for row in table] == [0, 1, 2]
    for row in table[1:]:
        choice = json.loads((two / f"round{row['round']}/choice/default/choice.json").read_text())
        kept = next(r for r in choice["checkpoints"] if r["step"] == choice["step"])
        pairs = two / ("pairs" if row["round"] == 1 else "round2/default/pairs")
        assert (row["wer"], row["duration_mean"]) == (kept["wer"], kept["duration_mean"])
        assert row["pairs"] == len(ShardFolder(pairs).read_all(Pair))
        assert row["duration_ratio_to_start"] == pytest.approx(row["duration_mean"] / table[0]["duration_mean"])
    assert [cells[0] for cells in round_rows(summary)] == ["round", "0", "1", "2"]
    page = (two / "report/index.html").read_text()
    assert "Round by round" in page and f"<dt>begins with</dt><dd>{one.name}</dd>" in page and f"{one}" not in page
    assert cli.main(["eval", "--run-dir", str(two), "-q"]) == 0
    assert "round 0 is the policy as the run began" in capsys.readouterr().out


def test_diagnostics_know_the_kept_reference_and_refuse_completions(
    first: tuple[Path, Path], second: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((second / "reference").rglob("*.safetensors"))
    assert cli.main(["diagnose", "--run-dir", str(second), "-q", "--debug"]) == 0
    assert sorted((second / "reference").rglob("*.safetensors")) == before  # what training measured against
    start = [row for row in pq.read_table(second / "diagnostics/default/pairs.parquet").to_pylist() if row["step"] == 0]
    moved = [abs(row["policy_chosen_logp"] - row["ref_chosen_logp"]) for row in start]
    assert start and max(moved) > 1e-3  # round 2 does not begin with the reference
    logged = losses(second / "round2/train/default", "rewards/margins")[0][1]
    margins = [row["margin_raw"] for row in start]
    assert min(margins) - 1e-4 <= logged / 0.1 <= max(margins) + 1e-4
    capsys.readouterr()
    assert cli.main(["diagnose", "--run-dir", str(first[1]), "-q"]) == 1
    assert "default was trained on completions" in capsys.readouterr().err


def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_done(
    first: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, one = first
    other = tmp_path / "other"
    other.mkdir()
    source = one / "train/default"
    (other / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    tensors = load_file(source / "adapter_model.safetensors")
    save_file({n: torch.zeros(2, t.shape[1] + 8) if "lora_A" in n else t for n, t in tensors.items()},
              other / "adapter_model.safetensors")
    for adapter, told in ((other, "another geometry"), (world / "no", "no adapter"), (tmp_path, "no adapter here")):
        run = tmp_path / "run"
        assert cli.main(["run", "-c", str(world / "config.yaml"), "--run-dir", str(run), "-q",
                         f"model.adapter={adapter}"]) == 1
        message = capsys.readouterr().err
        assert told in message and str(adapter) in message
        assert not run.exists()
    with pytest.raises(ConfigError, match="model.adapter is trained on, which needs LoRA"):
        load_data({"model": {"adapter": str(one)}, "train": {"lora": None}})


def test_a_runs_folder_stands_for_its_only_adapter(first: tuple[Path, Path], tmp_path: Path) -> None:
    _, one = first
    assert resolve_adapter(one) == resolve_adapter(one / "train/default") == one / "train/default"
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="several adapters.*") as error:
        resolve_adapter(tmp_path)
    assert str(tmp_path / "train/b") in (error.value.fix or "")


def test_codes_from_a_file_are_trained_on_without_sampling(first: tuple[Path, Path], tmp_path: Path) -> None:
    world, one = first
    texts = {row["prompt_id"]: row["text"] for row in ShardFolder(one / "prompts").rows(0)}
    rows = [{"text": texts[row["prompt_id"]], "codes": row["codes"]} for row in ShardFolder(one / "rollouts").all_rows()
            if row["end_reason"] == "eos" and row["codes"]]
    (tmp_path / "codes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    command = ["-c", str(world / "config.yaml"), "--run-dir", str(run), "-q", "--debug", "train.data=file",
               f"prompts.train={tmp_path / 'codes.jsonl'}", "train.args.max_steps=2", "train.args.save_steps=2"]
    for verb in ("prompts", "condition", "pair", "train"):
        assert cli.main([verb, *command]) == 0
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert list(stages) == ["prompts", "conditioning", "completions/file", "round1/train/default",
                            "round1/choice/default"]
    assert stages["completions/file"]["counts"]["completions"] == len({(r["text"], *r["codes"]) for r in rows})


@pytest.mark.parametrize("kind", ["base", "another"])
def test_the_reference_may_be_another_than_the_start(tmp_path: Path, kind: str) -> None:
    pairs, conditionings = make_pairs(8)
    generator = make_generator()
    cfg = make_config(args={"max_steps": 3, "learning_rate": 3e-2})
    run = dict(progress=False, reference_cache=tmp_path / "cache")
    train_variant(generator, pairs, conditionings, cfg, tmp_path / "one", **run)
    train_variant(generator, pairs, conditionings, cfg, tmp_path / "two", start_adapter=tmp_path / "one", **run)
    kept = train_variant(generator, pairs, conditionings, cfg, tmp_path / "three", start_adapter=tmp_path / "two",
                         reference="base" if kind == "base" else tmp_path / "one", **run)
    # its log-probs were there already: the base's from the first training, the first adapter's from the second
    assert kept["reference"] == {"hit": 16, "computed": 0}
    margin = losses(tmp_path / "three", "rewards/margins")[0][1]
    before = losses(tmp_path / ("one" if kind == "base" else "two"), "rewards/margins")[-1][1]
    assert margin > 0.05 and before > 0.02  # it begins where the trainings before it had come
    settings = json.loads((tmp_path / "three/variant.json").read_text())
    assert settings["reference"] == ("the base" if kind == "base" else str(tmp_path / "one"))
    with pytest.raises(ConfigError, match="training begins without one"):
        train_variant(generator, pairs, conditionings, cfg, tmp_path / "four", reference=tmp_path / "one", **run)
