"""The run folder: atomic writes, a lock, refusal with a difference, shards that notice damage."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from talker_rl.base.disk import atomic_write
from talker_rl.base.errors import DataError, StageError
from talker_rl.base.ids import Fingerprint
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.store.run_dir import RunDir, config_diff
from talker_rl.store.shards import ShardFolder, schema_of


def candidate(i: int) -> Candidate:
    return Candidate(f"p{i}", f"p{i}-0", "Ann", 2**31 - 1 - i, [1, 8193, i], 8294, "eos", [-0.5, -1.25, -3.0, -0.125])


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StageError, match="The disk is full") as caught:
        atomic_write(tmp_path / "a", "new")
    assert "same command again" in str(caught.value)
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_other_errors_are_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="input/output"):
        atomic_write(tmp_path / "a", "new")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_loses_no_finished_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ShardFolder(tmp_path / "s", "key")
    folder.write(0, [candidate(0)], Candidate)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(StageError):
            folder.write(1, [candidate(1)], Candidate)
    again = ShardFolder(tmp_path / "s", "key")
    assert again.missing(2) == [1]
    assert again.read(0, Candidate) == [candidate(0)]


def test_two_processes_in_one_folder_are_refused(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run"):
        with pytest.raises(StageError, match="Another process") as caught:
            RunDir(tmp_path / "run")
        assert str(os.getpid()) in str(caught.value)
    RunDir(tmp_path / "run").close()


def test_a_finished_stage_with_another_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    with RunDir(tmp_path) as run:
        run.begin("rollouts", {"rollouts": {"n": 4, "t": 0.9}}, {"prompts": "aa"})
        run.finish("rollouts", content="c1", seconds=1.0)
        assert run.content("rollouts") == "c1"
        run.begin("rollouts", {"rollouts": {"n": 4, "t": 0.9}}, {"prompts": "aa"})
        with pytest.raises(StageError) as caught:
            run.begin("rollouts", {"rollouts": {"n": 8, "t": 0.9}}, {"prompts": "aa"})
        assert "rollouts.n: 4 -> 8" in str(caught.value)
        assert "rollouts.t" not in str(caught.value)
        assert "--force-stage rollouts" in str(caught.value)
        with pytest.raises(StageError, match="input prompts"):
            run.begin("rollouts", {"rollouts": {"n": 4, "t": 0.9}}, {"prompts": "bb"})


def test_an_option_that_came_later_and_is_off_changes_nothing(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run") as run:
        key = run.begin("pairs", {"pairs": {"margin": 0.1}}, {"scores": "a"})
        run.finish("pairs", content="x", seconds=0.1)
        assert run.begin("pairs", {"pairs": {"margin": 0.1, "votes": None}}, {"scores": "a"}) == key
        assert run.is_done("pairs")
        with pytest.raises(StageError, match="pairs.votes: null -> "):
            run.begin("pairs", {"pairs": {"margin": 0.1, "votes": "v.json"}}, {"scores": "a"})


def test_a_begun_stage_with_a_finished_shard_is_refused_and_one_without_starts_anew(tmp_path: Path) -> None:
    with RunDir(tmp_path) as run:
        run.begin("rollouts", {"n": 4}, {})
        key = run.begin("rollouts", {"n": 5}, {})
        ShardFolder(tmp_path / "rollouts", key).write(0, [candidate(0)], Candidate)
        with pytest.raises(StageError, match="n: 5 -> 6"):
            run.begin("rollouts", {"n": 6}, {})


def test_forcing_a_stage_clears_what_depends_on_it_and_nothing_else(tmp_path: Path) -> None:
    with RunDir(tmp_path) as run:
        for name, inputs in {"prompts": {}, "rollouts": {"prompts": "x"}, "scores": {"rollouts": "x"},
                             "eval/base": {"prompts": "x"}}.items():
            run.begin(name, {}, inputs)
            run.finish(name, content="x", seconds=0.0)
    with RunDir(tmp_path, force=["rollouts"]) as run:
        assert list(run.stages) == ["prompts", "eval/base"]
        assert not (tmp_path / "scores").exists() and (tmp_path / "prompts").exists()
    with pytest.raises(StageError, match="no stage 'score'"):
        RunDir(tmp_path, force=["score"])


def test_a_stage_redone_with_other_content_is_refused(tmp_path: Path) -> None:
    with RunDir(tmp_path) as run:
        run.begin("rollouts", {}, {})
        run.finish("rollouts", content="a", seconds=0.0)
        with pytest.raises(StageError, match="content changed"):
            run.finish("rollouts", content="b", seconds=0.0)
        with pytest.raises(StageError, match="not finished"):
            run.content("scores")


def test_the_manifest_says_what_was_run(tmp_path: Path) -> None:
    with RunDir(tmp_path) as run:
        run.record_command({"seed": 3}, ["talker-rl", "run"], "cpu")
        run.record_command({"seed": 3}, ["talker-rl", "run", "--quiet"], "cpu")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [c["argv"][-1] for c in manifest["commands"]] == ["run", "--quiet"]
    assert manifest["config"] == {"seed": 3} and manifest["seed"] == 3 and manifest["config_hash"]
    command = manifest["commands"][0]
    assert command["versions"]["torch"] and command["device"] == "cpu" and set(command["code"]) == {"commit", "diff"}


def test_a_damaged_manifest_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        RunDir(tmp_path)


def test_differences_are_dotted_leaves() -> None:
    assert config_diff({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": [1]}, "d": None}) == ["a.b: 1 -> 2"]
    assert config_diff({}, {"x": {"y": 1}}) == ["x: null -> {\"y\": 1}"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_shard_is_named_when_read_and_made_again_when_resumed(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = ShardFolder(tmp_path, "key")
    for i in range(3):
        folder.write(i, [candidate(i)], Candidate)
    content = folder.content()
    file = tmp_path / ShardFolder.name(1)
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[20] ^= 0xFF
        file.write_bytes(data)
    else:
        file.unlink()
    with pytest.raises(DataError, match="shard-00001"):
        ShardFolder(tmp_path).read_all(Candidate)
    resumed = ShardFolder(tmp_path, "key")
    assert resumed.missing(4) == [1, 3]
    assert "shard-00001" in caplog.text
    resumed.write(1, [candidate(1)], Candidate)
    assert resumed.content() == content
    assert resumed.read_all(Candidate) == [candidate(i) for i in range(3)]


def test_shards_of_another_key_are_not_taken(tmp_path: Path) -> None:
    ShardFolder(tmp_path, "one").write(0, [candidate(0)], Candidate)
    assert ShardFolder(tmp_path, "two").missing(1) == [0]


def test_records_survive_parquet_and_columns_of_nulls_keep_their_type(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, "k")
    scores = [ScoreRow("p", "p-0", "ok", 0.5, {"wer": 0.25, "cer": None}, ["one"], [(0.0, 0.5)]),
              ScoreRow("p", "p-1", "failed", error_code="empty", retryable=True)]
    prompts = [Prompt("你好。", "Ann", "zh", [{"role": "user", "content": "hi"}]), Prompt("a", "Bob")]
    folder.write(0, scores, ScoreRow)
    folder.write(1, prompts, Prompt)
    read = folder.read(0, ScoreRow)
    assert [[tuple(s) for s in r.spans] for r in read] == [[(0.0, 0.5)], []]
    assert (read[0].components, read[0].reward, read[1].error_code, read[1].reward) == (
        {"wer": 0.25, "cer": None}, 0.5, "empty", None)
    assert folder.read(1, Prompt) == prompts
    assert str(schema_of(ScoreRow).field("error_code").type) == "string"


def test_a_run_in_which_nothing_was_done_leaves_no_folder(tmp_path: Path) -> None:
    """A prompt file that is not there, told once the folder was made, is no run; a stage that finished is one."""
    path = tmp_path / "runs" / "new"
    with pytest.raises(StageError), RunDir(path) as run:
        run.record_command({"seed": 0}, ["talker-rl"], "cpu")
        run.begin("prompts", {}, {})
        raise StageError("no such file")
    assert list(tmp_path.iterdir()) == []
    path.mkdir(parents=True)
    with pytest.raises(StageError), RunDir(path):  # a folder of the user's own stays
        raise StageError("no such file")
    assert path.is_dir()
    other = tmp_path / "runs" / "other"
    with pytest.raises(StageError), RunDir(other) as run:
        run.begin("prompts", {}, {})
        (other / "prompts" / "shard-00000.parquet").write_bytes(b"x")
        raise StageError("later")
    assert (other / "manifest.json").is_file()
    with pytest.raises(KeyboardInterrupt), RunDir(tmp_path / "third") as run:
        run.save()
        raise KeyboardInterrupt
    assert (tmp_path / "third" / "manifest.json").is_file()


@pytest.mark.parametrize(("before", "now", "told"), [
    ({"model": Fingerprint("a" * 64, {"config.json": "1", "model.safetensors": "2"})},
     {"model": Fingerprint("b" * 64, {"config.json": "1", "model.safetensors": "3"})},
     'input model.model.safetensors: "2" -> "3"'),
    ({"reward": Fingerprint("a" * 64, {"version of the scoring rules": 1})},
     {"reward": Fingerprint("b" * 64, {"version of the scoring rules": 2})},
     "input reward.version of the scoring rules: 1 -> 2"),
    ({"model": "a" * 64}, {"model": Fingerprint("b" * 64, {"config.json": "1"})},  # of an earlier version
     "input model: its content changed (aaaaaaaaaaaa -> bbbbbbbbbbbb)"),
    ({}, {"version of decoding": "2"}, "version of decoding: 1 -> 2"),
    ({}, {"model.adapter": "c" * 64}, "input model.adapter: it was not there"),
    ({"model.adapter": "c" * 64}, {}, "input model.adapter: it is not there any more"),
])
def test_a_refusal_names_the_part_of_an_input_that_changed(
    tmp_path: Path, before: dict[str, str], now: dict[str, str], told: str
) -> None:
    with RunDir(tmp_path) as run:
        run.begin("scores", {}, before)
        run.finish("scores", content="x", seconds=0.0)
    with RunDir(tmp_path) as run, pytest.raises(StageError) as raised:  # from its manifest
        run.begin("scores", {}, now)
    assert str(raised.value).splitlines()[1].strip() == told
