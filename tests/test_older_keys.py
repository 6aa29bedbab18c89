"""Keys of an earlier version: files, overrides and manifests mean what they meant, and one line says what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from talker_rl.base.errors import ConfigError
from talker_rl.config import RunConfig, load_config, load_data
from talker_rl.older_keys import recorded
from talker_rl.stages.order import all_stages
from talker_rl.sweep_config import load_sweep, load_sweep_data
from talker_rl.train.config import TrainConfig

HELD_OUT = {"held_out_share": 0.1}
PAIRS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"dev": {"metric": "wer", "checkpoints": "last", "keep": "last", "num_candidates": 3}},
     {"checkpoint": {"metric": "wer", "tried": "last", "keep": "last", "num_candidates": 3}}),
    ({"train": {"loss": {"type": "ipo", "beta": 1.0}, "select": "best", "patience": 2}, "dev": HELD_OUT},
     {"train": {"loss": {"type": "ipo", "beta": 1.0}},
      "checkpoint": {"select": "best", "early_stopping_patience": 2, **HELD_OUT}}),
    ({"train": {"style": {"select": "best", "select_metric": "eval_rewards/accuracies"}, "style-s2": {"lora": None}},
      "dev": HELD_OUT},
     {"variants": {"style": {"checkpoint": {"select": "best", "metric_for_best_model": "eval_rewards/accuracies"}},
                   "style-s2": {"lora": None}}, "checkpoint": HELD_OUT}),
    ({"train": {"default": {"loss": {"type": "dpo", "label_smoothing": 0.1}, "data": None}}},
     {"train": {"loss": {"type": "dpo", "label_smoothing": 0.1}, "data": None}}),
    ({"train": {"dpo": {}, "sft": {"data": "best_of_n"}}}, {"variants": {"dpo": {}, "sft": {"data": "best_of_n"}}}),
]


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_what_was_written_so_is_read_as_what_is_written_now(
    old: dict[str, Any], new: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = load_data(new)
    assert capsys.readouterr().err == ""
    assert load_data(old) == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: config: keys of an earlier version") and "write now:" in line
    assert load_data(expected.resolved()) == expected and capsys.readouterr().err == ""
    assert recorded(expected.resolved())[1].keys() == recorded(old)[1].keys() == expected.variants.keys()


@pytest.mark.parametrize(("old", "new"), [
    ("train.default.loss.beta=0.2", "train.loss.beta=0.2"),
    ("train.select=best", "checkpoint.select=best"),
    ("train.default.patience=3", "checkpoint.early_stopping_patience=3"),
    ("dev.metric=wer", "checkpoint.metric=wer"),
    ("dev.checkpoints=last", "checkpoint.tried=last"),
    ("dev={keep: last, checkpoints: last}", "checkpoint={keep: last, tried: last}"),
    ("train={select: best, args: {max_steps: 3}}", "checkpoint.select=best train.args.max_steps=3"),
    ("train.ipo={loss: {type: ipo}, select: best}", "variants.ipo={loss: {type: ipo}, checkpoint: {select: best}}"),
    ("train.ipo.loss.type=ipo", "variants.ipo.loss.type=ipo"),
])
def test_an_override_likewise(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = {"train": {"loss": {"type": "dpo", "beta": 0.3}}, "checkpoint": HELD_OUT}
    expected = load_data(base, new.split(" ") if "={" not in new else [new])
    assert capsys.readouterr().err == ""
    assert load_data(base, [old]) == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert new.partition("=")[0] in line and f"(not {old.partition('=')[0]}" in line


def test_files_of_both_kinds_extend_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.yaml").write_text("train: {loss: {type: dpo, beta: 0.3}, select: best}\n"
                                       "dev: {metric: wer, held_out_share: 0.1}\n")
    (tmp_path / "new.yaml").write_text("extends: old.yaml\ncheckpoint: {metric: reward}\ntrain: {lora: {r: 4}}\n")
    config = load_config([tmp_path / "new.yaml"], ["dev.keep=last"])
    assert (config.checkpoint.metric, config.checkpoint.keep, config.checkpoint.select) == ("reward", "last", "best")
    assert config.variants["default"].loss == {"type": "dpo", "beta": 0.3}
    assert len(capsys.readouterr().err.splitlines()) == 1
    (tmp_path / "mixed.yaml").write_text("train: {args: {max_steps: 3}, sft: {loss: {type: sft}}}\n")
    with pytest.raises(ConfigError, match=r"`train.args` is of every training, and `train.sft` of one") as caught:
        load_config([tmp_path / "mixed.yaml"])
    assert caught.value.fix == "write what is sft's own as variants.sft"


def test_a_sweep_likewise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text(
        "run: {train: {default: {args: {max_steps: 4}}}, dev: {num_candidates: 1}}\n"
        "variants: {dpo: {}, ipo: {loss: {type: ipo}, chosen_drop_stop: true}}\narms: {a: {}}\n")
    old = load_sweep([tmp_path / "s.yaml"], ["run.train.default.lora.r=4", "run.dev.metric=wer"])
    assert len(capsys.readouterr().err.splitlines()) == 1
    new = load_sweep_data({
        "run": {"train": {"args": {"max_steps": 4}, "lora": {"r": 4}},
                "checkpoint": {"num_candidates": 1, "metric": "wer"}},
        "variants": {"dpo": {}, "ipo": {"loss": {"type": "ipo"}, "chosen_drop_stop": True}}, "arms": {"a": {}}})
    assert old == new == load_sweep_data(new.resolved()) and capsys.readouterr().err == ""
    assert new.resolved()["variants"]["dpo"] == {"loss": {"type": "dpo", "beta": 0.1}}
    run = new.arm_run("a")
    assert RunConfig.model_validate(run.resolved()) == run and run.variants["ipo-s1"].args["seed"] == 1
    with pytest.raises(ConfigError, match="changes nothing: every variant has its own"):
        load_sweep_data(new.resolved(), ["run.train.loss={type: sft}"])


def test_what_is_hashed_has_the_names_that_it_had() -> None:
    """Finished runs go on: a stage's key holds settings by name."""
    config = load_data(PAIRS[2][1])
    assert config.checkpoint.hashed() == {"metric": "reward", "num_candidates": 2, "checkpoints": "all", "keep": "best",
                                          "sampling": None, "held_out_share": 0.1}
    training = config.variants["style"].training()
    assert set(training.content()) == {
        "data", "loss", "lora", "args", "select", "select_metric", "patience", "chosen_drop_alarm", "chosen_drop_stop",
        "reference_batch_size", "keep_optimizer", "save_at_kl", "stop_at_kl", "online"}
    assert training.save_at_kl is training.stop_at_kl is training.online is None  # younger, off: no key changes
    assert training == TrainConfig(select="best", select_metric="eval_rewards/accuracies")
    assert not any(key.startswith(("checkpoint", "variants", "train")) for stage in all_stages() for key in stage.key)
