"""``make setup`` with a Python that cannot do it: one line at once, with what was found and the fix."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def make(goal: str, python: str, venv: Path) -> list[str]:
    # `make test` runs these tests: a make of its own, not one below it, which would speak of the folder it enters.
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(["make", goal, f"PYTHON={python}", f"VENV={venv}"], cwd=ROOT, capture_output=True, text=True,
                          env=env)
    assert done.returncode != 0 and not done.stdout, done.stdout
    return [line for line in done.stderr.splitlines() if not line.startswith("make")]


def like(folder: Path, pretend: str) -> str:
    """A Python that begins with a line of its own."""
    script = folder / "bin" / "python"
    script.parent.mkdir(parents=True)
    script.write_text(f'#!/bin/sh\nexec {sys._base_executable} -c "import sys; {pretend}; exec(sys.argv[1])" "$2"\n')
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize("goal", ["setup", "demo"])
def test_an_old_python_is_told_in_one_line(goal: str, tmp_path: Path) -> None:
    (line,) = make(goal, like(tmp_path, "sys.version_info = (3, 10, 13)"), tmp_path / "venv")
    assert "needs Python 3.11 or newer" in line and "is Python 3.10;" in line
    assert line.endswith(f"fix: make {goal} PYTHON=python3.11")
    assert not (tmp_path / "venv").exists()


def test_a_python_that_is_not_there_and_one_without_ensurepip(tmp_path: Path) -> None:
    (line,) = make("setup", "python9.9", tmp_path / "venv")
    assert "there is no python9.9" in line and "PYTHON=python3.11" in line
    (line,) = make("setup", like(tmp_path, "sys.modules['ensurepip'] = None"), tmp_path / "venv")
    assert "without ensurepip" in line and f"apt install python3.{sys.version_info[1]}-venv" in line


def test_an_environment_of_an_old_python_or_without_pip_is_told(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    like(venv, "sys.version_info = (3, 9, 1); sys.base_prefix = 'x'")
    (line,) = make("setup", "python3", venv)
    assert f"rm -r {venv}, then make setup PYTHON=python3.11" in line
    shutil.rmtree(venv)
    like(venv, "sys.modules['pip'] = None; sys.base_prefix = 'x'")
    (line,) = make("setup", "python3", venv)
    assert "left unfinished" in line and f"rm -r {venv}" in line
