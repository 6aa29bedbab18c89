"""What a command line names: a run that is not there is no new run, and what cannot be written is told before work."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import yaml
from pipeline_helpers import write_world

from talker_rl import cli
from talker_rl.base.errors import CheckpointError, DataError, StageError
from talker_rl.base.places import (
    check_writable_file,
    check_writable_folder,
    nearest_run,
    require_adapter,
    require_file,
    require_free,
    require_run,
    unwritable,
)
from talker_rl.planning.rates import read_run
from talker_rl.report.collect import collect
from talker_rl.stages.serve import canary_of

STAGES = ["run", "prompts", "condition", "rollout", "score", "pair", "train", "eval", "report", "diagnose"]


def make_run(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"config": config or None, "stages": {}, "commands": []}))
    return folder


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("verb", [*STAGES, "sweep"])
@pytest.mark.parametrize("more", [[], ["--dry-run"], ["rollouts.num_candidates=4"]])
def test_a_run_folder_that_is_none_is_refused_by_every_verb(
    verb: str, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    near = make_run(tmp_path / "my-7b", name="x")
    (near / "sweep.json").write_text("{}")
    before = tree(tmp_path)
    for name, told in (("my7b", f"did you mean {near}?"), ("empty", "in this folder"), ("a/b/c", "nor such a folder")):
        assert cli.main([verb, "--run-dir", str(tmp_path / name), *more]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"error: There is no {'sweep' if verb == 'sweep' else 'run'}") and told in err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("verb", STAGES)
def test_a_verb_that_goes_on_from_a_run_leaves_no_folder_where_none_is(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("name: c\nprompts: {train: none.txt}\n")
    if verb not in ("run", "prompts"):
        for place in (["--run-dir", "new"], []):
            assert cli.main([verb, "-c", "c.yaml", *place]) == 1
            assert "There is no run here" in capsys.readouterr().err
        assert [path.name for path in tree(tmp_path)] == ["c.yaml"]
    assert cli.main([verb]) == 2
    assert "No run is named" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_run_does_not_begin_among_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, folder = write_world(tmp_path / "world"), tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("x")
    for verb in ("run", "prompts"):
        assert cli.main([verb, "-c", str(config), "--run-dir", str(folder), "-q"]) == 1
        assert "holds other files (chapter.txt) and no run" in capsys.readouterr().err
    assert [path.name for path in tree(folder)] == ["chapter.txt"]
    (folder / "chapter.txt").rename(folder / ".hidden")
    assert cli.main(["prompts", "-c", str(config), "--run-dir", str(folder), "-q"]) == 0
    require_free(folder)  # a run by now
    with pytest.raises(StageError, match="and no sweep"):
        require_free(folder, sweep=True)
    assert cli.main(["run", "-c", str(config), "--run-dir", str(tmp_path / "x"), "--force-stage", "scores"]) == 1
    assert "There is no run here" in capsys.readouterr().err and not (tmp_path / "x").exists()
    require_free(tmp_path / "none")


def test_a_manifest_without_a_configuration_is_not_taken_for_the_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run")
    assert cli.main(["run", "--run-dir", str(tmp_path / "run"), "--dry-run"]) == 1
    assert "holds no configuration" in capsys.readouterr().err


def test_the_nearest_run_is_beside_it_in_runs_or_the_only_one_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/my-7b"))
    make_run(Path("sweep/arms/biased"))
    (Path("sweep") / "sweep.json").write_text("{}")
    assert nearest_run(Path("runs/my7b")) == Path("runs/my-7b") == nearest_run(Path("my-7b"))
    assert nearest_run(Path("runs")) == Path("runs/my-7b")
    assert nearest_run(Path("elsewhere/other")) is None
    assert nearest_run(Path("swep"), sweeps=True) == Path("sweep")
    with pytest.raises(StageError, match="This is a sweep") as caught:
        require_run(Path("sweep"))
    assert caught.value.fix == "one of: sweep/arms/biased"


def test_other_options_that_name_a_run_suggest_it_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    near, typo = make_run(tmp_path / "first", name="x"), tmp_path / "frist"
    calls = (canary_of, lambda path: read_run(path, {}), lambda path: collect([path]),
             lambda path: require_adapter(str(path)))
    for call in calls:
        with pytest.raises((StageError, CheckpointError)) as caught:
            call(typo)
        assert caught.value.fix == f"did you mean {near}?"
    require_adapter(None)
    require_adapter(str(near))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": {"adapter": str(typo)}}))
    assert cli.main(["run", "-c", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path / "new"), "-q"]) == 1
    assert f"did you mean {near}?" in capsys.readouterr().err and not (tmp_path / "new").exists()
    (tmp_path / "votes.json").write_text("{}")
    manifest = (near / "manifest.json").read_text()
    assert cli.main(["pair", "--run-dir", str(near), "--votes", str(tmp_path / "vote.json")]) == 1
    assert f"did you mean {tmp_path / 'votes.json'}?" in capsys.readouterr().err
    assert (near / "manifest.json").read_text() == manifest  # it is not remembered
    with pytest.raises(DataError, match="check the path"):
        require_file(tmp_path / "zzz", "file", "--x")


# -- places that cannot be written --------------------------------------------------------------------------------


def bad_places(folder: Path) -> dict[str, Path]:
    file = folder / "a file"
    file.write_text("x")
    (folder / "dangling").symlink_to(folder / "nowhere" / "at all")
    found = {"file": file, "below a file": file / "below", "far below": file / "a" / "b", "long": folder / ("x" * 300),
             "below long": folder / ("x" * 300) / "y", "deep": folder / "/".join(["y" * 200] * 21),
             "dangling": folder / "dangling", "below dangling": folder / "dangling" / "x"}
    if Path("/proc/self").is_dir():
        found["proc"] = Path("/proc/talker/x")
    if Path("/sys/kernel").is_dir():
        found["sys"] = Path("/sys/kernel/talker")
    return found


def test_a_folder_that_cannot_be_written_is_told_and_one_that_can_leaves_no_trace(tmp_path: Path) -> None:
    places = bad_places(tmp_path)
    before = tree(tmp_path)
    for place in places.values():
        with pytest.raises(StageError, match="Nothing can be written here") as caught:
            check_writable_folder(place)
        assert caught.value.where == str(place) and caught.value.fix
    for good in (tmp_path, tmp_path / "new" / "newer", tmp_path / ("n" * 255)):
        check_writable_folder(good)
    assert tree(tmp_path) == before


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    places = bad_places(tmp_path)
    file = places.pop("file")
    del places["dangling"]  # its folder is not there: told by the one that follows
    for place in (*places.values(), tmp_path, tmp_path / ("z" * 250)):
        with pytest.raises(StageError, match="Nothing can be written here") as caught:
            check_writable_file(place)
        assert caught.value.where == str(place)
    check_writable_file(file)
    check_writable_file(tmp_path / "new" / "file")
    check_writable_file("/dev/null")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_permissions_are_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StageError, match="ermission"):
        check_writable_folder(tmp_path / "x")


@pytest.mark.parametrize("verb", ["run", "prompts", "score", "report", "sweep"])
def test_run_dir_is_looked_at_before_the_work(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_world(tmp_path / "world")
    if verb == "sweep":
        sweep = tmp_path / "s.yaml"
        sweep.write_text(f"run: {{extends: [{config}]}}\nvariants: {{dpo: {{}}}}\narms: {{a: {{}}}}\n")
        config = sweep
    for place in bad_places(tmp_path).values():
        assert cli.main([verb, "-c", str(config), "--run-dir", str(place), "-q"]) == 1
        err = capsys.readouterr().err
        assert err.count("error:") == 1 and "Traceback" not in err and str(place) in err


@pytest.mark.parametrize(
    "command",
    [
        ["prompts", "hard", "--count", "4", "-o", "OUT.jsonl"],
        ["micro", "voice", "--out", "OUT"],
        ["micro", "build", "--quick", "--out", "OUT"],
        ["micro", "build", "--quick", "--work", "OUT"],
        ["micro", "check", "--json", "OUT"],
        ["speaker", "add", "--model", "micro", "--name", "N", "--wav", "x.wav", "--cond", "zero", "-o", "OUT.pt"],
        ["speaker", "add", "--model", "micro", "--name", "N", "--wav", "x.wav", "--cond", "zero", "-o", "OUT"],
    ],
)
def test_every_output_is_looked_at_before_the_work(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "below", Path("/proc/talker/x"), tmp_path / ("x" * 300) / "y"):
        assert cli.main([part.replace("OUT", str(place)) for part in command]) == 1
        err = capsys.readouterr().err
        assert "Nothing can be written here" in err and "Traceback" not in err


def test_an_error_of_the_system_about_a_place_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x"))

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["run"]) == 1
    err = capsys.readouterr().err
    assert "permission denied" in err and str(tmp_path / "x") in err and "Traceback" not in err
    lost = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "none" / "x"))
    assert "its folder is not there" in str(unwritable(lost))
    read = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "x"))
    assert unwritable(read) is None  # a bug keeps its traceback
    assert unwritable(OSError(errno.EACCES, "no place is named")) is None and unwritable(ValueError()) is None
