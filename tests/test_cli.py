"""The command line: quick, teaching, and one clear message for every mistake."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_helpers import write_world

from talker_rl import cli
from talker_rl.base.errors import CheckpointError, TalkerRLError
from talker_rl.stages import order

ROOT = Path(__file__).resolve().parents[1]
VERBS = ["run", "prompts", "condition", "rollout", "score", "pair", "train", "eval", "report", "diagnose", "sweep",
         "show", "serve", "validate", "configs", "doctor", "plan", "wer", "micro", "completion"]
VERBS += [verb for verb in order.VERBS if verb not in VERBS]


def test_help_answers_in_under_a_second_without_torch() -> None:
    code = ("import sys\nfrom talker_rl.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
            "assert not {'torch', 'transformers', 'pydantic', 'numpy'} & set(sys.modules)")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    # processor time: other processes may share the cores
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1.0
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_teaches_by_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"talker-rl {verb}" in out.split("example:")[1]


def test_validate_prints_the_resolved_config_or_the_nearest_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["validate", str(ROOT / "configs" / "smoke.yaml"), "pairs.margin=0.25"]) == 0
    assert "margin: 0.25" in capsys.readouterr().out
    (tmp_path / "x.yaml").write_text("pairs: {margn: 1}\n")
    assert cli.main(["validate", str(tmp_path / "x.yaml")]) == 2
    err = capsys.readouterr().err
    assert "did you mean `pairs.margin`?" in err and "Traceback" not in err


def test_a_dry_run_prints_plan_and_budget_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_world(tmp_path)
    run = tmp_path / "run"
    args = ["run", "iterations=2", "-c", str(config), "--dry-run", "rollouts.num_candidates=5", "--run-dir", str(run)]
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    assert "num_candidates: 5" in out
    assert "round 2, default: 40 candidates (8 prompts x 5)" in out
    # scores 2 x 40; choice (4 + 3) policies x 3 dev prompts; evaluation 2 Talkers x 4 texts x 2 seeds
    assert f"decode budget: {80 + 21 + 16} utterances x 4 DiT passes" in out
    assert not run.exists()


def test_no_verb_prints_the_help_with_all_verbs() -> None:
    done = subprocess.run([sys.executable, "-m", "talker_rl"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not done.stdout
    assert all(re.search(rf"^ +{verb}\b", done.stderr, re.M) for verb in VERBS)


def test_strange_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "--nonsense"])
    assert caught.value.code == 2
    assert "--nonsense" in capsys.readouterr().err
    assert cli.main(["run", "not-an-override"]) == 2
    assert "dotted.key=value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("rnu -c demo", "run"), ("run --run-dri x", "--run-dir"), ("speaker ad", "add"), ("speaker list --jsn", "--json"),
     ("prompts hard --cuont 3", "--count"), ("micro biuld", "build"), ("micro build --qiuck", "--quick")],
)  # fmt: skip
def test_the_nearest_verb_or_option_is_named(wrong: str, right: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(wrong.split())
    assert caught.value.code == 2
    assert f"did you mean {right}?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["prompts hard", "speaker list", "speaker add", "speaker compare", "micro build",
                                  "micro check", "micro voice"])
def test_verbs_below_verbs_have_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*verb.split(), "--help"])
    assert caught.value.code == 0
    assert f"usage: talker-rl {verb} " in capsys.readouterr().out


COMPLETIONS = {
    "talker-rl pa": ["pair", "parity"], "talker-rl speaker ": ["list", "add", "compare"],
    "talker-rl prompts hard --c": ["--count", "--category"], "talker-rl run -c smo": ["smoke "],
    "talker-rl run -c de": ["demo", "demo-online"],
    "talker-rl run -c demo stages/1": ["stages/1-continuation "], "talker-rl eval --protocol ": ["seed-tts-eval "],
}
COMPLETE = """eval "$(talker-rl completion bash)"
while IFS= read -r COMP_LINE; do
    COMP_POINT=${#COMP_LINE} COMP_TYPE=9 COMPREPLY=()
    _python_argcomplete talker-rl
    (IFS=,; echo "${COMPREPLY[*]}")
done"""


def test_bash_completes_verbs_options_and_configurations(tmp_path: Path) -> None:
    command = tmp_path / "talker-rl"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m talker_rl "$@"\n')
    command.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", COMPLETE], input="".join(f"{line}\n" for line in COMPLETIONS), cwd=tmp_path, capture_output=True,
        text=True, check=True, env=dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}",
                                        PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])),
    )
    assert dict(zip(COMPLETIONS, (line.split(",") for line in done.stdout.splitlines()), strict=True)) == COMPLETIONS


@pytest.mark.parametrize(("shell", "its"), [("zsh", "compdef"), ("fish", "complete --command talker-rl")])
def test_other_shells_have_completion(shell: str, its: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    assert its in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (CheckpointError("No such model", where="/m", fix="give another"), 1, "fix:   give another"),
        (TalkerRLError("plain"), 1, "plain"),
        (KeyboardInterrupt(), 130, "same command again"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "The disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "The disk is full"),
    ],
)
def test_errors_end_in_one_message_and_a_code(
    error: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["run"]) == code
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err
    if isinstance(error, TalkerRLError):
        with pytest.raises(TalkerRLError):
            cli.main(["run", "--debug"])


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_dispatch", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run"])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.path=/nowhere/at/all"], "no such model folder"),
        (["prompts.speaker=Carl"], "Unknown speaker 'Carl'"),
        (["prompts.train=/nowhere.txt"], "no such prompt file"),
        (["train.args.learning_rat=1"], "did you mean"),
        (["train.lora.target_modules=[nothing]"], "LoRA cannot be attached"),
    ],
)
def test_a_users_mistake_is_told_without_a_traceback(
    tmp_path: Path, overrides: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_world(tmp_path)
    verb = "train" if "lora" in overrides[0] else "run"
    if verb == "train":
        for earlier in ("prompts", "condition", "rollout", "score", "pair"):
            assert cli.main([earlier, "-c", str(config), "--run-dir", str(tmp_path / "run"), "-q"]) == 0
    assert cli.main([verb, "-c", str(config), "--run-dir", str(tmp_path / "run"), "-q", *overrides]) != 0
    captured = capsys.readouterr()
    assert told in captured.err and "Traceback" not in captured.err


def test_doctor_finds_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_world(tmp_path)
    assert cli.main(["doctor", "-c", str(config)]) == 0
    out = capsys.readouterr().out
    assert "codec ids 8292 (pad)" in out and "speakers: Ann, Bob" in out and "ready" in out
    (tmp_path / "omni" / "spk_dict.pt").unlink()
    (tmp_path / "eval.txt").write_text((tmp_path / "train.txt").read_text())
    assert cli.main(["doctor", "-c", str(config)]) == 1
    out = capsys.readouterr().out
    assert "spk_dict.pt is missing" in out and "2 problems" in out


def test_options_of_the_micro_world_reach_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["micro", "build", "--help"])
    assert caught.value.code == 0
    assert "talker-rl micro build" in capsys.readouterr().out


def test_micro_path_is_the_folder_that_holds_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TALKER_RL_MICRO_DIR", str(tmp_path))
    assert cli.main(["micro", "path"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path)
    monkeypatch.setenv("TALKER_RL_MICRO_DIR", str(tmp_path / "missing"))
    assert cli.main(["micro", "path"]) == 1


@pytest.mark.parametrize("verb", [["configs", "demo"], ["validate", "-c", "demo"], ["configs"],
                                  ["wer", "a.tsv", "a.tsv", "--detail"]])
def test_a_reader_that_has_seen_enough_is_no_error(verb: list[str], tmp_path: Path) -> None:
    """``talker-rl ... | head -1``."""
    (tmp_path / "a.tsv").write_text("".join(f"{i}\tone two three\n" for i in range(1000)))
    code = "import sys; from talker_rl.cli import main; sys.exit(main())"
    done = subprocess.run(["bash", "-c", '"$@" | (exec <&-; sleep 0.1); echo "${PIPESTATUS[0]}"', "_", sys.executable,
                           "-c", code, *verb], cwd=tmp_path, capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert (done.stdout, done.stderr) == ("0\n", "")
