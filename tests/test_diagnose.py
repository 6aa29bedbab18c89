"""The stage `diagnose` on a random tiny model: its records against the model itself, and that nothing is done twice."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from pipeline_helpers import write_world
from said import said, sequence

from talker_rl import cli
from talker_rl.config import load_config
from talker_rl.data.pairs import is_held_out
from talker_rl.records.candidate import Candidate
from talker_rl.records.pair import Pair
from talker_rl.records.token_classes import CLASSES
from talker_rl.stages.diagnose import some_pairs
from talker_rl.store.shards import ShardFolder

VARIANTS: dict[str, dict[str, Any]] = {
    name: {
        "loss": loss,
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
        "args": {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "learning_rate": 3e-2,
                 "per_device_train_batch_size": 2, "lr_scheduler_type": "constant"},
    }
    for name, loss in {
        "plain": {"type": "dpo", "beta": 0.1},
        "mixed": {"type": "mix", "terms": [{"weight": 1.0, "loss": {"type": "sft"}},
                                           {"weight": 1.0, "loss": {"type": "dpo", "beta": 0.2}}]},
    }.items()
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(configuration, folder of a run that is trained, evaluated and diagnosed)."""
    world = tmp_path_factory.mktemp("world")
    config = write_world(world, checkpoint={"held_out_share": 0.4, "num_candidates": 1})
    rows: list[dict[str, Any]] = [{"text": text} for text in (world / "eval.txt").read_text().splitlines()]
    rows[0]["max_seconds"] = 0.02  # one code: whatever it says is longer
    (world / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = yaml.safe_load(config.read_text()) | {"train": VARIANTS}
    data["prompts"]["eval"] = str(world / "eval.jsonl")
    config.write_text(yaml.safe_dump(data))
    run = world / "run"
    assert cli.main(["run", "-c", str(config), "--run-dir", str(run), "-q", "--debug"]) == 0
    return config, run


@pytest.fixture(scope="module")
def diagnosed(finished: tuple[Path, Path]) -> tuple[Path, Path]:
    config, run = finished
    before = sorted((run / "reference").rglob("*.safetensors"))
    assert cli.main(["diagnose", "--run-dir", str(run), "-q", "--debug", "--reward-noise", "3"]) == 0
    # what training computed of the reference is not computed again
    assert sorted((run / "reference").rglob("*.safetensors")) == before
    return config, run


def records(run: Path, variant: str, name: str) -> list[dict[str, Any]]:
    return pq.read_table(run / "diagnostics" / variant / f"{name}.parquet").to_pylist()


def summary_of(run: Path, variant: str) -> dict[str, Any]:
    return json.loads((run / "diagnostics" / variant / "summary.json").read_text())


def chosen_step(run: Path, variant: str) -> int:
    return json.loads((run / f"round1/choice/{variant}/choice.json").read_text())["step"]


def forced(config: Path, run: Path, adapter: Path | None, sequences: list[tuple[str, list[int]]]) -> list[list[float]]:
    """Log-probs by another path than the stage's: one sequence at a time, the library's own loader of adapters."""
    from peft import PeftModel

    from talker_rl.speech.cache import ConditioningCache
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
    from talker_rl.speech.qwen2_5_omni.layout import collate
    from talker_rl.speech.qwen2_5_omni.logps import token_logps

    talker = load_omni(load_config([config]).model, parts=("talker",)).talker
    if adapter is not None:
        talker = PeftModel.from_pretrained(talker, str(adapter)).eval()
    stored = ConditioningCache(run / "conditioning", strict=True).load(sorted({p for p, _ in sequences}))
    return [token_logps(talker, collate([sequence(stored[p], ids)])).detach()[0].tolist() for p, ids in sequences]


def test_pairs_are_scored_at_every_checkpoint_and_step_0_is_the_reference(diagnosed: tuple[Path, Path]) -> None:
    config, run = diagnosed
    pairs = {p.pair_id: p for p in ShardFolder(run / "pairs").read(0, Pair)}
    rows = records(run, "plain", "pairs")
    assert [row["step"] for row in rows] == [step for step in (0, 2, 4) for _ in pairs]
    assert {row["held_out"] for row in rows} == {True, False}
    trained = json.loads((run / "manifest.json").read_text())["stages"]["round1/train/plain"]["counts"]
    assert sum(row["held_out"] for row in rows) == 3 * trained["held_out"]
    for row in rows[: len(pairs)]:
        assert row["margin_raw"] == row["margin_common"] == 0.0
        assert row["policy_chosen_logp"] == row["ref_chosen_logp"]
    last = rows[-len(pairs):]
    sides = [(row["prompt_id"], ids) for row in last for pair in [pairs[row["pair_id"]]]
             for ids in (pair.chosen, pair.rejected)]
    policy = forced(config, run, run / "round1/train/plain/checkpoint-4", sides)
    reference = forced(config, run, None, sides)
    for k, row in enumerate(last):
        sums = [math.fsum(x) for x in (policy[2 * k], policy[2 * k + 1], reference[2 * k], reference[2 * k + 1])]
        stored = [row[f"{who}_{side}_logp"] for who in ("policy", "ref") for side in ("chosen", "rejected")]
        assert stored == pytest.approx(sums, abs=1e-4)
        assert row["margin_raw"] == pytest.approx(sums[0] - sums[1] - sums[2] + sums[3], abs=2e-4)
        pair = pairs[row["pair_id"]]
        assert row["chosen_codes"] == round(pair.chosen_seconds * 50)
        ratios = [np.subtract(policy[2 * k + i], reference[2 * k + i]) for i in (0, 1)]
        low, high = bounds(ratios)
        assert low - 1e-4 <= row["margin_common"] <= high + 1e-4
    assert any(abs(row["margin_raw"]) > 0.05 for row in last), "a policy that did not move shows nothing"
    assert any(abs(row["margin_raw"] - row["margin_common"]) > 1e-3 for row in last)


def bounds(ratios: list[np.ndarray]) -> tuple[float, float]:
    """Least and largest margin that any draw of the common length can give."""
    common = min(map(len, ratios))
    chosen, rejected = (np.sort(r) for r in ratios)
    return (float(chosen[:common].sum() - rejected[-common:].sum()),
            float(chosen[-common:].sum() - rejected[:common].sum()))


def test_samples_are_those_of_the_evaluation_under_both_policies(diagnosed: tuple[Path, Path]) -> None:
    config, run = diagnosed
    step = chosen_step(run, "plain")
    candidates = {c.candidate_id: c for c in ShardFolder(run / "eval/plain/candidates").read_all(Candidate)}
    rows = records(run, "plain", "samples")
    assert [row["candidate_id"] for row in rows] == list(candidates) and {row["step"] for row in rows} == {step}
    ids = {name: c.codes + ([c.stop_id] if c.stop_id is not None else []) for name, c in candidates.items()}
    reference = forced(config, run, None, [(row["prompt_id"], ids[row["candidate_id"]]) for row in rows])
    for row, ref in zip(rows, reference, strict=True):
        candidate = candidates[row["candidate_id"]]
        # what the policy gave when it sampled is what teacher forcing gives now
        assert row["policy_logp"] == pytest.approx(math.fsum(candidate.token_logps), abs=1e-3)
        assert row["ref_logp"] == pytest.approx(math.fsum(ref), abs=1e-4)
        assert row["seconds"] == pytest.approx(len(candidate.codes) / 50)
        assert len(row["p_eos_last"]) == min(10, len(ids[row["candidate_id"]]))
        assert all(0 <= p <= 1 for p in (*row["p_eos_last"], row["p_eos_early"]))
        if candidate.end_reason == "eos":  # the stop's own probability is that of stopping by this id or the other
            assert row["p_eos_last"][-1] >= math.exp(candidate.token_logps[-1]) - 1e-6
    assert {c.end_reason for c in candidates.values()} >= {"eos"}


def test_the_summary_says_what_the_records_say(diagnosed: tuple[Path, Path]) -> None:
    _, run = diagnosed
    rows = [row for row in records(run, "plain", "pairs") if row["step"] == chosen_step(run, "plain")]
    summary = summary_of(run, "plain")
    assert summary["beta"] == 0.1 and summary_of(run, "mixed")["beta"] == 0.2
    trained = [row for row in rows if not row["held_out"]]
    seconds = [row[f"{side}_seconds"] for side in ("chosen", "rejected") for row in trained]
    rewards = [0.1 * (row[f"policy_{side}_logp"] - row[f"ref_{side}_logp"])
               for side in ("chosen", "rejected") for row in trained]
    assert summary["implicit_reward"]["train"]["slope_per_second"] == pytest.approx(np.polyfit(seconds, rewards, 1)[0])
    assert summary["within_pairs"]["train"]["accuracy"] == np.mean([row["margin_raw"] > 0 for row in trained])
    assert summary["within_pairs"]["held_out"]["n"] == len(rows) - len(trained)
    assert sum(map(sum, summary["heatmap"]["count"])) == len(rows)
    assert [(c["step"], c["subset"]) for c in summary["margin_curves"]] == [
        (step, subset) for step in (0, 2, 4) for subset in ("chosen_longer", "chosen_shorter", "all")]
    assert [row["step"] for row in summary["drift"]] == [0, 2, 4]
    assert summary["drift"][0]["kl_per_code"] == 0.0 and summary["drift"][0]["ratio_to_reference"] == 1.0
    choice = json.loads((run / "round1/choice/plain/choice.json").read_text())["checkpoints"]
    for mine, theirs in zip(summary["drift"], choice, strict=True):
        assert (mine["n"], mine["wer"], mine["duration_mean"]) == pytest.approx(
            (theirs["n"], theirs["wer"], theirs["duration_mean"]))
    assert all(row["kl_per_code"] > 1e-5 and row["kl_per_code_on_base"] > 1e-5 for row in summary["drift"][1:])
    assert all(0 < row["p_stop_at_base_stops"] < 1 and len(row["hazard"]) == 10 for row in summary["drift"])
    assert summary["said"]["trained"]["words_over_time"]["n"] > 0 and summary["conditions"]["hazard"]
    assert summary["limits"] == {"n": 2, "violations": 2, "rate": 1.0}
    assert summary["runaway"]["n"] == summary["n_samples"] == 8
    noise = summary["reward_noise"]
    assert (noise["decodes"], noise["n_candidates"]) == (3, len(ShardFolder(run / "rollouts").read_all(Candidate)))
    json.dumps(summary, allow_nan=False)


def test_the_kl_is_that_of_the_checkpoints_own_dev_samples(diagnosed: tuple[Path, Path]) -> None:
    config, run = diagnosed
    spoken = [row for row in ShardFolder(run / "round1/choice/plain/candidates").all_rows() if row["step"] == 4]
    assert len(spoken) == 3
    sequences = [(c["prompt_id"], c["codes"] + ([c["stop_id"]] if c["stop_id"] is not None else [])) for c in spoken]
    reference = forced(config, run, None, sequences)
    policy = [c["token_logps"] for c in spoken]
    expected = (sum(map(sum, policy)) - sum(map(sum, reference))) / sum(map(len, reference))
    found = summary_of(run, "plain")["drift"][2]
    assert found["k1_per_code"] == pytest.approx(expected, abs=1e-4)
    assert found["kl_per_utterance"] == pytest.approx(found["kl_per_code"] * sum(map(len, reference)) / 3)


def test_a_second_start_does_nothing_and_a_lost_shard_is_made_again(
    diagnosed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = diagnosed
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    capsys.readouterr()
    files = {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file() and "diagnostics" in str(p)}
    manifest = json.loads((copy / "manifest.json").read_text())["stages"]
    with monkeypatch.context() as patch:
        for name in ("diagnose.force", "worker.work"):
            patch.setattr(f"talker_rl.stages.{name}", lambda *_: pytest.fail("finished work was done again"))
        assert cli.main(["diagnose", "--run-dir", str(copy), "-q", "--variant", "plain"]) == 0
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert json.loads((copy / "manifest.json").read_text())["stages"] == manifest
    out = capsys.readouterr().out
    assert "plain, step" in out and "mixed" not in out and "suggested pairs.margin" in out
    lost = copy / "diagnostics/plain/parts/pairs/shard-00001.parquet"
    before = lost.read_bytes()
    lost.unlink()
    assert cli.main(["diagnose", "--run-dir", str(copy), "-q", "workers=2"]) == 0
    assert lost.read_bytes() == before


def test_training_again_takes_its_diagnostics_along(diagnosed: tuple[Path, Path], tmp_path: Path) -> None:
    from talker_rl.store.run_dir import RunDir

    _, run = diagnosed
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    with RunDir(copy, force=["round1/train/plain"]) as folder:
        assert "diagnostics/plain" not in folder.stages and "diagnostics/mixed" in folder.stages
    assert not (copy / "diagnostics/plain").exists()


def test_mistakes_are_told(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = finished
    base = ["diagnose", "-c", str(config), "--run-dir", str(run), "-q"]
    assert cli.main([*base, "--variant", "pain"]) == 1
    assert "no variant 'pain'" in capsys.readouterr().err
    assert cli.main([*base, "--reward-noise", "1"]) == 1
    assert "at least two decodes" in capsys.readouterr().err
    assert cli.main(["diagnose", "-c", str(config), "--run-dir", str(tmp_path / "new"), "-q"]) == 1
    assert "There is no run here" in capsys.readouterr().err
    assert cli.main(["prompts", "-c", str(config), "--run-dir", str(tmp_path / "new"), "-q"]) == 0
    assert cli.main(["diagnose", "-c", str(config), "--run-dir", str(tmp_path / "new"), "-q"]) == 1
    assert "not finished" in capsys.readouterr().err


def test_a_run_whose_choice_kept_no_candidates_has_no_kl(diagnosed: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = diagnosed
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for folder in copy.glob("round1/choice/*/candidates"):
        shutil.rmtree(folder)
    verb = ["diagnose", "--run-dir", str(copy), "-q", "--debug", "--variant", "plain"]
    assert cli.main([*verb, "--force-stage", "diagnostics/plain"]) == 0
    summary = summary_of(copy, "plain")
    assert [row["kl_per_code"] for row in summary["drift"]] == [None] * 3
    assert any("for step 0, 2, 4" in note for note in summary["notes"])
    assert records(copy, "plain", "pairs") == records(run, "plain", "pairs")


def test_a_later_round_is_measured_against_the_policy_it_began_with(tmp_path: Path) -> None:
    args = VARIANTS["plain"]["args"] | {"learning_rate": 1e-3}
    train = {"loss": {"type": "sft"}, "lora": VARIANTS["plain"]["lora"], "args": args}
    config = write_world(tmp_path, iterations=2, rollouts={"prompts_per_round": 4}, train=train,
                         checkpoint={"tried": "last"}, eval={"seeds": 1})
    run = tmp_path / "run"
    for verb in ("run", "diagnose"):
        assert cli.main([verb, "-c", str(config), "--run-dir", str(run), "-q", "--debug"]) == 0
    rows, summary = records(run, "default", "pairs"), summary_of(run, "default")
    pairs = {p.pair_id: p for p in ShardFolder(run / "round2/default/pairs").read(0, Pair)}
    start = run / "round1/train/default/checkpoint-4"
    reference = forced(config, run, start, [(p.prompt_id, p.chosen) for p in pairs.values()])
    stored = {row["pair_id"]: row["ref_chosen_logp"] for row in rows}
    assert stored == pytest.approx({k: sum(r) for k, r in zip(pairs, reference, strict=True)}, abs=1e-4)
    assert summary["beta"] == 1.0 and any(note.startswith("beta:") for note in summary["notes"])
    assert summary["implicit_reward"]["held_out"] is None and summary["within_pairs"]["held_out"] is None
    assert any("held_out" in note for note in summary["notes"])
    assert summary["reward_noise"] is None and summary["limits"] is None
    assert [row["step"] for row in summary["drift"]] == [0, 4]


def test_some_pairs_are_a_fixed_draw_of_both_groups() -> None:
    pairs = [Pair(f"p{i // 2}", f"pair{i}", "stop go.", "Ann", "c", "r", said([1]), said([2]), 1.0, 0.0, 1.0)
             for i in range(200)]
    share = 0.3
    kept = some_pairs(pairs, share, 40)
    assert len(kept) == 40 and kept == [p for p in pairs if p in kept] == some_pairs(pairs[::-1], share, 40)[::-1]
    assert sum(is_held_out(p.prompt_id, share) for p in kept) == 20
    assert len(some_pairs(pairs, 0.0, 40)) == 40  # nothing is held out: all of them are train pairs
    assert some_pairs(pairs, share, 200) == pairs
    few = [p for p in pairs if not is_held_out(p.prompt_id, share)] + [
        p for p in pairs if is_held_out(p.prompt_id, share)][:5]
    assert sum(is_held_out(p.prompt_id, share) for p in some_pairs(few, share, 40)) == 5
    assert len(some_pairs(few, share, 40)) == 40


def test_anatomy_tells_what_the_runs_losses_push_on(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = finished
    pairs = len(ShardFolder(run / "pairs").read_all(Pair))
    capsys.readouterr()
    assert cli.main(["anatomy", "--run-dir", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pairs"] + told["left_out"] == pairs and told["step"] == 0 and set(told["losses"]) == set(VARIANTS)
    plain = told["losses"]["plain"]
    cut = any(c.stop_id is None for c in ShardFolder(run / "rollouts").read_all(Candidate))
    assert abs(plain["stop"]) < 1e-9 or cut
    codes = sum(plain["tokens"]["chosen"].values())
    assert sum(plain["push"]["chosen"].values()) == pytest.approx(codes)  # DPO before training: one a token
    assert cli.main(["anatomy", "--run-dir", str(run), "--loss", "{type: ld_dpo, alpha: 0}", "--loss", "all"]) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[1].startswith("ld_dpo alpha=0")
    assert f"Means over {told['pairs']} pairs, before training, both sides" in table
    for mistake, what in ((["--variant", "plain"], "add --step N"), (["--loss", "{type: dpoo}"], "did you mean"),
                          (["--loss", "{type: grpo}"], "grpo learns from samples")):
        assert cli.main(["anatomy", "--run-dir", str(run), *mistake]) != 0 and what in capsys.readouterr().err


def test_anatomy_of_a_configurations_losses_in_a_runs_pairs(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = finished
    file = tmp_path / "mine.yaml"  # of no run: other variants, another model
    file.write_text("name: mine\nmodel: {path: /nowhere}\nvariants: {a: {}, b: {loss: {type: dpo, stop: drop}}}\n")

    def told(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.main(["anatomy", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    own, mine = told("--run-dir", str(run)), told("-c", str(file), "--run-dir", str(run))
    assert set(mine["losses"]) == {"a", "b"} and mine["pairs"] == own["pairs"]
    drop = mine["losses"]["b"]
    assert drop["push"]["chosen"].get("stop", 0) == 0 == drop["push"]["rejected"].get("stop", 0)
    changed = told("--run-dir", str(run), "variants.plain.loss={type: hinge}")["losses"]["plain"]
    assert changed["per_token"] == pytest.approx(2 * own["losses"]["plain"]["per_token"])  # SLiC's slope at 0, by DPO's
    monkeypatch.chdir(tmp_path)
    assert cli.main(["anatomy", "-c", str(file)]) == 1
    assert "runs/mine" in (error := capsys.readouterr().err) and "talker-rl pair" in error
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine").symlink_to(run)
    assert told("-c", str(file)) == mine
    assert cli.main(["anatomy"]) == 2 and "No run is named" in capsys.readouterr().err


def test_anatomy_at_a_checkpoint_is_of_its_log_probs(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = finished
    found = []
    for more in ([], ["--step", "4", "--variant", "plain"]):
        capsys.readouterr()
        assert cli.main(["anatomy", "--run-dir", str(run), "--loss", "{type: dpo, beta: 0.1}", "--json", *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    before, after = (next(iter(one["losses"].values())) for one in found)
    assert found[1]["step"] == 4 and before["tokens"] == after["tokens"]
    total = [sum(one["push"]["chosen"].values()) for one in (before, after)]
    assert 0 < total[1] < total[0]  # what was learned is pushed less


def test_the_summary_has_the_anatomy_before_training_and_at_the_chosen_checkpoint(
    diagnosed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = diagnosed
    step = chosen_step(run, "plain")
    assert step > 0, "a choice of the start would show nothing"
    found = summary_of(run, "plain")["anatomy"]
    assert list(found) == ["0", str(step)]
    for at, more in (("0", []), (str(step), ["--step", str(step), "--variant", "plain"])):
        capsys.readouterr()
        assert cli.main(["anatomy", "--run-dir", str(run), "--loss", "{type: dpo, beta: 0.1}", "--json", *more]) == 0
        told = next(iter(json.loads(capsys.readouterr().out)["losses"].values()))
        assert found[at]["pairs"] == told["pairs"] and found[at]["tokens"] == told["tokens"]
        assert found[at]["stop"] == pytest.approx(told["stop"], abs=1e-5)
        for side, by_class in told["push"].items():
            assert found[at]["push"][side] == pytest.approx(by_class, abs=1e-4)
    assert sum(found["0"]["push"]["chosen"].values()) > sum(found[str(step)]["push"]["chosen"].values()) > 0
    columns = pq.read_schema(run / "diagnostics/plain/pairs.parquet").names
    assert "policy_chosen_logp" in columns and "policy_chosen_logps" not in columns


def test_an_anatomy_that_cannot_be_told_is_a_note(diagnosed: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = diagnosed
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for stage in ("rollouts", "scores"):
        assert (copy / stage).is_dir()
        shutil.rmtree(copy / stage)
    assert cli.main(["diagnose", "--run-dir", str(copy), "-q", "--debug", "--variant", "plain"]) == 0
    summary = summary_of(copy, "plain")
    assert summary["anatomy"] == {} and "anatomy: no pair has a time for each word that was heard" in summary["notes"]
    assert summary["within_pairs"] == summary_of(run, "plain")["within_pairs"]


@pytest.mark.parametrize(("options", "told"), [
    (["--loss", "{type: dop}"], "There is no loss of type 'dop'"),
    (["--loss", "dpo"], "A loss is a dictionary with a type, not 'dpo'"),
    (["--step", "3", "--variant", "plain"], "There is no checkpoint of step 3"),
    (["--step", "4"], "Which variant's checkpoint"),
])
def test_anatomys_mistakes_are_told(
    finished: tuple[Path, Path], options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["anatomy", "--run-dir", str(finished[1]), *options]) in (1, 2)
    assert told in capsys.readouterr().err


def test_a_loss_that_pushes_the_stop_down_is_warned_of_before_training(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished[1], copy)
    again = ["pair", "--run-dir", str(copy), "--force-stage", "pairs", "pairs.chosen_longer_by=1", "pairs.margin=0"]
    assert cli.main([*again, "variants.plain.loss={type: ld_dpo, alpha: 0}"]) == 0
    told = capsys.readouterr().err
    assert "pairs: warning: plain pushes the stop down in" in told and "stop: keep or stop: drop" in told
    assert "mixed pushes" not in told
    for verb, lines in (("train", 1), ("train", 0)):  # from the pairs that are there; where there is work
        assert cli.main([verb, "--run-dir", str(copy)]) == 0
        assert capsys.readouterr().err.count("pairs: warning: plain pushes the stop down in") == lines
    assert cli.main(["run", *again[1:], "variants.plain.loss={type: ld_dpo, alpha: 0.1}"]) == 0
    assert capsys.readouterr().err.count("pushes the stop down in") == 1  # by its pairs, and not by its training too
    assert cli.main(["doctor", "--run-dir", str(copy), "--json"]) in (0, 1)
    found = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["check"] == "losses"]
    assert [f["level"] for f in found] == ["warn"] and found[0]["text"].startswith("plain pushes the stop down in")
    assert cli.main([*again, "variants.plain.loss={type: ld_dpo, alpha: 0, stop: keep}"]) == 0
    assert "pushes the stop down" not in capsys.readouterr().err


def test_tokens_are_weighed_by_class_from_the_pairs_to_the_loss(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert all(p.chosen_classes is None for p in ShardFolder(finished[1] / "pairs").read_all(Pair))
    copy = tmp_path / "run"
    shutil.copytree(finished[1], copy)
    selective = "variants.plain.loss={type: dpo, beta: 0.1, token_weights: {others: 0, stop: 1}}"
    assert cli.main(["pair", "--run-dir", str(copy), selective]) == 1
    assert "token_classes: null -> true" in capsys.readouterr().err
    assert cli.main(["pair", "--run-dir", str(copy), "-q", "--force-stage", "pairs", selective]) == 0
    for pair in ShardFolder(copy / "pairs").read_all(Pair):
        for speech, classes in zip(pair.sides, (pair.chosen_classes, pair.rejected_classes), strict=True):
            assert classes is not None and len(classes) == speech.steps
            assert (classes[-1] == CLASSES.index("stop")) == speech.stopped
    assert cli.main(["train", "--run-dir", str(copy), "-q"]) == 0
    capsys.readouterr()
    assert cli.main(["anatomy", "--run-dir", str(copy), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)["losses"]["plain"]
    assert {kind for side in plain["push"].values() for kind, push in side.items() if abs(push) > 1e-9} <= {"stop"}
