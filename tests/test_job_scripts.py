"""Job scripts: each renders, is a shell script, and says what the configuration says."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from pipeline_helpers import write_world

from talker_rl import cli
from talker_rl.stages.job_scripts import _FILES, FOLDER, KINDS

ROOT = Path(__file__).resolve().parents[1]


def rendered(tmp_path: Path, kind: str, *more: str) -> dict[str, str]:
    out = tmp_path / f"out of {kind}"  # whatever a folder is called
    assert cli.main(["jobs", "render", kind, "-c", "demo", "--run-dir", str(tmp_path / "a run"), "--out", str(out),
                     *more]) == 0
    return {file.name: file.read_text() for file in out.iterdir()}


@pytest.mark.parametrize("more", [(), ("--gpus", "8", "--partition", "long", "--account", "us", "--setup", "true"),
                                  ("train.engine.nodes=2", "train.engine.processes=4", "train.engine.name=zero3")],
                         ids=["as it is", "all options", "several machines"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_renders_and_is_a_shell_script(tmp_path, kind, more, capsys):
    found = rendered(tmp_path, kind, *more)
    assert found.keys() == _FILES[kind].keys()
    for name, text in found.items():
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        assert "{{" not in text and "{%" not in text and len(text.splitlines()[1]) > 20  # a line on what it does
        if name.endswith(".sbatch"):
            assert "--requeue" in text and "--signal=B:USR1@120" in text and "scontrol requeue" in text
            nodes = 2 if name == "ray.sbatch" or name == "train.sbatch" and "train.engine.nodes=2" in more else 1
            assert f"--nodes={nodes}\n" in text
            assert ("--gpus-per-node=8" in text) == ("8" in more) and ("--partition=long" in text) == ("long" in more)
            assert all(word in text for word in more if word.startswith("train.engine"))
            assert ("devices=8 workers=8" in text) == ("8" in more and kind != "ray")
            assert ("executor.address=auto" in text) == (kind == "ray")
            assert "executor.gpus=1 workers=16" in text or not ("8" in more and kind == "ray")
    told = capsys.readouterr().out
    assert told.splitlines()[-1].startswith("submit: " + ("bash" if kind == "chain" else "sbatch"))


def test_a_dry_run_prints_and_writes_nothing(tmp_path, capsys):
    assert cli.main(["jobs", "render", "chain", "-c", "demo", "--out", str(tmp_path / "jobs"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert all(f"# ---- {name}\n" in told for name in _FILES["chain"]) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("more", "message"), [
    (["--time", "soon"], "no time of Slurm's"),
    (["--cpus", "0"], "at least"),
    (["variants.a.loss.type=dpo", "variants.b.engine.name=zero2"], "several engines"),
    (["train.engine.name=zero4"], "zero4"),
])
def test_a_mistake_is_one_message(tmp_path, capsys, more, message):
    assert cli.main(["jobs", "render", "train", "-c", "demo", "--out", str(tmp_path / "jobs"), *more]) != 0
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


SLURM = """#!/usr/bin/env bash
case "$(basename "$0")" in
  scontrol) [ "$1" = show ] && hostname; exit 0;;
  srun) shift; exec "$@";;
esac
"""


def submitted(script: Path, tools: Path) -> subprocess.CompletedProcess[str]:
    """A script run as it is, with stand-ins for Slurm's own two commands: one machine, and it runs what it is given."""
    tools.mkdir()
    for name in ("scontrol", "srun"):
        (tools / name).write_text(SLURM)
        (tools / name).chmod(0o755)
    python = Path(os.sys.executable).parent
    env = {**os.environ, "PATH": f"{tools}:{python}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "here",
           "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "HEAD": "127.0.0.1", "OMP_NUM_THREADS": "1",
           "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True, timeout=240)


def test_a_ray_job_makes_a_cluster_runs_on_it_and_ends_it(tmp_path):
    pytest.importorskip("ray")
    config, out = write_world(tmp_path, quick=True, rollouts={"num_candidates": 2}), tmp_path / "jobs"
    assert cli.main(["jobs", "render", "ray", "-c", str(config), "--run-dir", str(tmp_path / "run"), "--out", str(out),
                     "--nodes", "1", "--gpus", "0", "--cpus", "2"]) == 0
    done = submitted(out / "ray.sbatch", tmp_path / "bin")
    assert done.returncode == 0, done.stderr + done.stdout
    assert (tmp_path / "run/report/index.html").is_file()
    processes = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in os.listdir("/proc") if pid.isdigit()
                 and Path(f"/proc/{pid}/cmdline").is_file()]
    assert not any(b"gcs_server" in one and b"20007" in one for one in processes), "the cluster has ended"


def test_a_training_job_trains_what_the_verb_would(tmp_path):
    """What --engine-command prints trains, in two processes with DeepSpeed, and the verb takes what came of it."""
    pytest.importorskip("deepspeed")
    config, run = write_world(tmp_path, quick=True), tmp_path / "run"
    for verb in ("prompts", "condition", "rollout", "score", "pair"):
        assert cli.main([verb, "-c", str(config), "--run-dir", str(run), "-q"]) == 0
    shutil.copytree(run, tmp_path / "by verb")
    assert cli.main(["train", "-c", str(config), "--run-dir", str(tmp_path / "by verb"), "-q"]) == 0
    out = tmp_path / "jobs"
    assert cli.main(["jobs", "render", "train", "-c", str(config), "--run-dir", str(run), "--out", str(out), "--gpus",
                     "0", "train.engine.processes=2", "train.engine.name=zero2"]) == 0
    done = submitted(out / "train.sbatch", tmp_path / "bin")
    assert done.returncode == 0, done.stderr
    assert "== torchrun --standalone" in done.stdout and "2 steps" in done.stderr
    from train_helpers import apart

    assert max(apart(tmp_path / "by verb/round1/train/default", run / "round1/train/default")) <= 1e-5
    assert (run / "train/default/adapter_model.safetensors").is_file()


def test_what_is_shipped_beside_them_is_sound():
    settings = yaml.safe_load((FOLDER / "accelerate/processes.yaml").read_text())
    assert settings["num_processes"] == 8 and settings["mixed_precision"] == "no"
    for script in FOLDER.glob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert os.access(script, os.X_OK)
    told = (FOLDER / "README.md").read_text()
    assert all(file.name in told for file in [*FOLDER.glob("*.sh"), *FOLDER.glob("accelerate/*")])
