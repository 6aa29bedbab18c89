"""What a configuration names and is not there is refused before any work, by every command that would need it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import write_world

from talker_rl import cli, doctor
from talker_rl.base.disk import read_json
from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.config import load_data
from talker_rl.stages import named
from talker_rl.stages.feasible import check_config

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
CUSTOM = 'train.loss={type: custom, import_path: "%s"}'

NOT_THERE = [
    ("reward.gates=[{component: foo, max: 0}]", "reward.gates", "unknown component 'foo'"),
    ("reward.components=[{name: x, import_path: 'nope:f'}]", "reward.components", "'nope:f' cannot be imported"),
    ("reward.components=[{name: x, import_path: 'broken_module:f'}]", "reward.components", "ZeroDivisionError"),
    ("reward.recognizer={type: funasr, path: nosuch}", "reward.recognizer: ", "'nosuch' does not exist"),
    ("reward.recognizer={type: whisper, path: micro:reward}", "reward.recognizer: ", "config.json is missing"),
    ("reward.evaluator={type: funasr, path: nosuch}", "reward.evaluator: ", "'nosuch' does not exist"),
    ("reward.pauses.aligner={path: nosuch}", "reward.pauses.aligner: ", "'nosuch' does not exist"),
    ("reward.recognizer.type=nope:build", "reward.recognizer.type", "'nope:build' cannot be imported"),
    ("reward.recognizer.type=:build", "reward.recognizer.type", "cannot be imported"),
    ("reward.recognizer.type=funsar", "reward.recognizer.type", "unknown recognizer type"),
    ("reward.evaluator={zh: {type: 'nope:f', path: x}}", "reward.evaluator.zh.type", "'nope:f' cannot be imported"),
    ("reward.recognizer.device=gpu", "reward.recognizer.device", "unknown device 'gpu'"),
    ("model.device=cuda1", "model.device", "unknown device 'cuda1'"),
    (CUSTOM % "nope:f", "train.loss", "`nope` cannot be imported"),
    (CUSTOM % "broken_module:f", "train.loss", "ZeroDivisionError"),
    ("train.loss={type: mix, terms: [{weight: 1, loss: {type: custom, import_path: 'nope:f'}}]}",
     "train.loss", "`nope` cannot be imported"),
]  # fmt: skip
ON_THIS_MACHINE = [
    ("reward.recognizer.device=cuda:0", "reward.recognizer.device", "no CUDA device"),
    ("model.device=cuda", "model.device", "no CUDA device"),
]


@pytest.fixture(autouse=True)
def broken_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path / "modules")


@pytest.mark.parametrize(("override", "where", "what"), NOT_THERE, ids=[o for o, *_ in NOT_THERE])
def test_it_is_refused_without_the_machine(override: str, where: str, what: str) -> None:
    with pytest.raises((ConfigError, CheckpointError)) as raised:
        check_config(load_data({}, [override]))
    assert what in raised.value.what and (raised.value.where or "").startswith(where), raised.value
    assert raised.value.fix


@NO_GPU
@pytest.mark.parametrize(("override", "where", "what"), ON_THIS_MACHINE, ids=[o for o, *_ in ON_THIS_MACHINE])
def test_a_gpu_is_asked_for_only_where_the_work_is_done(override: str, where: str, what: str) -> None:
    config = load_data({}, [override])
    check_config(config)  # it may be for another machine
    with pytest.raises(ConfigError, match=what) as raised:
        check_config(config, here=True)
    assert raised.value.where == where and "cpu" in (raised.value.fix or "")


@pytest.mark.parametrize(("override", "verbs", "others"), [
    ("reward.evaluator={type: funasr, path: nosuch}", ["run", "eval"], ["score", "train", "rollout", "report"]),
    ("reward.recognizer={type: funasr, path: nosuch}", ["run", "score", "train", "eval"], ["rollout", "prompts"]),
    (CUSTOM % "nope:f", ["run", "train"], ["score", "eval", "pair"]),
    ("model.device=nothing", ["run", "condition", "rollout", "score"], ["pair", "report", "prompts"]),
])  # fmt: skip
def test_a_stage_is_refused_only_for_what_it_needs(override: str, verbs: list[str], others: list[str]) -> None:
    config = load_data({"reward": {} if "evaluator" in override else {"evaluator": {"path": "micro:eval"}}}, [override])
    for verb in verbs:
        with pytest.raises((ConfigError, CheckpointError)):
            check_config(config, verb)
    for verb in others:
        check_config(config, verb)


def test_services_have_the_recognizer_that_rewards() -> None:
    overrides = ["reward.recognizer={type: funasr, path: nosuch}", "reward.evaluator.path=micro:eval"]
    check_config(load_data({}, overrides), "score", here=True, remote=True)


@pytest.mark.parametrize("override", [
    "reward.gates=[{component: foo, max: 0}]", "reward.recognizer={type: funasr, path: nosuch}", CUSTOM % "nope:f",
    "prompts.train=/nosuch.txt", "model.path=/nosuch", pytest.param("model.device=cuda", marks=NO_GPU),
])  # fmt: skip
def test_a_run_is_refused_before_its_plan_and_leaves_no_folder(override: str, tmp_path: Path, capsys: Any) -> None:
    world, run = write_world(tmp_path), tmp_path / "runs/new"
    capsys.readouterr()
    assert cli.main(["run", "-c", str(world), "--run-dir", str(run), override, "prompts.limit.train=4"]) != 0
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and "plan" not in told.out
    assert not run.parent.exists()


@pytest.mark.parametrize("override", [
    "run.reward.gates=[{component: foo, max: 0}]", 'variants.dpo.loss={type: custom, import_path: "nope:f"}',
    "run.model.path=/nosuch", "run.prompts.dev=/nosuch.txt",
])  # fmt: skip
def test_a_sweep_is_refused_before_its_plan_and_leaves_no_folder(override: str, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "runs/new"
    assert cli.main(["sweep", "smoke", "--run-dir", str(folder), override]) != 0
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and not told.out
    assert not folder.exists()


def test_validate_and_a_dry_run_refuse_likewise(tmp_path: Path, capsys: Any) -> None:
    world = str(write_world(tmp_path))
    for command in (["validate"], ["run", "--dry-run"], ["train", "--dry-run"]):
        assert cli.main([command[0], world, *command[1:], CUSTOM % "nope:f"]) == 2
        assert "train.loss" in capsys.readouterr().err


def test_what_is_forced_is_not_deleted_for_a_command_that_is_refused(tmp_path: Path, capsys: Any) -> None:
    world, run = str(write_world(tmp_path)), tmp_path / "run"
    assert cli.main(["prompts", world, "--run-dir", str(run), "-q"]) == 0
    for override in ("model.device=cuda:99", CUSTOM % "nope:f"):
        assert cli.main(["run", world, "--run-dir", str(run), "-q", "--force-stage", "prompts", override]) == 2
        assert (run / "prompts/index.json").is_file(), override


def test_a_run_keeps_its_configuration_where_another_is_refused(tmp_path: Path, capsys: Any) -> None:
    world, run = str(write_world(tmp_path)), tmp_path / "run"
    assert cli.main(["prompts", world, "--run-dir", str(run), "-q"]) == 0
    before = read_json(run / "manifest.json")["config"]
    for override in ("prompts.dev=/nosuch.txt", "model.path=/nosuch"):
        assert cli.main(["run", world, "--run-dir", str(run), "-q", override]) != 0
        assert read_json(run / "manifest.json")["config"] == before


def test_a_known_recognizer_that_is_not_here_is_a_note(monkeypatch: Any, capsys: Any) -> None:
    from talker_rl.reward.asr import names

    monkeypatch.setattr(names, "_cached", lambda name: None)
    monkeypatch.setattr(names, "obtain", lambda path: pytest.fail("the network is asked"))
    assert cli.main(["validate", "qwen2.5-omni-7b-dpo"]) == 0
    out = capsys.readouterr().out
    assert "# note: reward.evaluator." in out and "will be downloaded (openai/whisper-large-v3)" in out


def test_a_languages_recognizer_is_asked_for_where_the_prompts_need_it() -> None:
    config = load_data({}, ["reward.recognizer={zh: {type: funasr, path: nosuch}, en: {path: micro:reward}}"])
    check_config(config, here=True)
    named.check_heard(config, "recognizer", ["en"])
    with pytest.raises(CheckpointError, match="'nosuch' does not exist") as raised:
        named.check_heard(config, "recognizer", ["en", "zh"])
    assert (raised.value.where or "").startswith("reward.recognizer.zh: ")


@pytest.mark.parametrize(("override", "check"), [
    ("reward.gates=[{component: foo, max: 0}]", "_settings"), ("pairs.margin=2", "_settings"),
    ("reward.recognizer.type=nope:build", "_recognizers"), ("reward.pauses.aligner={path: nosuch}", "_recognizers"),
    (CUSTOM % "nope:f", "_training"), ("devices=64", "_training"),
    pytest.param("model.device=cuda", "_machine", marks=NO_GPU),
])  # fmt: skip
def test_doctor_says_so(override: str, check: str) -> None:
    found = list(doctor.guarded(getattr(doctor, check), load_data({}, [override])))
    assert "fail" in {level for level, *_ in found}
    assert not any("loads and answers" in text for _, text, *_ in found)


def test_more_than_one_minus_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than one minus") as raised:
        check_config(load_data({}, ["pairs.reward_key=--wer"]))
    assert raised.value.fix == "write wer where more is better, -wer where less is"


def test_validate_needs_no_torch_for_it() -> None:
    code = ("import sys; from talker_rl import cli\n"
            "rc = cli.main(['validate', '-q', 'qwen2.5-omni-7b-dpo'])\nprint(rc, 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "0 False", done
