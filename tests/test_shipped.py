"""Configurations by name: listed, printed, written out, extended, and there in an installed package as well."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from talker_rl import cli, shipped
from talker_rl.base.errors import ConfigError
from talker_rl.config import load_config
from talker_rl.sweep_config import load_sweep

ROOT = Path(__file__).resolve().parents[1]
NAMES = list(shipped.names())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_file_of_configs_has_a_name_and_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.resolve() for path in shipped.names().values()} == set((ROOT / "configs").glob("**/*.yaml"))
    assert {"demo", "qwen2.5-omni-7b-dpo", "stages/1-continuation", "sweeps/losses"} <= set(NAMES)
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(20 < len(line.split(maxsplit=1)[1]) < 100 for line in lines)
    assert lines[0].split(maxsplit=1)[1] == "The whole circle on the shipped micro model, on two cores"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_file_and_one_written_out_is_equal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    load = load_sweep if name.startswith("sweeps/") else load_config
    file = shipped.names()[name]
    assert load([name]) == load([file]) == load([f"configs/{file.relative_to(shipped.FOLDER)}"])
    assert cli.main(["configs", name]) == 0
    assert capsys.readouterr().out == file.read_text()
    assert cli.main(["configs", name, "-o", "deep/my.yaml"]) == 0
    assert load(["deep/my.yaml"]) == load([file])
    comments = [line for line in file.read_text().splitlines() if "#" in line]
    assert [line.partition("#")[2] for line in comments] == [
        line.partition("#")[2] for line in Path("deep/my.yaml").read_text().splitlines() if "#" in line]
    capsys.readouterr()
    Path("deep/my.yaml").write_text("name: mine\n")
    assert cli.main(["configs", name, "-o", "deep/my.yaml"]) == 2
    assert "there already" in capsys.readouterr().err and Path("deep/my.yaml").read_text() == "name: mine\n"


def test_a_file_that_is_there_goes_before_a_name_and_a_folder_does_not() -> None:
    Path("demo").mkdir()
    assert load_config(["demo"]).name == "demo"
    Path("smoke").write_text("name: mine\n")
    assert load_config(["smoke"]).name == "mine"
    Path("configs").mkdir()
    Path("configs/smoke.yaml").write_text("name: of-the-folder\n")
    assert load_config(["configs/smoke.yaml"]).name == "of-the-folder"


def test_extends_takes_names_and_files_beside_it_first() -> None:
    Path("my.yaml").write_text("extends: qwen2.5-omni-7b-dpo\nname: my\n")
    assert load_config(["my.yaml"]).variants.keys() == {"dpo"}
    Path("my.yaml").write_text("extends: [configs/demo.yaml, smoke]\nname: my\n")
    assert load_config(["my.yaml"]).model.path == "micro"
    Path("below").mkdir()
    Path("below/smoke").write_text("seed: 5\n")
    Path("below/my.yaml").write_text("extends: smoke\n")
    assert load_config(["below/my.yaml"]).seed == 5
    Path("my.yaml").write_text("extends: dmo\n")
    with pytest.raises(ConfigError, match="did you mean demo"):
        load_config(["my.yaml"])
    Path("s.yaml").write_text("run: {extends: [smoke]}\nvariants: {dpo: {}}\narms: {a: {}}\n")
    assert load_sweep(["s.yaml"]).run.model.device == "cpu"


def test_short_names_and_what_they_mean_to_a_sweep() -> None:
    assert load_config(["1-continuation"]).name == "1-continuation"
    assert load_sweep(["losses"]).name == "sweep" and load_sweep(["smoke"]).name == "sweep-smoke"
    assert load_config(["smoke"]).name == "smoke"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["validate", "-c", "dmo"], "did you mean demo?"),
        (["validate", "dmo"], "did you mean demo?"),
        (["validate", "-c", "demo.yaml"], "did you mean demo?"),
        (["validate", "-c", "qwen2.5-omni-7b-dop"], "did you mean qwen2.5-omni-7b-dpo?"),
        (["validate", "-c", "../../etc/demo"], "no such configuration file"),
        (["validate", "-c", "x" * 300], "configuration file"),
        (["sweep", "lossess"], "did you mean sweeps/losses?"),
        (["configs", "dmo"], "did you mean demo?"),
        (["configs", "zzzzz"], "one of: demo, demo-online, smoke"),
        (["configs", "-o", "x.yaml"], "Which configuration?"),
        (["run", "losses", "--dry-run"], "talker-rl sweep losses"),
        (["sweep", "demo", "--dry-run"], "talker-rl run -c demo"),
        (["speaker", "list", "dmo"], "did you mean demo?"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err
    assert not list(Path().iterdir())


@pytest.mark.parametrize("verb", ["run", "prompts", "validate", "sweep", "plan"])
def test_every_verb_takes_configurations_with_c_and_by_position(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("seed: 7\nname: mine\n")
    files = ["smoke", "seed=9"] if verb != "sweep" else ["smoke", "run.seed=9"]
    options = {"validate": [], "plan": ["--json"]}.get(verb, ["--dry-run"])
    told = []
    for arguments in ([verb, "-c", *files], [verb, *files], [verb, *files[::-1]]):
        cli.main([*arguments, *options])
        told.append(capsys.readouterr())
        assert not told[-1].err.startswith("error"), told[-1].err
    assert told[0] == told[1] == told[2] and told[0].out
    if verb == "validate":
        assert cli.main(["validate", "-c", "smoke", "mine.yaml", "seed=9"]) == 0
        assert yaml.safe_load(capsys.readouterr().out) == load_config(["smoke", "mine.yaml"], ["seed=9"]).resolved()


def test_python_m_talker_rl_is_the_command() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "talker_rl", "configs", "dmo"], capture_output=True, text=True,
                          env=env)
    assert done.returncode == 2 and "did you mean demo?" in done.stderr
    done = subprocess.run([sys.executable, "-m", "talker_rl", "--version"], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and done.stdout.startswith("talker-rl ")


def test_an_installed_package_has_them(tmp_path: Path) -> None:
    """Source archive, then a wheel from it, then a folder of its own: no checkout is near."""
    source, out = tmp_path / "source", tmp_path / "out"
    for name in ("talker_rl", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True,
                        ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "model.pt"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)

    def do(*command: str, where: Path = source, **env: str) -> str:
        done = subprocess.run([sys.executable, *command], cwd=where, capture_output=True, text=True,
                              env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **env})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    do("-c", f"import setuptools.build_meta as b; b.build_sdist({str(out)!r})")
    (archive,) = out.glob("*.tar.gz")
    do("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile",
       "--target", str(out / "site"), str(archive))
    empty = tmp_path / "empty"
    empty.mkdir()
    code = "import talker_rl; print(talker_rl.__file__)"
    assert do("-c", code, where=empty, PYTHONPATH=str(out / "site")).startswith(str(out / "site"))
    listed = do("-m", "talker_rl", "configs", where=empty, PYTHONPATH=str(out / "site")).splitlines()
    assert [line.split()[0] for line in listed] == NAMES
    told = do("-m", "talker_rl", "validate", "-c", "qwen2.5-omni-7b-dpo", where=empty, PYTHONPATH=str(out / "site"))
    assert yaml.safe_load(told) == load_config(["qwen2.5-omni-7b-dpo"]).resolved()


def test_split_refuses_what_is_neither() -> None:
    assert shipped.split(["a.yaml"], ["x=1", "none.yaml", "demo"]) == (["a.yaml", "none.yaml", "demo"], ["x=1"])
    with pytest.raises(ConfigError, match="Neither a configuration nor an override: 'margin'"):
        shipped.split([], ["margin"])
