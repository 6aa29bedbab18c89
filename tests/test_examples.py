"""Every example runs as its first lines say, and the README shows the quickstart as it is."""

from __future__ import annotations

import csv
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """What an example prints. Here and not in a process of its own: the model and the libraries are loaded once."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(ROOT)

    def printed(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        return capsys.readouterr().out

    return printed


def test_the_quickstart_is_the_readmes_and_its_loss_is_ln_2_at_the_reference(run: Run) -> None:
    code = (EXAMPLES / "quickstart.py").read_text().split('"""\n\n', 1)[1]
    assert code in (ROOT / "README.md").read_text()
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    out = run("quickstart.py")
    assert float(out.split("DPO loss")[1]) == pytest.approx(0.693147, abs=1e-5)
    best, worst = map(float, re.search(r"rewards ([\d.]+) and ([\d.]+)", out).groups())  # type: ignore[union-attr]
    assert best > worst


def test_own_loss() -> None:
    """As its first lines say, in a process of its own."""
    done = subprocess.run([sys.executable, "examples/own_loss.py"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "loss at the reference 0.693147" in out and out.rstrip().endswith("0 at padding: [0.0, 0.0]")


def test_own_reward(run: Run) -> None:
    lines = [line for line in run("own_reward.py").splitlines() if "evenness" in line]
    spoken, chopped = (float(re.search(r"'evenness': ([\d.]+)", line)[1]) for line in lines)  # type: ignore[index]
    assert 0 < chopped < spoken <= 1


def test_own_recognizer(run: Run) -> None:
    assert "-> orange table happy river" in run("own_recognizer.py")


def test_score_wavs(run: Run, tmp_path: Path) -> None:
    rows = list(csv.DictReader(line for line in run("score_wavs.py").splitlines() if "," in line))
    assert [row["file"] for row in rows] == ["0", "1", "silence"]
    assert float(rows[0]["reward"]) > float(rows[2]["reward"]) == 0.0
    with pytest.raises(SystemExit, match="holds no .wav"):
        run("score_wavs.py", str(tmp_path))
