"""Files of a run that were changed, cut or removed: every verb that reads one says so, or gives what it gave."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline_helpers import write_world

from talker_rl import cli
from talker_rl.base.disk import CHECKSUM, read_json
from talker_rl.base.errors import DataError
from talker_rl.base.seals import LIST, seal, verified

ADAPTER = "round1/train/default/checkpoint-6/adapter_model.safetensors"
LOG = "round1/train/default/log.jsonl"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its diagnostics."""
    world = tmp_path_factory.mktemp("world")
    run = world / "run"
    assert cli.main(["run", "-c", str(write_world(world)), "--run-dir", str(run), "-q"]) == 0
    assert cli.main(["diagnose", "--run-dir", str(run), "-q"]) == 0
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy, by hard links: what is damaged is written anew."""
    shutil.copytree(finished, tmp_path / "run", copy_function=os.link)
    return tmp_path / "run"


def damage(file: Path, change: Callable[[bytes], bytes] | None) -> None:
    """Write other bytes in the place of a file's; None removes it."""
    before = file.read_bytes()
    file.unlink()
    if change is not None:
        file.write_bytes(change(before))


def flip(blob: bytes) -> bytes:
    """One bit, in the middle."""
    at = len(blob) // 2
    return blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]


def mantissas(blob: bytes) -> bytes:
    """A low bit of many numbers; the header and so all names and shapes stay."""
    begin = 8 + int.from_bytes(blob[:8], "little")
    return blob[:begin] + bytes(b ^ 1 if i % 4 == 1 else b for i, b in enumerate(blob[begin:]))


def half(blob: bytes) -> bytes:
    return blob[: len(blob) // 2]


def contents(run: Path) -> dict[str, str]:
    return {name: entry["content"] for name, entry in read_json(run / "manifest.json")["stages"].items()}


def figures(run: Path) -> str:
    return (run / "eval" / "summary.json").read_text()


def told(capsys: pytest.CaptureFixture[str], run: Path, *command: str) -> str:
    """The refusal: what, where and fix, and no traceback."""
    capsys.readouterr()
    place = [str(run)] if command[0] == "show" else ["--run-dir", str(run)]
    assert cli.main([*command, *place]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error and "where: " + str(run) in error and "fix: " in error
    return error


@pytest.mark.parametrize("change", [flip, half, None])
@pytest.mark.parametrize(("file", "command"), [
    ("manifest.json", ["report"]),
    ("pairs/index.json", ["report"]),
    ("eval/default/candidates/index.json", ["report"]),
    ("eval/base/shard-00001.parquet", ["report"]),
    ("round1/choice/default/choice.json", ["report"]),
    ("round1/train/default/result.json", ["export", "--adapter", "OUT"]),
    ("train/default/log.jsonl", ["report"]),
    ("train/default/adapter_config.json", ["export", "--adapter", "OUT"]),
    ("train/default/adapter_model.safetensors", ["export", "--adapter", "OUT"]),
    ("eval/default/summary.json", ["export", "--adapter", "OUT"]),
    ("eval/summary.json", ["show"]),
])
def test_what_a_verb_reads_and_does_not_make_is_refused(
    run: Path, file: str, command: list[str], change: Callable[[bytes], bytes] | None, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(run / file, change)
    if (file, change) == ("eval/summary.json", None):  # a run without it is not finished: what goes on is told
        assert cli.main(["show", str(run)]) == 0
        assert "talker-rl run --run-dir" in capsys.readouterr().out
        return
    error = told(capsys, run, *[str(tmp_path / "out") if part == "OUT" else part for part in command])
    assert Path(file).name in error or (change is None and file in ("manifest.json",))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [flip, half, None])
def test_what_a_run_makes_itself_is_made_again(
    finished: Path, run: Path, change: Callable[[bytes], bytes] | None
) -> None:
    [shard] = (run / "conditioning").glob("*.safetensors")
    [reference] = run.glob("reference/*/*.safetensors")
    for file in (shard, reference, run / "eval/default/candidates/shard-00000.parquet",
                 run / "pairs/shard-00000.parquet", run / "train/default/adapter_model.safetensors",
                 run / "diagnostics/default/samples.parquet"):
        damage(file, change)
    assert cli.main(["run", "--run-dir", str(run), "-q"]) == 0
    assert cli.main(["diagnose", "--run-dir", str(run), "-q"]) == 0
    assert contents(run) == contents(finished) and figures(run) == figures(finished)


@pytest.mark.parametrize("stage", ["rollouts", "round1/choice/default", "eval/default"])
def test_changed_conditioning_is_noticed_by_the_first_stage_that_reads_it(
    run: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    [shard] = (run / "conditioning").glob("*.safetensors")
    damage(shard, mantissas)
    verb = {"rollouts": "rollout", "round1/choice/default": "train", "eval/default": "eval"}[stage]
    error = told(capsys, run, verb, "--force-stage", stage)
    assert f"{shard.name} is damaged: its content is not what was written" in error and "talker-rl condition" in error


@pytest.mark.parametrize("file", ["rollouts/shard-00001.parquet", "rollouts/index.json", "conditioning",
                                  "manifest.json"])
def test_rates_are_not_taken_from_what_is_damaged(
    finished: Path, run: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    [shard] = (run / "conditioning").glob("*.safetensors")
    damage(shard if file == "conditioning" else run / file, mantissas if file == "conditioning" else flip)
    capsys.readouterr()
    assert cli.main(["plan", "-c", str(finished.parent / "config.yaml"), "--rates", str(run)]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error and "damaged" in error and "fix: " in error


def test_a_changed_checkpoint_is_not_judged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run / ADAPTER, mantissas)
    error = told(capsys, run, "train", "--force-stage", "round1/choice/default")
    assert "adapter_model.safetensors is damaged" in error and "it was trained in" in error


def test_a_damaged_line_of_the_log_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / LOG).with_name(LIST).unlink()  # as of a run from before there were lists
    damage(run / LOG, lambda blob: blob.replace(b'"step": 2', b'"st\xff": 2', 1))
    assert "log.jsonl:2" in told(capsys, run, "run", "-q")


def test_a_run_of_before_there_were_lists_and_checksums_goes_on(finished: Path, run: Path) -> None:
    for file in run.rglob("*.json"):
        if file.name == LIST:
            file.unlink()
        elif f'"{CHECKSUM}"' in (text := file.read_text()):
            lines = [line for line in text.splitlines() if f'"{CHECKSUM}"' not in line]
            lines[-2] = lines[-2].rstrip(",")
            file.unlink()
            file.write_text("\n".join(lines))
    assert cli.main(["run", "--run-dir", str(run), "-q"]) == 0
    assert contents(run) == contents(finished) and figures(run) == figures(finished)


def test_a_file_is_verified_by_its_folders_list(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"abc")
    assert verified(file, fix="none") == file
    seal(tmp_path, [file.name])
    assert verified(file, fix="none") == file
    file.write_bytes(b"abd")
    with pytest.raises(DataError, match=r"weights.bin is damaged(.|\n)*fix:   copy it again"):
        verified(file, fix="copy it again")
    file.unlink()
    with pytest.raises(DataError, match="weights.bin is missing"):
        verified(file, fix="copy it again")
    damage(tmp_path / LIST, flip)
    with pytest.raises(DataError, match=LIST):
        verified(file, fix="copy it again")
