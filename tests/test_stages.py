"""The stages on a random tiny model: what they leave behind, what they refuse, and that nothing is done twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import write_world
from toy import digest

from talker_rl import cli, tracking
from talker_rl.base.errors import StageError
from talker_rl.base.processes import WorkerPool
from talker_rl.config import RunConfig, load_config
from talker_rl.records.candidate import Candidate
from talker_rl.records.pair import Pair
from talker_rl.records.score import ScoreRow, nothing_recognized
from talker_rl.rounds import Round, some
from talker_rl.stages import evaluate, scores, tasks, worker
from talker_rl.stages.context import Context, open_run
from talker_rl.stages.order import all_stages
from talker_rl.stages.pipeline import run_verb
from talker_rl.store.run_dir import RunDir
from talker_rl.store.shards import ShardFolder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(configuration, folder of a finished run)."""
    world = tmp_path_factory.mktemp("world")
    config = write_world(world, audio={"keep": "all", "format": "flac"}, tracking={"to": "tensorboard"})
    run = world / "run"
    assert cli.main(["run", "-c", str(config), "--run-dir", str(run), "-q", "--debug"]) == 0
    return config, run


def copy_of(run: Path, target: Path) -> Path:
    shutil.copytree(run, target)
    return target


def hashes(run: Path) -> dict[str, str]:
    manifest = json.loads((run / "manifest.json").read_text())
    return {name: entry.get("content", "") for name, entry in manifest["stages"].items()}


def context(config: Path, run: RunDir, *overrides: str) -> Context:
    loaded: RunConfig = load_config([config], overrides)
    return Context(loaded, run, WorkerPool(1), quiet=True)


def test_every_stage_leaves_its_folder_and_its_state(finished: tuple[Path, Path]) -> None:
    _, run = finished
    manifest = json.loads((run / "manifest.json").read_text())
    assert list(manifest["stages"]) == ["prompts", "conditioning", "rollouts", "scores", "pairs",
                                        "round1/train/default", "round1/choice/default", "eval/base", "eval/default"]
    assert {entry["state"] for entry in manifest["stages"].values()} == {"done"}
    made = {folder.name for folder in run.rglob("*") if folder.is_dir()}
    assert {stage.folder for stage in all_stages() if stage.each} - made == {"completions"}, "`run` leaves out a stage"
    candidates = ShardFolder(run / "rollouts").read_all(Candidate)
    rows = ShardFolder(run / "scores").read_all(ScoreRow)
    assert len(candidates) == 8 * 3
    assert [c.candidate_id for c in candidates] == [r.candidate_id for r in rows]
    assert len({c.seed for c in candidates}) == len(candidates)
    pairs = ShardFolder(run / "pairs").read(0, Pair)
    reward = {r.candidate_id: r.reward for r in rows}
    assert pairs and all(reward[p.chosen_id] > reward[p.rejected_id] for p in pairs)
    counts = manifest["stages"]["pairs"]["counts"]
    assert counts["prompts"] == len({p.prompt_id for p in pairs}) + sum(counts["no_pair"].values())


def test_the_summary_holds_the_figures(finished: tuple[Path, Path]) -> None:
    _, run = finished
    for path in ("eval/summary.json", "eval/default/summary.json"):
        summary = json.loads((run / path).read_text())
        for side in ("base", "trained"):
            assert {"wer", "wer_mean", "reward_wer", "pause_error", "pause_error_scorable", "duration_ratio",
                    "cap_hit_rate"} <= summary[side].keys()
        assert summary["n"] == 8 and {"wer_relative_reduction", "wer_diff_ci95", "duration_ratio"} <= summary.keys()
    assert json.loads((run / "eval/base/summary.json").read_text())["n"] == 8


def test_base_and_trained_speak_the_same_prompts_from_the_same_seeds(finished: tuple[Path, Path]) -> None:
    _, run = finished
    rows = {name: list(ShardFolder(run / "eval" / name).all_rows()) for name in ("base", "default")}
    keys = {name: [(r["prompt_id"], r["seed"]) for r in found] for name, found in rows.items()}
    assert keys["base"] == keys["default"] and len(set(keys["base"])) == 8
    assert [r["transcript"] for r in rows["base"]] != [r["transcript"] for r in rows["default"]]


def test_peft_loads_the_adapter_and_it_is_the_chosen_one(finished: tuple[Path, Path]) -> None:
    from omni_factory import tiny_omni
    from peft import PeftModel

    _, run = finished
    model = PeftModel.from_pretrained(tiny_omni().talker, str(run / "train" / "default"))
    assert any("lora_B" in name and bool(p.abs().sum() > 0) for name, p in model.named_parameters())
    choice = json.loads((run / "round1/choice/default/choice.json").read_text())
    step = run / "round1/train/default" / f"checkpoint-{choice['step']}"
    name = "adapter_model.safetensors"
    assert digest(run / "train/default" / name) == digest(step / name)
    best = max((row for row in choice["checkpoints"] if row["step"]), key=lambda row: (row["reward"], -row["step"]))
    assert best["step"] == choice["step"]
    card = (run / "train/default/README.md").read_text()
    assert "reward of speech on dev prompts" in card


def test_datasets_loads_the_pairs(finished: tuple[Path, Path], tmp_path: Path) -> None:
    import datasets

    _, run = finished
    loaded = datasets.load_dataset(str(run / "pairs"), split="train", cache_dir=str(tmp_path))
    assert {"prompt", "chosen", "rejected", "margin"} <= set(loaded.column_names)
    assert [row["pair_id"] for row in loaded] == [p.pair_id for p in ShardFolder(run / "pairs").read(0, Pair)]


def test_the_page_and_the_kept_speech_can_be_opened(finished: tuple[Path, Path]) -> None:
    import soundfile

    _, run = finished
    page = (run / "report" / "index.html").read_text()
    assert page.count("<audio") == 2 * 2 + 2 * min(2, len(ShardFolder(run / "pairs").rows(0)))
    files = sorted((run / "audio" / "scores").glob("*.flac"))
    assert len(files) == 24
    by_id = {c.candidate_id: c for c in ShardFolder(run / "rollouts").read_all(Candidate)}
    for file in files[:3]:
        sound, rate = soundfile.read(file)
        assert rate == 24_000 and abs(len(sound) / rate - by_id[file.stem].duration) < 0.02


def test_the_same_command_again_does_nothing(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = finished
    copy = copy_of(run, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*.parquet")} | {
        p: p.stat().st_mtime_ns for p in copy.rglob("*.safetensors")}

    def refuse(*_: Any) -> None:
        raise AssertionError("finished work was done again")

    monkeypatch.setattr("talker_rl.stages.worker.work", refuse)
    monkeypatch.setattr("talker_rl.train.run.train_variant", refuse)
    assert cli.main(["run", "-c", str(config), "--run-dir", str(copy), "-q"]) == 0
    adapters = {p for p in before if p.parent.name == "default" and p.parent.parent.name == "train"}
    assert {p: p.stat().st_mtime_ns for p in before if p not in adapters} == {
        p: t for p, t in before.items() if p not in adapters}


def test_sampled_and_judged_at_once_is_what_two_stages_make(finished: tuple[Path, Path], tmp_path: Path) -> None:
    config, run = finished
    with RunDir(copy_of(run, tmp_path / "run")) as folder:
        ctx = context(config, folder)
        prompts, cfg = ctx.prompts("train")[:2], ctx.config.rollouts
        sampling = tasks.sampling(ctx, "rollouts", None, "rollout", prompts, cfg.num_candidates, cfg.sampling)
        made = worker.work(worker.Task(ctx.config.model, sampling, tasks.judging(ctx, prompts)))
        flat = worker.work(worker.Task(ctx.config.model, sampling, tasks.judging(ctx, prompts, "dev"))).rows
    assert [c.codes for c in made.candidates] == [c["codes"] for c in ShardFolder(run / "rollouts").rows(0)]
    scores_there = ShardFolder(run / "scores").rows(0)
    assert [(r.candidate_id, r.reward) for r in made.scores] == [
        (r["candidate_id"], r["reward"]) for r in scores_there]
    assert [(r["candidate_id"], r["reward"]) for r in flat] == [(r["candidate_id"], r["reward"]) for r in scores_there]


def test_candidates_are_called_as_in_the_version_that_began_their_stage(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    config, run = finished
    first = ShardFolder(run / "rollouts").rows(0)
    assert [c["candidate_id"] for c in first[:2]] == [f"{first[0]['prompt_id']}-{k}" for k in (0, 1)]
    before = ShardFolder(run / "eval/base/candidates").rows(0)
    with RunDir(copy_of(run, tmp_path / "run")) as folder:
        ctx = context(config, folder)
        folder.stages["eval/base"].pop("unique_ids")  # of an earlier version, killed in the first shard
        folder.stages["eval/base"].pop("content")
        for part in ("eval/base", "eval/base/candidates"):
            (folder.path / part / "index.json").unlink()
        evaluate.run_base(ctx)
        again = ShardFolder(folder.path / "eval/base/candidates").rows(0)
    assert [c["candidate_id"] for c in again[:2]] == [f"{again[0]['prompt_id']}-{k}" for k in (0, 1)]
    assert [c["candidate_id"] for c in before[:2]] != [c["candidate_id"] for c in again[:2]]
    assert [c["codes"] for c in before] == [c["codes"] for c in again]


def test_two_workers_give_the_same_results_as_one(finished: tuple[Path, Path], tmp_path: Path) -> None:
    config, run = finished
    copy = tmp_path / "run"
    with open_run(load_config([config], ["workers=2"]), copy, ["talker-rl"], quiet=True) as ctx:  # once two workers
        for verb in ("prompts", "condition", "rollout", "score", "pair"):
            run_verb(ctx, verb)
    for stage, content in hashes(copy).items():
        assert content == hashes(run)[stage], stage


def test_a_damaged_shard_is_made_again_and_nothing_else_changes(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = finished
    copy = copy_of(run, tmp_path / "run")
    file = copy / "rollouts" / "shard-00001.parquet"
    file.write_bytes(file.read_bytes()[:200])
    assert cli.main(["score", "-c", str(config), "--run-dir", str(copy), "-q", "--force-stage", "scores"]) == 1
    assert "shard-00001.parquet is damaged" in capsys.readouterr().err
    assert cli.main(["rollout", "-c", str(config), "--run-dir", str(copy), "-q"]) == 0
    assert hashes(copy)["rollouts"] == hashes(run)["rollouts"]
    assert cli.main(["score", "-c", str(config), "--run-dir", str(copy), "-q"]) == 0
    assert hashes(copy)["scores"] == hashes(run)["scores"]


def test_a_changed_config_is_refused_with_the_difference_and_force_does_it_again(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = finished
    copy = copy_of(run, tmp_path / "run")
    base = ["-c", str(config), "--run-dir", str(copy), "-q", "pairs.margin=0.02"]
    assert cli.main(["run", *base]) == 1
    err = capsys.readouterr().err
    assert "pairs.margin: 0.01 -> 0.02" in err and "--force-stage pairs" in err
    assert hashes(copy) == hashes(run)
    assert json.loads((copy / "manifest.json").read_text())["config"]["pairs"]["margin"] == 0.01
    assert cli.main(["pair", *base, "--force-stage", "pairs"]) == 0
    assert list(hashes(copy)) == ["prompts", "conditioning", "rollouts", "scores", "eval/base", "pairs"]


def test_what_does_not_change_results_may_change(finished: tuple[Path, Path], tmp_path: Path) -> None:
    config, run = finished
    copy = copy_of(run, tmp_path / "run")
    assert cli.main(["score", "-c", str(config), "--run-dir", str(copy), "-q", "workers=2", "audio.keep=none",
                     "conditioning.batch_size=3", "name=other"]) == 0


def test_a_verb_uses_the_runs_own_configuration(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = finished
    copy = copy_of(run, tmp_path / "run")
    (copy / "report" / "index.html").unlink()
    assert cli.main(["report", "--run-dir", str(copy), "-q"]) == 0
    assert (copy / "report" / "index.html").exists()


def test_too_many_failures_stop_the_run_with_their_codes(finished: tuple[Path, Path], tmp_path: Path) -> None:
    config, run = finished
    copy = copy_of(run, tmp_path / "run")
    with RunDir(copy, force=["scores"]) as folder:
        # a component that needs what is not there: every score is a failure, none becomes a number
        ctx = context(config, folder, "reward.weights.pause=1.0", "reward.max_failure_rate=0.2",
                      "reward.recognizer.type=toy_silent:recognizer")
        (tmp_path / "toy_silent.py").write_text(
            "from toy import ToyRecognizer\nclass R(ToyRecognizer):\n    def _recognize(self, a, l):\n"
            "        raise RuntimeError('broken microphone')\ndef recognizer(c):\n    return R(c)\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(tmp_path))
            with pytest.raises(StageError, match=r"\d\d% of the scores failed \(\d+ recognizer_error\)") as caught:
                scores.make(ctx, Round(1))
        assert "broken microphone" in str(caught.value)
        rows = ShardFolder(copy / "scores").read_all(ScoreRow)
        failed = [r for r in rows if r.status == "failed"]  # silence is heard without the recognizer, and scored
        assert 0 < len(failed) <= 0.2 * 24, "what is kept lies below the share: the run stops before it is passed"
        assert all(r.reward is None and r.retryable and not r.components for r in failed)


def test_length_is_removed_over_the_whole_set(finished: tuple[Path, Path], tmp_path: Path) -> None:
    import numpy as np

    config, run = finished
    copy = copy_of(run, tmp_path / "run")
    with RunDir(copy) as folder:
        ctx = context(config, folder, "reward.remove_length=true")
        raw = ShardFolder(copy / "scores").read_all(ScoreRow)
        rows = list(scores.Scored(ctx, Round(1)).scores())
    seconds = {c.candidate_id: c.duration for c in ShardFolder(run / "rollouts").read_all(Candidate)}
    assert [r.components["reward_raw"] for r in rows] == [r.reward for r in raw]

    def slope(found: list[ScoreRow]) -> float:
        groups: dict[str, list[ScoreRow]] = {}
        for row in found:
            if not nothing_recognized(row.components):  # silence keeps its minimum
                groups.setdefault(row.prompt_id, []).append(row)
        x = np.concatenate([(lambda v: v - v.mean())(np.array([seconds[r.candidate_id] for r in g]))
                            for g in groups.values()])
        y = np.concatenate([(lambda v: v - v.mean())(np.array([r.reward for r in g])) for g in groups.values()])
        return float(x @ y / (x @ x))

    assert abs(slope(raw)) > 1e-3 and abs(slope(rows)) < 1e-9


def test_a_second_round_samples_from_the_first_ones_choice(tmp_path: Path) -> None:
    config = write_world(tmp_path, iterations=2, rollouts={"prompts_per_round": 4},
                         checkpoint={"tried": "last"}, eval={"seeds": 1})
    run = tmp_path / "run"
    assert cli.main(["run", "-c", str(config), "--run-dir", str(run), "-q", "--debug"]) == 0
    names = list(hashes(run))
    assert names[5:10] == ["round1/train/default", "round1/choice/default", "round2/default/rollouts",
                           "round2/default/scores", "round2/default/pairs"]
    kept = [row["candidate_id"] for stage in ("rollouts", "round2/default/rollouts", *(f"{s}/candidates" for s in (
        "round1/choice/default", "round2/choice/default", "eval/base", "eval/default")))
        for row in ShardFolder(run / stage).all_rows()]
    assert len(kept) == len(set(kept)) == 2 * 4 * 3 + 3 * 3 + 2 * 4
    first = {c.prompt_id for c in ShardFolder(run / "rollouts").read_all(Candidate)}
    second = {c.prompt_id for c in ShardFolder(run / "round2/default/rollouts").read_all(Candidate)}
    assert len(first) == len(second) == 4 and not first & second
    settings = json.loads((run / "round2/train/default/variant.json").read_text())
    chosen = json.loads((run / "round1/choice/default/choice.json").read_text())["step"]
    assert settings["start_adapter"].endswith(f"round1/train/default/checkpoint-{chosen}")
    log = [json.loads(line) for line in (run / "train/default/log.jsonl").read_text().splitlines()]
    starts = [row for row in log if row["step"] == 1 and "loss" in row]
    assert [row["round"] for row in starts] == [1, 2]
    # the reference is the policy as each round began: the margin starts at 0 again
    assert all(abs(row["rewards/margins"]) < 1e-5 for row in starts)


def test_prompts_go_round() -> None:
    assert some("abcde", 2, 1) == ["a", "b"]
    assert some("abcde", 2, 3) == ["e", "a"]
    assert list(some("abc", 5, 2)) == ["a", "b", "c"]


def test_a_prompt_the_model_cannot_speak_is_skipped_and_counted(tmp_path: Path) -> None:
    config = write_world(tmp_path)
    train = tmp_path / "train.txt"
    train.write_text(train.read_text() + "zebra quartz.\n...\n")
    run = tmp_path / "run"
    for verb in ("prompts", "condition"):
        assert cli.main([verb, "-c", str(config), "--run-dir", str(run), "-q"]) == 0
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert stages["prompts"]["skipped"] == {"train": {"unspeakable": 1}}
    assert stages["conditioning"]["counts"] == {"prompts": 15, "skipped": 1}
    with RunDir(run) as folder:
        assert len(context(config, folder).prompts("train")) == 8


def test_a_tracker_gets_every_step_and_the_result(finished: tuple[Path, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, run = finished
    training = EventAccumulator(str(run / "round1/train/default/tensorboard")).Reload()
    log = [json.loads(line) for line in (run / "round1/train/default/log.jsonl").read_text().splitlines()]
    for name in ("loss", "rewards/margins"):
        sent = {event.step: event.value for event in training.Scalars(name)}
        assert sent == pytest.approx({row["step"]: row[name] for row in log if name in row}, rel=1e-6)
        assert len(sent) == 6
    result = EventAccumulator(str(run / "eval/default/tensorboard"), {"audio": 0}).Reload()
    summary = json.loads((run / "eval/summary.json").read_text())
    assert result.Scalars("trained/wer")[0].value == pytest.approx(summary["trained"]["wer"])
    assert set(result.Tags()["audio"]) == {f"{kind}/{i} {label}" for i in (1, 2) for kind, labels in (
        ("before_after", ("before", "after")), ("pairs", ("chosen", "rejected"))) for label in labels}
    assert {"summary/text_summary", "speech/text_summary"} <= set(result.Tags()["tensors"])


def test_a_tracker_that_fails_stops_nothing(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(target: Any) -> Any:
        raise ConnectionError("unreachable")

    config, run = finished
    copied = copy_of(run, tmp_path / "copy")
    summary = (copied / "eval/summary.json").read_bytes()
    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", broken)
    for verb in ("train", "eval"):
        args = [verb, "-c", str(config), "--run-dir", str(copied), "-q"]
        assert cli.main(args + (["--force-stage", "round1/train/default"] if verb == "train" else [])) == 0
    assert [r.getMessage() for r in caplog.records if r.name == tracking.__name__] == [
        "tensorboard failed and is off, the run goes on: ConnectionError: unreachable"] * 2  # one a command
    assert (copied / "eval/summary.json").read_bytes() == summary


def test_a_finished_run_is_shown_as_it_ended(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = finished
    assert cli.main(["eval", "-c", str(config), "--run-dir", str(copy_of(run, tmp_path / "run")), "-q"]) == 0
    ended = capsys.readouterr().out.split("figures:")[0].strip("\n")
    assert cli.main(["show", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}, default:\n{ended}\n"


def test_a_finished_run_is_scored_by_seed_tts_eval_too(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No speech is made anew; the figures are those of ``talker-rl wer --protocol`` on the same transcripts."""
    run = copy_of(finished[1], tmp_path / "run")
    assert cli.main(["eval", "--run-dir", str(run), "-q", "--protocol", "seed-tts-eval"]) == 0
    out = capsys.readouterr().out
    assert hashes(run) == hashes(finished[1])
    found = json.loads((run / "eval" / "summary.json").read_text())["seed_tts_eval"]["en"]
    assert f"seed-tts-eval en: WER {found['wer_percent']}% of {found['utterances']} utterances, base " in out
    assert f"base {found['base']['wer_percent']}% of {found['base']['utterances']}" in out
    table = (run / "eval" / "default" / "seed-tts-eval.en.tsv").read_text().splitlines()
    assert len(table) == found["utterances"] + 1 and table[-1] == f"WER: {found['wer_percent']}%"
    files = {name: tmp_path / f"{name}.tsv" for name in ("ref", "hyp")}
    fields = [line.split("\t") for line in table[:-1]]
    for name, column in (("ref", 2), ("hyp", 3)):
        files[name].write_text("".join(f"{row[0]}\t{row[column]}\n" for row in fields))
    assert cli.main(["wer", *map(str, files.values()), "--protocol", "seed-tts-eval", "--lang", "en"]) == 0
    assert capsys.readouterr().out.endswith(f"\n{table[-1]}\n")
