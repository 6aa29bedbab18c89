"""Progress: a bar on a terminal, lines now and then in a log; one place for all of talker_rl."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest
from pipeline_helpers import write_world

from talker_rl.base import progress
from talker_rl.cli import main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in [0], to be set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.bar(total=100, desc="rollouts", unit="shard", position=1) as shown:
        for i in range(100):
            clock[0] += 1.0
            shown.set_postfix_str(f"{i} rows/s")
            shown.update()
    err = capsys.readouterr().err
    assert err.splitlines() == [
        "rollouts: 30 of 100 shards (30%), 1 per second, 00:30 so far, 01:10 left, 29 rows/s",
        "rollouts: 60 of 100 shards (60%), 1 per second, 01:00 so far, 00:40 left, 59 rows/s",
        "rollouts: 90 of 100 shards (90%), 1 per second, 01:30 so far, 00:10 left, 89 rows/s",
        "rollouts: 100 of 100 shards (100%), 1 per second, 01:40 so far, 99 rows/s"]
    assert "\r" not in err


def test_slow_and_fast_work_and_what_is_counted(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress.bar(range(3), desc="slow"):
        clock[0] += 400
    for _ in progress.bar(iter("ab"), desc="", unit="row"):
        clock[0] += 0.001
    for kept in (True, False):
        with progress.bar(total=3 << 20, desc="hashing", unit="B", unit_scale=True, leave=kept) as shown:
            shown.update(3 << 20)
            clock[0] += 1
            shown.close()  # twice is once
    with progress.bar(total=5, desc="nothing begun"):
        pass
    assert list(progress.bar([1, 2], desc="silent", disable=True)) == [1, 2]
    assert capsys.readouterr().err.splitlines() == [
        "slow: 1 of 3 (33%), 0.0025 per second, 06:40 so far, 13:20 left",
        "slow: 2 of 3 (67%), 0.0025 per second, 13:20 so far, 06:40 left",
        "slow: 3 of 3 (100%), 0.0025 per second, 20:00 so far",
        "2 rows, 1000 per second, 00:00 so far",
        "hashing: 3.00MiB of 3.00MiB (100%), 3.00MiB per second, 00:01 so far"]


def test_work_that_is_cut_off_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError):
        for i in progress.bar(range(4), desc="cut", unit="shard"):
            if i == 2:
                raise ValueError
    progress.note("a word")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("cut: 2 of 4 shards (50%)") and lines[1] == "a word" and len(lines) == 2


def test_training_tells_a_log_now_and_then_its_evaluations_and_its_end(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from talker_rl.train.callbacks import ProgressLine

    def train() -> list[str]:
        line = ProgressLine("dpo")
        state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=100, log_history=[])
        line.on_train_begin(None, state, None)
        for step in range(1, 101):
            clock[0] += 1
            state.global_step = step
            line.on_log(None, state, None, {"loss": 0.5, "rewards/margins": -0.000001})
            if step == 50:
                line.on_log(None, state, None, {"eval_loss": 0.4})
        return capsys.readouterr().err.splitlines()

    lines = train()
    assert [" ".join(line.split()[:4]).split("  ")[0] for line in lines] == [
        "dpo step 30/100 loss", "dpo eval step 50/100", "dpo step 80/100 loss", "dpo step 100/100 loss"]
    assert lines[0] == "dpo step 30/100  loss 0.5000  margin 0.0000  70 s left"
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    assert len(train()) == 101


def test_online_training_tells_what_is_sampled_and_what_is_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    from talker_rl.train.callbacks import ProgressLine

    line = ProgressLine("grpo", 96)
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=6, log_history=[])
    line.on_train_begin(None, state, None)
    sampled = {"loss": 0.1, "reward": 0.71239, "online/wer": 0.1234, "online/pause_error": 0.0504,
               "online/seconds_per_word": 0.3216, "frac_reward_zero_std": 0.25, "online/sampling_seconds": 3.04,
               "online/waiting_seconds": 1.5}
    for step in range(1, 7):
        clock[0] += 20
        state.global_step = step
        if step == 2:
            line.on_log(None, state, None, {"kl": 0.00123})
        told = sampled | {"online/decodes": 16.0 * step} | ({"online/training_seconds": 4.0} if step > 1 else {})
        line.on_log(None, state, None, told if step < 6 else {"loss": 0.1, "online/decodes": 96.0})
    start = "reward 0.712  WER 12.3%  pauses 0.050  0.322 s per word"
    assert capsys.readouterr().err.splitlines() == [
        f"grpo step 2/6  {start}  KL 0.0012  without spread 25%  64 decodes left  "
        "sampling 3.0 s, waiting 1.5 s, training 4.0 s  80 s left",
        f"grpo step 4/6  {start}  KL 0.0012  without spread 25%  32 decodes left  "
        "sampling 3.0 s, waiting 1.5 s, training 4.0 s  40 s left",
        "grpo step 6/6  KL 0.0012  0 decodes left  0 s left"]
    resumed = ProgressLine("grpo", 96)
    state.global_step, state.log_history = 5, [{"step": 4, "kl": 0.05}, {"step": 5, "loss": 0.1}]
    resumed.on_train_begin(None, state, None)
    state.global_step = 6
    resumed.on_log(None, state, None, sampled | {"online/decodes": 96.0})
    assert "  KL 0.05  " in capsys.readouterr().err, "the last that was measured, before the interruption"


def test_a_terminal_gets_a_bar() -> None:
    code = ("from talker_rl.base import progress\nfor _ in progress.bar(range(3), desc='x', unit='shard'): pass\n"
            "progress.quiet_logs()\nimport os\nassert 'HF_HUB_DISABLE_PROGRESS_BARS' not in os.environ")
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"PYTHONPATH": str(ROOT)}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    done = subprocess.run([sys.executable, "-c", code], stderr=theirs, stdout=subprocess.PIPE, env=env)
    os.close(theirs)
    told = ""
    with contextlib.suppress(OSError):  # the end, on Linux
        while part := os.read(ours, 100_000):
            told += part.decode()
    os.close(ours)
    assert done.returncode == 0, told
    assert "\rx: " in told and "3/3" in told and "shard/s" in told


def test_libraries_show_no_bars_in_a_log() -> None:
    code = ("from talker_rl.cli import main\nmain(['configs', 'demo'])\n"
            "import datasets, huggingface_hub.utils as hub\nfrom transformers.utils import logging\n"
            "assert hub.are_progress_bars_disabled() and not logging.is_progress_bar_enabled()\n"
            "assert not datasets.utils.is_progress_bar_enabled()")
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


def test_stages_tell_a_log_in_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = write_world(tmp_path, workers=1)
    capfd.readouterr()
    for verb in ("prompts", "condition", "rollout", "score"):
        assert main([verb, "-c", str(config), "--run-dir", str(tmp_path / "run")]) == 0
    err = capfd.readouterr().err
    assert "\r" not in err and not re.search(r"\d+%\|", err)
    assert re.search(r"^rollouts: 4 of 4 shards \(100%\), [\d.e-]+ per second, ", err, re.M), err


def test_all_bars_go_through_one_place() -> None:
    own = {path for path in (ROOT / "talker_rl").rglob("*.py") if re.search(r"\btqdm\b", path.read_text("utf-8"))}
    assert own == {ROOT / "talker_rl" / "base" / "progress.py"}
