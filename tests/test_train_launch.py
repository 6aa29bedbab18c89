"""A training's task: run in one process, launched in several, and ended with what launched it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import write_world
from train_helpers import apart, curve, weights

import talker_rl
from talker_rl import cli
from talker_rl.base import processes
from talker_rl.base.errors import CheckpointError, ConfigError, TrainingError
from talker_rl.config import load_config
from talker_rl.train.launch import ERROR, MADE, TASK, Task, _tell, launch, main

STAGE = "round1/train/default"


def test_two_devices_from_the_command_line_give_what_one_process_gives(tmp_path, capfd):
    config = write_world(tmp_path, checkpoint={"tried": "last", "held_out_share": 0.3})
    one, two = tmp_path / "one", tmp_path / "two"
    for verb in ("prompts", "condition", "rollout", "score", "pair"):
        assert cli.main([verb, "-c", str(config), "--run-dir", str(one), "-q"]) == 0
    shutil.copytree(one, two)
    assert cli.main(["train", "-c", str(config), "--run-dir", str(one), "-q"]) == 0
    capfd.readouterr()
    assert cli.main(["train", "-c", str(config), "--run-dir", str(two), "devices=2"]) == 0
    told = capfd.readouterr()
    assert "on 2 devices" in told.err and "resumes" not in told.err and told.out == ""
    assert json.loads((two / STAGE / MADE).read_text())["steps"] == 6
    logged, weight = apart(one / STAGE, two / STAGE)
    assert len(curve(two / STAGE)) > 6 and logged <= 1e-5 and weight <= 1e-5
    assert any(bool(value.any()) for name, value in weights(one / STAGE).items() if "lora_B" in name)
    # the number of devices is nothing that a result depends on: in one process nothing is done again
    stamp = (two / STAGE / "result.json").stat().st_mtime_ns
    assert cli.main(["train", "-c", str(config), "--run-dir", str(two), "-q"]) == 0
    assert (two / STAGE / "result.json").stat().st_mtime_ns == stamp


def test_several_machines_are_told_how_to_begin(tmp_path, capfd):
    config = write_world(tmp_path)
    for verb in ("prompts", "condition", "rollout", "score", "pair"):
        assert cli.main([verb, "-c", str(config), "-q", "--run-dir", str(tmp_path / "run")]) == 0
    train = ["train", "-c", str(config), "-q", "--run-dir", str(tmp_path / "run"), "train.engine.nodes=2"]
    assert cli.main(train) == 1
    told = capfd.readouterr().err
    assert "takes 2 machines" in told and 'HEAD=<one of them> torchrun --nnodes=2' in told
    assert cli.main([*train, "--engine-command"]) == 0
    assert capfd.readouterr().out.startswith('torchrun --nnodes=2 --rdzv-backend=c10d --rdzv-endpoint="$HEAD:29500"')
    assert cli.main([*train, "train.engine.processes=3", "devices=2"]) == 2
    assert "devices names 2 and engine.processes says 3" in capfd.readouterr().err


def test_a_mistake_of_a_launched_process_is_told_once(tmp_path, capfd):
    file = tmp_path / TASK
    file.write_text(json.dumps({"output": str(tmp_path), "nonsense": 1}))
    with pytest.raises(ConfigError, match="no task of a training") as error:
        launch(file, ["cpu", "cpu"])
    assert error.value.where == str(file) and error.value.fix
    assert {path.name for path in tmp_path.glob(ERROR.format("*"))} <= {"error-0.json", "error-1.json"}
    assert "Traceback" not in capfd.readouterr().err


ASLEEP = """
import contextlib, os, pathlib, time

@contextlib.contextmanager
def asleep(folder):
    pathlib.Path(folder, "pid").write_text(f"{os.getpid()} {os.getppid()}")
    time.sleep(600)
    yield []
"""


def test_launched_processes_end_with_what_launched_them(tmp_path):
    (tmp_path / "never_trains.py").write_text(ASLEEP)
    watch = {"function": "never_trains:asleep", "arguments": {"folder": str(tmp_path)}}
    nothing = dict(model={}, train={}, data="", conditioning="", reference_cache="", start=None, reference="start")
    file = Task(str(tmp_path), **nothing, held_out_share=0.0, one_thread=True, progress=False, watch=watch).write()
    code = f"from talker_rl.train.launch import launch; from pathlib import Path; launch(Path({str(file)!r}), ['cpu'])"
    paths = os.pathsep.join([str(tmp_path), *(path or os.getcwd() for path in sys.path)])
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
    try:
        pids = [int(pid) for pid in _soon(lambda: (tmp_path / "pid").read_text().split())]
        assert len(pids) == 2 and all(map(_alive, pids))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _soon(lambda: not any(map(_alive, pids)) or None)


def _soon(look: Any, seconds: float = 240.0) -> Any:
    """What the look gives once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := look():
                return found
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_names_of_devices(monkeypatch):
    assert processes.device_list(None, "cpu") == [] and processes.device_list(3, "cpu") == ["cpu"] * 3
    assert processes.device_list(2, "cuda") == ["cuda:0", "cuda:1"]
    assert processes.device_list(["cuda:2", "cuda:0"], "auto") == ["cuda:2", "cuda:0"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert processes.visible_devices(["cuda:2", "cuda:0"]) == {"CUDA_VISIBLE_DEVICES": "2,0"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert processes.visible_devices(["cuda:1", "cuda"]) == {"CUDA_VISIBLE_DEVICES": "7,4"}
    assert processes.visible_devices(["cpu", "cpu"]) == {}


def test_workers_take_the_devices_in_turn(monkeypatch):
    import multiprocessing

    pinned: list[str] = []
    monkeypatch.setattr(processes, "pin", pinned.append)
    number = multiprocessing.get_context("spawn").Value("i", 0)
    for _ in range(3):
        processes._pin_next(number, ["cuda:1", "cuda:3"])
    assert pinned == ["cuda:1", "cuda:3", "cuda:1"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["devices=0"], "at least one"), (["devices=[]"], "at least one"), (["devices=[cpu,cuda:0]"], "one kind"),
     (["devices=2", "model.device=cuda:1"], "leave it auto"),
     (["devices=[cuda:0]", "model.device=cpu"], "leave it auto"), (["devices=[cuda:0,cuda]"], "named twice"),
     (["devices=true"], "how many")],
)  # fmt: skip
def test_devices_that_contradict_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config([], overrides)


def test_fewer_pairs_than_devices_are_refused_before_any_work(tmp_path, capsys):
    config = write_world(tmp_path)
    assert cli.main(["run", "-c", str(config), "--run-dir", str(tmp_path / "run"), "devices=3", "-q"]) == 2
    assert "train.args.per_device_train_batch_size" in capsys.readouterr().err


def test_cuda_among_the_devices_is_the_first():
    assert load_config([], ["devices=[cuda]"]).devices == ["cuda:0"]
    assert load_config([], ["devices=[cpu,cpu]"]).devices == ["cpu", "cpu"]


def test_a_pool_asks_for_its_device_where_there_is_work(monkeypatch):
    pinned: list[str] = []
    monkeypatch.setattr(processes, "pin", pinned.append)
    with processes.WorkerPool(1, ["cuda:1"]) as pool:
        assert pinned == []
        assert pool.submit(len, "ab").result() == 2 and list(pool.imap(len, ["abc"])) == [(0, 3)]
    assert pinned == ["cuda:1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
def test_a_device_that_is_not_there_is_asked_for_by_work_alone(tmp_path, capsys):
    config, run = write_world(tmp_path, model={"device": "auto"}), tmp_path / "run"
    assert cli.main(["prompts", "-c", str(config), "--run-dir", str(run), "-q", "devices=[cuda:0]"]) == 0
    with pytest.raises(ConfigError, match="no device 'cuda:0'"):
        processes.pin("cuda:0")
    with pytest.raises(ConfigError, match="no CUDA device") as error:
        talker_rl.run(str(config), tmp_path / "new", overrides=["devices=[cuda:0]"], quiet=True)
    assert error.value.where == "devices"
    with pytest.raises(CheckpointError, match="no adapter"):
        talker_rl.run(str(config), tmp_path / "new", overrides=["model.adapter=/nosuch"], quiet=True)
    assert not (tmp_path / "new").exists()


def test_the_first_error_is_told(tmp_path, capfd):
    for rank, (at, what) in enumerate([(2, "Connection closed by peer"), (1, "the cause")]):
        file = tmp_path / ERROR.format(rank)
        file.write_text(json.dumps({"what": what, "traceback": f"Traceback of {what}"}))
        os.utime(file, ns=(at, at))
    with pytest.raises(TrainingError, match="the cause"):
        _tell(tmp_path, 1)
    assert "Traceback of the cause" in capfd.readouterr().err
    (tmp_path / ERROR.format(2)).write_text(json.dumps({"type": "ConfigError", "what": "mine", "where": "", "fix": ""}))
    with pytest.raises(ConfigError, match="mine"):
        _tell(tmp_path, 1)


def test_the_module_explains_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, code in ((["--help"], 0), ([], 2), (["task.json", "--spread", "0"], 2)):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == code and "python -m talker_rl.train" in "".join(capsys.readouterr())
    assert main(["nofolder/task.json"]) == 1
    assert "nofolder/task.json" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("section", ["train", "model"])
def test_a_wrong_section_of_a_task_is_one_message(section, tmp_path, capsys):
    given: dict[str, Any] = {"model": {}, "train": {}, section: {"nonsense": 1}}
    nothing = dict(data="", conditioning="", reference_cache="", start=None, reference="start")
    file = Task(str(tmp_path), **given, **nothing, held_out_share=0.0, one_thread=True, progress=False).write()
    assert main([str(file)]) == 1
    told = capsys.readouterr().err
    assert f"`{section}.nonsense`" in told and "Traceback" not in told
    assert json.loads((tmp_path / ERROR.format(0)).read_text())["type"] == "ConfigError"


def test_a_task_means_the_same_wherever_it_is_run(tmp_path, monkeypatch):
    config = write_world(tmp_path, checkpoint={"tried": "last"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("talker_rl.stages.train.run_task", lambda task, _: exit(7))
    with pytest.raises(SystemExit):
        cli.main(["run", "-c", str(config), "--run-dir", "here", "-q"])
    task = json.loads((tmp_path / "here" / STAGE / TASK).read_text())
    assert task["watch"]["arguments"]["run"] == str(tmp_path / "here")
    for name in ("output", "data", "conditioning", "reference_cache"):
        assert Path(task[name]).is_absolute()
