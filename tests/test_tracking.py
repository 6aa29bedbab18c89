"""Trackers: what arrives in each, and that a run goes on whatever they do."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from test_report import full_data, tone

from talker_rl import cli, tracking
from talker_rl.base.errors import ConfigError
from talker_rl.config import RunConfig, load_data
from talker_rl.store.run_dir import RunDir
from talker_rl.tracking import CLIPS, Target, Tracking, check_tracker, send_result

STAGE = "round1/train/default"


def config(to: str) -> RunConfig:
    return load_data({"name": "demo", "tracking": {"to": to, "project": "voices"}})


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    """A run with two stages that have begun."""
    with RunDir(tmp_path / "run") as folder:
        for stage in (STAGE, "eval/default"):
            folder.begin(stage, {}, {})
        yield folder


def send_everything(run: RunDir, to: str) -> None:
    """Three steps of a training, then a result."""
    used = Tracking(config(to), run.path)
    with used.stage(STAGE) as tracker:
        for step in (1, 2, 3):
            tracker.log({"loss": 1 / step, "rewards/margins": np.float64(step), "text": "no number", "on": True}, step)
    with used.stage("eval/default") as tracker:
        send_result(tracker, full_data())


class Recorder:
    """A tracker in memory; ``broken`` names the call that raises."""

    made: list[Recorder] = []
    broken: str | None = None

    def __init__(self, target: Target) -> None:
        self.target = target
        self.calls: list[tuple[Any, ...]] = []
        Recorder.made.append(self)
        self._note("open")

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] == self.broken:
            raise ConnectionError("the tracker's server\nis on fire")

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._note("log", metrics, step)

    def table(self, name: str, rows: tracking.Table) -> None:
        self._note("table", name, rows)

    def audio(self, name: str, samples: np.ndarray, sample_rate: int, caption: str) -> None:
        self._note("audio", name, samples, caption)

    def finish(self) -> None:
        self._note("finish")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setitem(tracking.TRACKERS, "wandb", Recorder)
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setattr(Recorder, "broken", None)
    return Recorder


def test_steps_tables_and_speech_are_sent(run: RunDir, recorder: type[Recorder]) -> None:
    send_everything(run, "wandb")
    training, result = recorder.made
    assert training.calls == [
        ("open",), ("log", {"loss": 1.0, "rewards/margins": 1.0}, 1), ("log", {"loss": 0.5, "rewards/margins": 2.0}, 2),
        ("log", {"loss": 1 / 3, "rewards/margins": 3.0}, 3), ("finish",),
    ]  # fmt: skip
    assert (training.target.project, training.target.run, training.target.stage) == ("voices", "demo", STAGE)
    assert training.target.first_step == 1 and training.target.config["name"] == "demo"
    tables = {call[1]: call[2] for call in result.calls if call[0] == "table"}
    assert tables["summary"][0] | {"change": ""} == {
        "label": "WER, corpus", "base": "25.00%", "trained": "12.50%", "change": ""}  # 12, then 6 of 48 words
    assert tables["speech"][1] == {"clip": "before_after/1 trained", "text": "<script>alert(1)</script>",
                                   "speaker": "Ethan", "figures": "WER 0.25"}
    figures = next(call[1] for call in result.calls if call[0] == "log")
    assert (figures["base/wer"], figures["trained/wer"]) == (0.25, 0.125)
    assert [call[1] for call in result.calls if call[0] == "audio"] == ["before_after/1 base", "before_after/1 trained"]
    assert result.calls[-1] == ("finish",)


def test_only_a_few_clips_are_sent(run: RunDir, recorder: type[Recorder]) -> None:
    data = full_data()
    data.before_after *= 10
    data.pair_clips = data.before_after
    with Tracking(config("wandb"), run.path).stage(STAGE) as tracker:
        send_result(tracker, data)
    assert sum(call[0] == "audio" for call in recorder.made[0].calls) == 2 * 2 * CLIPS


def test_a_run_without_result_or_tracker_sends_nothing(run: RunDir, recorder: type[Recorder]) -> None:
    send_everything(run, "none")
    with Tracking(config("wandb"), run.path).stage(STAGE):
        pass
    assert not recorder.made  # nor is one opened that nothing is sent to


@pytest.mark.parametrize("broken", ["open", "log", "table", "audio", "finish"])
def test_a_tracker_that_raises_becomes_one_warning_and_is_off(
    run: RunDir, recorder: type[Recorder], broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.broken = broken
    with caplog.at_level(logging.WARNING):
        send_everything(run, "wandb")
        send_everything(run, "wandb")  # another command tries again, and warns again
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["wandb failed and is off, the run goes on"] * 2
    assert "ConnectionError" in caplog.text
    for made in recorder.made:
        names = [call[0] for call in made.calls]
        assert names.count(broken) <= 1  # never again after it failed
        assert "open" == broken or names[-1] == "finish"  # what it has may still be saved
    assert len(recorder.made) == (4 if broken in ("table", "audio") else 2)


def test_an_interruption_is_no_failure_of_the_tracker(run: RunDir, recorder: type[Recorder]) -> None:
    with pytest.raises(KeyboardInterrupt), Tracking(config("wandb"), run.path).stage(STAGE) as tracker:
        tracker.log({"loss": 1.0}, 1)
        raise KeyboardInterrupt
    assert recorder.made[0].calls[-1] == ("finish",)


def test_a_stage_that_goes_on_keeps_its_name_and_one_done_again_does_not(
    run: RunDir, recorder: type[Recorder]
) -> None:
    def identity() -> str:
        with Tracking(config("wandb"), run.path).stage(STAGE) as tracker:
            tracker.log({"loss": 1.0}, 1)
        return recorder.made[-1].target.id

    first = identity()
    assert identity() == first
    run.stages[STAGE]["started"] = "2030-01-01T00:00:00Z"  # as --force-stage leaves it
    run.save()
    assert identity() != first


@pytest.mark.parametrize(("to", "verb"), [("wandb", "run"), ("trackio", "train"), ("tensorboard", "eval")])
def test_a_missing_package_is_told_before_any_work(
    to: str, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, to, None)
    smoke = str(Path(__file__).resolve().parents[1] / "configs" / "smoke.yaml")
    args = [verb, "-c", smoke, f"tracking.to={to}", "-q", "--run-dir", str(tmp_path / "run")]
    if verb != "run":  # which goes on with a run
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "manifest.json").write_text(
            '{"format": 1, "stages": {}, "commands": [], "parents": {}}')
    assert cli.main(args) == 2
    err = capsys.readouterr().err
    assert f"{to} is not installed" in err and f"pip install 'talker-rl[{to}]'" in err
    if verb == "run":  # a run in which nothing was done leaves no folder
        assert not (tmp_path / "run").exists()
    else:
        assert not json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"]


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()  # wandb leaves one where it runs, and Python would import it
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match="wandb is not installed"):
        check_tracker(config("wandb"))
    check_tracker(config("none"))


# -- the real ones ----------------------------------------------------------------------------------------------


def sound(data: bytes | Path) -> np.ndarray:
    samples, rate = sf.read(io.BytesIO(data) if isinstance(data, bytes) else data)
    assert rate == 24_000
    return samples


def test_tensorboard_event_files_hold_it_all(run: RunDir) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # part of the dev extra

    def read(stage: str) -> Any:
        return EventAccumulator(str(run.path / stage / "tensorboard"), {"audio": 0, "tensors": 0}).Reload()

    send_everything(run, "tensorboard")
    assert [(e.step, round(e.value, 4)) for e in read(STAGE).Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 0.3333)]
    result = read("eval/default")
    assert result.Scalars("trained/wer")[0].value == pytest.approx(0.125)
    table = result.Tensors("summary/text_summary")[0].tensor_proto.string_val[0].decode()
    assert table.startswith("| label | base | trained | change |\n| --- |")
    assert "| WER, corpus | 25.00% | 12.50% |" in table
    assert sorted(result.Tags()["audio"]) == ["before_after/1 base", "before_after/1 trained"]
    heard = sound(result.Audio("before_after/1 base")[0].encoded_audio_string)
    np.testing.assert_allclose(heard, tone(), atol=1e-4)

    # Event files are read in the order of their names: the second, the host, and a count that sorts 10 before 9.
    before = int(time.time())
    while int(time.time()) == before:
        time.sleep(0.01)
    with Tracking(config("tensorboard"), run.path).stage(STAGE) as tracker:  # interrupted after step 3, resumed from 1
        for step in (2, 3, 4):
            tracker.log({"loss": 10.0 + step}, step)
    assert [(e.step, e.value) for e in read(STAGE).Scalars("loss")] == [(1, 1.0), (2, 12.0), (3, 13.0), (4, 14.0)]


def test_wandb_writes_an_offline_run(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "wandb is not part of the dev extra: pip install 'talker-rl[wandb]'"
    wandb = pytest.importorskip("wandb", reason=reason)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    send_everything(run, "wandb")
    wandb.teardown()  # its writer is a process of its own: wait for it
    training, result = sorted(run.path.resolve().glob("wandb/offline-run-*"), key=lambda p: p.stat().st_mtime)
    stored = next(training.glob("run-*.wandb")).read_bytes()
    assert b"rewards/margins" in stored and b"voices" in stored and b"no number" not in stored
    assert b"trained/wer" in next(result.glob("run-*.wandb")).read_bytes()
    media = result / "files" / "media"
    tables = {t["columns"][0]: t for t in (json.loads(p.read_text()) for p in media.rglob("*.table.json"))}
    assert tables["label"]["data"][0][:3] == ["WER, corpus", "25.00%", "12.50%"]
    assert tables["clip"]["data"][0][:2] == ["before_after/1 base", "<script>alert(1)</script>"]
    clips = sorted(media.rglob("*.wav"))
    assert len(clips) == 2
    np.testing.assert_allclose(sound(clips[0]), tone(), atol=1e-4)


def test_trackio_writes_its_local_database(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    reason = "trackio is not part of the dev extra: pip install 'talker-rl[trackio]'"
    pytest.importorskip("trackio", reason=reason)
    from trackio.sqlite_storage import SQLiteStorage

    send_everything(run, "trackio")
    training, result = sorted(SQLiteStorage.get_runs("voices"), key=lambda name: "eval" in name)
    rows = SQLiteStorage.get_logs("voices", training)
    assert [(r["step"], round(r["loss"], 4)) for r in rows if "loss" in r] == [(1, 1.0), (2, 0.5), (3, 0.3333)]
    merged = {key: value for r in SQLiteStorage.get_logs("voices", result) for key, value in r.items()}
    assert merged["trained/wer"] == 0.125
    assert list(merged["summary"]["_value"][0].values())[:3] == ["WER, corpus", "25.00%", "12.50%"]
    clip = merged["before_after/1 base"]
    np.testing.assert_allclose(sound(tmp_path / "trackio" / "media" / clip["file_path"]), tone(), atol=1e-4)
