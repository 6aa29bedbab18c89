"""kill -9 in the middle of sampling, scoring and training; the same command again; the same result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline_helpers import write_world

from talker_rl.records.candidate import Candidate
from talker_rl.records.score import ScoreRow
from talker_rl.store.shards import ShardFolder

ROOT = Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "tests")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def start_all(config: Path, run: Path, script: str) -> subprocess.Popen[bytes]:
    """All stages up to training, in one process (its own group, so that nothing of it survives the kill)."""
    return subprocess.Popen([sys.executable, "-c", script, str(config), str(run)], cwd=ROOT, env=environment(),
                            start_new_session=True, stdout=subprocess.DEVNULL)


SCRIPT = """
import sys
from talker_rl.cli import main
for verb in ("prompts", "condition", "rollout", "score", "pair", "train"):
    code = main([verb, "-c", sys.argv[1], "--run-dir", sys.argv[2], "-q"])
    if code:
        sys.exit(code)
"""


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    """SIGKILL as soon as the condition holds; it must hold before the process ends."""
    deadline = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, f"it ended with {process.returncode} before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finished_shards(folder: Path) -> list[str]:
    index = folder / "index.json"
    return list(json.loads(index.read_text())["shards"]) if index.exists() else []


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "round1/train/default/log.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.slow
def test_a_run_killed_three_times_equals_an_undisturbed_one(tmp_path: Path) -> None:
    config = write_world(
        tmp_path,
        train={"args": {"max_steps": 12, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-3, "seed": 3,
                        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}},
        checkpoint={"tried": "last"},
    )
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert start_all(config, calm, SCRIPT).wait() == 0

    training = killed / "round1/train/default"
    moments: dict[str, Callable[[], bool]] = {
        "rollouts": lambda: 1 <= len(finished_shards(killed / "rollouts")) < 4,
        "scores": lambda: 1 <= len(finished_shards(killed / "scores")) < 4,
        "training": lambda: (training / "checkpoint-4" / "files.json").exists(),
    }
    before: dict[Path, int] = {}
    for moment, ready in moments.items():
        kill_when(start_all(config, killed, SCRIPT), ready)
        assert not (training / "result.json").exists(), f"killed too late for {moment}"
        for file, stamp in before.items():
            assert file.stat().st_mtime_ns == stamp, f"{file.name} was finished and made again"
        before = {killed / stage / name: (killed / stage / name).stat().st_mtime_ns
                  for stage in ("rollouts", "scores") for name in finished_shards(killed / stage)}
    assert start_all(config, killed, SCRIPT).wait() == 0

    stages = [json.loads((run / "manifest.json").read_text())["stages"] for run in (calm, killed)]
    for stage in ("prompts", "conditioning", "rollouts", "scores", "pairs"):
        assert stages[0][stage]["content"] == stages[1][stage]["content"], stage
    for stage, cls in (("rollouts", Candidate), ("scores", ScoreRow)):
        assert ShardFolder(calm / stage).read_all(cls) == ShardFolder(killed / stage).read_all(cls)
    first, second = losses(calm), losses(killed)
    assert list(first) == list(second) == list(range(1, 13))
    assert max(abs(first[step] - second[step]) for step in first) <= 1e-5
    assert len({round(loss, 6) for loss in first.values()}) > 6, "a constant loss would show nothing"
    assert stages[0]["round1/train/default"]["content"] == stages[1]["round1/train/default"]["content"]
