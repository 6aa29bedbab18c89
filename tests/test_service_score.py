"""`talker-rl score --endpoint`: the rows of in-process scoring; outages and strangers stop it before a pair is made."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from service_helpers import Service, set_touchy, wait_for

from talker_rl import cli
from talker_rl.records.pair import Pair
from talker_rl.records.score import ScoreRow
from talker_rl.reward.client import ScoreClient
from talker_rl.stages.serve import canary_of
from talker_rl.store.shards import ShardFolder


@pytest.fixture(scope="module")
def sampled(service_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose rollouts are done."""
    run = tmp_path_factory.mktemp("sampled") / "run"
    for verb in ("prompts", "condition", "rollout"):
        assert cli.main([verb, "-c", str(service_config), "--run-dir", str(run), "-q", "--debug"]) == 0
    return run


@pytest.fixture
def run(sampled: Path, tmp_path: Path, service_config: Path) -> Any:
    yield shutil.copytree(sampled, tmp_path / "run")
    set_touchy(service_config.parent)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(ScoreClient, patience=1.0, item_retries=1)
    monkeypatch.setattr("talker_rl.reward.client.ScoreClient", quick)


def do(verb: str, config: Path, run: Path, *more: str) -> int:
    return cli.main([verb, "-c", str(config), "--run-dir", str(run), "-q", *more])


def rows_of(run: Path) -> list[ScoreRow]:
    return ShardFolder(run / "scores").read_all(ScoreRow)


def test_scores_through_the_service_equal_those_of_this_process(
    service: Service, service_config: Path, run: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    assert do("score", service_config, run) == 0
    assert do("score", service_config, other, "--endpoint", service.url, "--debug") == 0
    here, there = rows_of(run), rows_of(other)
    assert len(here) == 24 and len({r.reward for r in here}) > 3
    for a, b in zip(here, there, strict=True):
        assert (a.candidate_id, a.prompt_id, a.status, a.transcript, a.errors, a.error_code, a.error_message) == (
            b.candidate_id, b.prompt_id, b.status, b.transcript, b.errors, b.error_code, b.error_message)
        assert a.reward == pytest.approx(b.reward, abs=1e-5)
        assert np.allclose(a.spans, b.spans, atol=1e-5)
        assert a.components.keys() == b.components.keys()
        assert all(b.components[name] == pytest.approx(value, abs=1e-5) for name, value in a.components.items())
    assert do("score", service_config, other, "--endpoint", "http://127.0.0.1:9") == 0, "a finished stage asks nobody"
    best = canary_of(other)
    assert best.reward == max(r.reward for r in there if r.reward is not None) and best.item.codes
    row = service.run(service.engine.score([best.item]))[0]
    assert row["transcript"] == best.transcript and row["reward"] == pytest.approx(best.reward, abs=1e-5)


def test_an_outage_leaves_zero_pairs_with_an_unscored_candidate(
    service: Service, service_config: Path, run: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = ShardFolder.write
    through = ["--endpoint", service.url, "reward.max_failure_rate=0.1"]  # less than the share of one shard
    service.engine._cache.clear()

    def write_and_break(folder: ShardFolder, i: int, *rest: Any) -> None:
        write(folder, i, *rest)
        if folder.path.name == "scores":
            service.run(hold())

    async def hold() -> None:
        for pool in service.engine.pools.values():
            await pool.close()
        service.engine.config = service.engine.config.model_copy(update={"request_timeout": 0.2})

    normal = service.engine.config
    monkeypatch.setattr(ShardFolder, "write", write_and_break)
    try:
        assert do("score", service_config, run, *through) == 1
    finally:
        service.engine.config = normal
        service.run(start(service))
        monkeypatch.setattr(ShardFolder, "write", write)
        service.wait_ready()
    told = capsys.readouterr().err
    assert "of the scores failed" in told and "deadline" in told and "Traceback" not in told
    assert do("pair", service_config, run) == 1
    assert "scores of this run is not finished" in capsys.readouterr().err
    assert not (run / "pairs").exists()
    assert do("score", service_config, run, *through) == 0
    assert all(r.status == "ok" for r in rows_of(run)), "the shard that the outage hit was made again"


async def start(service: Service) -> None:
    service.engine.start()


def test_no_service_at_all_is_one_clear_message_and_the_same_command_goes_on_later(
    service: Service, service_config: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert do("score", service_config, run, "--endpoint", "http://127.0.0.1:9", "pairs.margin=0.01") == 1
    told = capsys.readouterr().err
    assert told.startswith("error: No reward service became ready") and "Traceback" not in told
    assert not list((run / "scores").glob("*.parquet"))
    assert do("score", service_config, run, "--endpoint", "http://127.0.0.1:9", service.url) == 0
    assert len(rows_of(run)) == 24


def test_failed_candidates_enter_no_pair_and_too_many_stop_the_run(
    service: Service, service_config: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = sorted(len(c["codes"]) for c in ShardFolder(run / "rollouts").all_rows())
    few, many = lengths[-4] / 50, lengths[5] / 50
    other = shutil.copytree(run, tmp_path / "other")
    service.engine._cache.clear()
    set_touchy(service_config.parent, raises_above=few)
    assert do("score", service_config, run, "--endpoint", service.url) == 0
    failed = {r.candidate_id for r in rows_of(run) if r.status == "failed"}
    assert 0 < len(failed) <= 7 and all(r.reward is None for r in rows_of(run) if r.candidate_id in failed)
    assert do("pair", service_config, run) == 0
    pairs = ShardFolder(run / "pairs").read(0, Pair)
    assert pairs and not failed & {name for p in pairs for name in (p.chosen_id, p.rejected_id)}
    service.engine._cache.clear()
    set_touchy(service_config.parent, raises_above=many)
    capsys.readouterr()
    assert do("score", service_config, other, "--endpoint", service.url) == 1
    told = capsys.readouterr().err
    assert "of the scores failed" in told and "recognizer_error" in told and "told to raise" in told
    assert do("pair", service_config, other) == 1


def test_another_scorer_is_refused(
    service: Service, service_config: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    through = ["--endpoint", service.url]
    assert do("score", service_config, run, *through, "reward.wer_scale=2.0") == 1
    assert "scores otherwise than the run. What differs: reward, the settings under reward:" in capsys.readouterr().err
    assert do("score", service_config, run, *through, "token2wav.num_steps=3", "--force-stage", "scores") == 1
    assert "otherwise than the run. What differs: token2wav, the settings under token2wav:" in capsys.readouterr().err
    assert do("score", service_config, run, *through, "--force-stage", "scores") == 0
    note = run / "scores" / "service.json"
    assert json.loads(note.read_text())["fingerprint"] == service.engine.fingerprint
    begun = json.loads(note.read_text())["parts"] | {"recognizer": "another"}
    note.write_text(json.dumps({"fingerprint": "0" * 64, "parts": begun}))
    (run / "scores" / "shard-00001.parquet").unlink()  # something is left to do
    assert do("score", service_config, run, *through) == 1
    told = capsys.readouterr().err
    assert "Another scorer" in told and "What differs: recognizer, the recognizer's files (serve" in told


def test_a_full_disk_is_told_and_what_is_finished_is_kept(
    service: Service, service_config: Path, run: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import errno
    import os

    real, calls = os.replace, []

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "shard-00001.parquet" and not calls:
            calls.append(target)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert do("score", service_config, run, "--endpoint", service.url) == 1
    assert "disk is full" in capsys.readouterr().err
    assert len(ShardFolder(run / "scores")) == 1
    assert do("score", service_config, run, "--endpoint", service.url) == 0
    assert len(rows_of(run)) == 24
    wait_for(lambda: service.metric("queued_seconds") == 0.0)


def test_an_online_training_is_judged_through_the_service(
    service: Service, service_config: Path, tmp_path: Path
) -> None:
    """The same candidates, rewards and weights as judged in this process; its folder remembers the scorer."""
    data = yaml.safe_load(service_config.read_text())
    config = service_config.parent / "online.yaml"
    config.write_text(yaml.safe_dump(data | {"train": {
        "data": "online", "loss": {"type": "grpo"}, "chosen_drop_alarm": None,
        "online": {"prompts_per_step": 2, "num_generations": 3, "decodes": 12},
        "args": {"save_steps": 5, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "logging_steps": 1}}}))
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder, more in zip(folders, ([], ["--endpoint", service.url]), strict=True):
        assert do("prompts", config, folder) == 0 and do("condition", config, folder) == 0
        assert do("train", config, folder, *more, "--debug") == 0
    stages = [folder / "round1/train/default" for folder in folders]
    here, there = (ShardFolder(stage / "online/scores").read_all(ScoreRow) for stage in stages)
    assert [r.candidate_id for r in here] == [r.candidate_id for r in there] and len(here) == 12
    assert [r.reward for r in here] == pytest.approx([r.reward for r in there], abs=1e-5)
    assert len({r.reward for r in here}) > 2
    one, other = (load_file(stage / "adapter_model.safetensors") for stage in stages)
    assert all(torch.allclose(one[k], other[k], atol=1e-4) for k in one)
    assert any(v.abs().max() > 1e-4 for k, v in one.items() if "lora_B" in k)
    assert (stages[1] / "service.json").is_file() and not (stages[0] / "service.json").exists()
