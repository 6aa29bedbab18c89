"""Every example runs as its first lines say, and the README shows the quickstart as it is."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str, cwd: Path = ROOT) -> str:
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(EXAMPLES)]))
    done = subprocess.run([sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, cwd=cwd,
                          env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quickstart_is_the_readmes_and_its_loss_is_ln_2_at_the_reference() -> None:
    code = (EXAMPLES / "quickstart.py").read_text().split('"""\n\n', 1)[1]
    assert code in (ROOT / "README.md").read_text()
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    out = run("quickstart.py")
    assert float(out.split("DPO loss")[1]) == pytest.approx(0.693147, abs=1e-5)
    best, worst = map(float, re.search(r"rewards ([\d.]+) and ([\d.]+)", out).groups())  # type: ignore[union-attr]
    assert best > worst


def test_own_loss() -> None:
    out = run("own_loss.py")
    assert "loss at the reference 0.693147" in out and out.rstrip().endswith("0 at padding: [0.0, 0.0]")


def test_own_reward() -> None:
    lines = [line for line in run("own_reward.py").splitlines() if "evenness" in line]
    spoken, chopped = (float(re.search(r"'evenness': ([\d.]+)", line)[1]) for line in lines)  # type: ignore[index]
    assert 0 < chopped < spoken <= 1


def test_own_recognizer() -> None:
    assert "-> orange table happy river" in run("own_recognizer.py")


def test_score_wavs(tmp_path: Path) -> None:
    rows = list(csv.DictReader(line for line in run("score_wavs.py").splitlines() if "," in line))
    assert [row["file"] for row in rows] == ["0", "1", "silence"]
    assert float(rows[0]["reward"]) > float(rows[2]["reward"]) == 0.0
    with pytest.raises(AssertionError, match="holds no .wav"):
        run("score_wavs.py", str(tmp_path))
