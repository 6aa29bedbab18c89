"""Online training on a random tiny model: what is sampled, judged and trained on; going on after an interruption."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from pipeline_helpers import write_world
from safetensors.torch import load_file

from talker_rl import cli
from talker_rl.records.candidate import Candidate
from talker_rl.records.score import ScoreRow
from talker_rl.records.valued import Valued
from talker_rl.stages import sweep
from talker_rl.stages.online import PoolJudge
from talker_rl.store.shards import ShardFolder
from talker_rl.train.live import Live
from talker_rl.train.metrics import Window

ROOT = Path(__file__).resolve().parents[1]
SAMPLING = {"max_new_tokens": 24, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.0,
            "min_new_tokens": 4, "sequence_bias": [[[8294], 11.0]]}


def world(folder: Path, loss: dict[str, Any] | None = None, **online: Any) -> Path:
    return write_world(folder, report={"pairs": 4}, train={
        "data": "online", "loss": loss or {"type": "grpo"}, "chosen_drop_alarm": None,
        "online": {"prompts_per_step": 2, "num_generations": 3, "decodes": 20, "sampling": SAMPLING, **online},
        "args": {"save_steps": 1, "learning_rate": 1e-2, "per_device_train_batch_size": 4,
                 "lr_scheduler_type": "constant", "seed": 3}})


def run(config: Path, folder: Path) -> int:
    return cli.main(["run", "-c", str(config), "--run-dir", str(folder), "-q", "--debug"])


def train(config: Path, folder: Path, *more: str) -> int:
    """As far as its training and choice: neither evaluation nor pages."""
    for verb in ("prompts", "condition", "train"):
        if code := cli.main([verb, "-c", str(config), "--run-dir", str(folder), "-q", *more]):
            return code
    return 0


def log(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "round1/train/default/log.jsonl").read_text().splitlines()
    return [row for line in lines if "loss" in (row := json.loads(line))]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "train/default/adapter_model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("online")
    config = world(folder)
    assert run(config, folder / "run") == 0
    return config, folder / "run"


def test_what_is_sampled_is_judged_and_trained_on(finished: tuple[Path, Path]) -> None:
    _, folder = finished
    stage = folder / "round1/train/default/online"
    candidates = ShardFolder(stage / "rollouts").read_all(Candidate)
    scores = ShardFolder(stage / "scores").read_all(ScoreRow)
    assert len(candidates) == len(scores) == 18  # three samplings of six; a fourth would spend more than 20
    assert [s.candidate_id for s in scores] == [c.candidate_id for c in candidates]
    prompts = [c.prompt_id for c in candidates][::3]
    assert len(set(prompts)) == 6  # without replacement
    rows = log(folder)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["online/decodes"] for row in rows] == [6.0, 12.0, 18.0]
    assert all(row["sampling/logp_difference/max"] < 1e-4 and row["ratio/mean"] == pytest.approx(1, abs=1e-4)
               for row in rows)
    first = [s.reward for s in scores[:6]]
    assert rows[0]["reward"] == pytest.approx(sum(r or 0.0 for r in first) / 6, abs=1e-6) or None in first
    assert not (folder / "rollouts").exists() and not (folder / "pairs").exists()
    assert any(v.abs().max() > 0 for k, v in weights(folder).items() if "lora_B" in k)
    assert json.loads((folder / "eval/summary.json").read_text())["trained"]["n"] == 8


def test_what_ends_early_is_judged_while_others_are_sampled(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts, in the order in which candidates end; the scores are each candidate's own all the same."""
    config, whole = finished
    monkeypatch.setattr("talker_rl.train.live._JUDGED_TOGETHER", 2)
    asked: list[list[str]] = []
    submit = PoolJudge.submit

    def counted(self: PoolJudge, candidates: Sequence[Candidate]) -> Callable[[], list[ScoreRow]]:
        asked.append([c.candidate_id for c in candidates])
        return submit(self, candidates)

    monkeypatch.setattr(PoolJudge, "submit", counted)
    assert train(config, tmp_path / "run") == 0
    one, other = (folder / "round1/train/default/online" for folder in (whole, tmp_path / "run"))
    candidates = ShardFolder(other / "rollouts").read_all(Candidate)
    assert len(asked) > 3 and sorted(i for part in asked for i in part) == sorted(c.candidate_id for c in candidates)
    assert [i for part in asked for i in part] != [c.candidate_id for c in candidates]
    for a, b in zip(*(ShardFolder(stage / "scores").read_all(ScoreRow) for stage in (one, other)), strict=True):
        assert a.candidate_id == b.candidate_id and a.reward == pytest.approx(b.reward, abs=1e-6)
    apart = weights(tmp_path / "run")
    assert all(torch.allclose(v, apart[k], atol=1e-6) for k, v in weights(whole).items())


def test_the_policy_that_is_sampled_from_is_the_one_that_was_trained(finished: tuple[Path, Path]) -> None:
    """The second sampling is of another policy than the first: its log-probs are not the base's."""
    _, folder = finished
    from talker_rl.config import load_data
    from talker_rl.stages.forcing import ForceTask, force
    from talker_rl.store.run_dir import stored_config

    config = load_data(stored_config(folder))
    later = ShardFolder(folder / "round1/train/default/online/rollouts").read(2, Candidate)
    (base,) = force(ForceTask(config.model, [None], folder / "conditioning",
                              [(c.prompt_id, c.speech) for c in later], 4))
    apart = max(abs(a - b) for c, f in zip(later, base, strict=True)
                for a, b in zip(c.token_logps, f.logps, strict=True))
    assert apart > 1e-3


def test_rewards_and_advantages_lie_beside_the_candidates(finished: tuple[Path, Path]) -> None:
    stage = finished[1] / "round1/train/default/online"
    for number, row in enumerate(log(finished[1])):
        candidates = ShardFolder(stage / "rollouts").read(number, Candidate)
        valued = ShardFolder(stage / "advantages").read(number, Valued)
        assert [v.candidate_id for v in valued] == [c.candidate_id for c in candidates]
        assert [len(v.steps) for v in valued] == [c.speech.steps for c in candidates]
        assert all(v.steps == pytest.approx([v.advantage] * len(v.steps), abs=1e-5) for v in valued)  # credit: sequence
        assert row["reward"] == pytest.approx(sum(v.reward for v in valued) / len(valued))


def test_the_page_shows_the_training_and_its_groups(finished: tuple[Path, Path]) -> None:
    """What the page says, against what lies on disk: rewards by sampling, all candidates of a group, their credit."""
    folder = finished[1]
    html = (folder / "report/index.html").read_text()
    assert "<h2>Online training</h2>" in html and "3 samplings, 18 decodes." in html
    card = html.split("<h3>Reward of the samples</h3>")[1]
    line = json.loads(card.split('<script type="application/json">')[1].split("</script>")[0])[0]["data"][-1]
    assert line["x"] == [0, 6, 12] and line["y"] == pytest.approx([row["reward"] for row in log(folder)])
    assert "of 3 samplings that the log tells of" in html and "over 3 rows of the log" in html
    stage = folder / "round1/train/default/online"
    groups = html.split("<h2>Listen: groups that were trained on</h2>")[1].split("<h2>")[0]
    cards = [card for part in groups.split("<h3>")[1:] for card in part.split('<section class="card compare">')[1:]]
    assert len(cards) == 4  # report.pairs: both groups of the first sampling and of the last
    sizes = set()
    for card, (number, at) in zip(cards, ((0, 0), (0, 3), (2, 0), (2, 3)), strict=True):
        mine = ShardFolder(stage / "advantages").read(number, Valued)[at : at + 3]
        heard = {c.candidate_id for c in ShardFolder(stage / "rollouts").read(number, Candidate)
                 if c.codes and c.end_reason != "invalid_code"}
        shown = sorted(mine, key=lambda row: -row.reward)
        assert re.findall(r"(\d)\. reward ([-\d.]+)", card) == [
            (str(rank), f"{row.reward:.2f}") for rank, row in enumerate(shown, 1)]
        lanes = [json.loads(data)["credit"] for data in re.findall(r'class="strip-data">(.*?)</script>', card)]
        assert [{round(a, 3) for _, _, a in lane["stretches"]} for lane in lanes] == [
            {round(a, 3) for a in row.steps} for row in shown if row.candidate_id in heard]
        sizes |= {lane["full"] for lane in lanes}
        assert {lane["full"] for lane in lanes} == {max(abs(a) for row in mine for a in row.steps)}
        assert card.count("<audio ") == sum(row.candidate_id in heard for row in mine)
    assert max(sizes) > 0.5, "a group with spread is among them"


def test_the_time_of_training_is_not_that_of_starting_up(finished: tuple[Path, Path]) -> None:
    assert ["online/training_seconds" in row for row in log(finished[1])] == [False, True, True]


def test_one_step_ahead_the_samples_are_of_the_policy_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling n + 1 is there before step n is taken, of the policy before it; killed then, it is taken from disk."""
    config = world(tmp_path, overlap=True)
    assert train(config, tmp_path / "run") == 0
    stage = tmp_path / "run/round1/train/default/online"
    rows = log(tmp_path / "run")
    assert [row["online/staleness"] for row in rows] == [0.0, 1.0, 1.0]
    assert "sampling/logp_difference/max" in rows[0] and "sampling/logp_difference/max" not in rows[1]
    drawn = [[c.codes for c in ShardFolder(stage / "rollouts").read(n, Candidate)] for n in range(3)]
    collated = Live._collated

    def cut(self: Live, *rest: Any, **named: Any) -> Any:
        if self.number == 1:
            raise KeyboardInterrupt
        return collated(self, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Live, "_collated", cut)
        assert train(config, tmp_path / "cut") == 130
    half = tmp_path / "cut/round1/train/default/online"
    assert len(ShardFolder(half / "rollouts")) == 3 and len(ShardFolder(half / "scores")) == 2
    assert train(config, tmp_path / "cut") == 0
    assert [[c.codes for c in ShardFolder(half / "rollouts").read(n, Candidate)] for n in range(3)] == drawn
    one, other = weights(tmp_path / "run"), weights(tmp_path / "cut")
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_check_ups_are_heard_by_the_second_recognizer_and_end_it(tmp_path: Path) -> None:
    config = world(tmp_path, held_out={"every": 1, "prompts": 2, "patience": 1})
    assert train(config, tmp_path / "run") == 0
    rows = log(tmp_path / "run")
    heard = ShardFolder(tmp_path / "run/round1/train/default/online/held_out")
    assert len(heard) == len(rows) >= 2
    assert len({row["seed"] for i in range(len(heard)) for row in heard.rows(i)}) == 2, "the same seeds always"
    wers = [row["held_out/wer"] for row in rows]
    assert all(w >= min(wers[:-1]) for w in wers[-1:]) or len(rows) == 3, "it ends without a lower WER"
    said = {c.prompt_id: c for c in ShardFolder(heard.path.parent / "held_out_start").read(0, Candidate)}
    for row in heard.rows(0):  # of the policy as it began, what it recorded itself
        start = said[row["prompt_id"]]
        assert row["stop_logp"] == (None if start.stop_id is None else pytest.approx(start.token_logps[-1], abs=1e-4))
    assert any(row["stop_logp"] is not None for row in heard.rows(0))
    prompts = {row["prompt_id"] for row in heard.rows(0)}
    trained = {c.prompt_id for c in ShardFolder(heard.path.parent / "rollouts").read_all(Candidate)}
    assert prompts and not prompts & trained


@pytest.mark.parametrize("at", [0, 2])
def test_interrupted_it_goes_on_to_the_same_weights(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    config, folder = finished
    make = Live._make

    def cut(self: Live, number: int, *rest: Any) -> Any:
        made = make(self, number, *rest)
        if number == at:
            raise KeyboardInterrupt
        return made

    with monkeypatch.context() as patch:
        patch.setattr(Live, "_make", cut)
        assert train(config, tmp_path / "run") == 130
    assert train(config, tmp_path / "run") == 0
    one, other = weights(folder), weights(tmp_path / "run")
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert [row["loss"] for row in log(folder)] == [row["loss"] for row in log(tmp_path / "run")]


def test_killed_at_any_moment_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    config = world(tmp_path, overlap=True, held_out={"every": 2, "prompts": 2})
    assert train(config, tmp_path / "calm") == 0
    folder, draw = tmp_path / "killed", random.Random(0)
    for verb in ("prompts", "condition"):
        assert cli.main([verb, "-c", str(config), "--run-dir", str(folder), "-q"]) == 0
    stage = folder / "round1/train/default"
    moments = [stage / "online/rollouts/shard-00000.parquet", stage / "checkpoint-1", stage / "checkpoint-2"]
    for moment in moments:
        process = subprocess.Popen(
            [sys.executable, "-m", "talker_rl.cli", "train", "-c", str(config), "--run-dir", str(folder), "-q"],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
            start_new_session=True)
        deadline = time.monotonic() + 900
        while not moment.exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(draw.random() * 0.3)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert train(config, folder) == 0
    one, other = weights(tmp_path / "calm"), weights(folder)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert [row["loss"] for row in log(tmp_path / "calm")] == [row["loss"] for row in log(folder)]


def losses_by_hand(folder: Path) -> list[float]:
    """What a step's loss has to be where the policy is the one that was sampled from, so that every ratio is 1: minus
    the mean advantage of all steps, the stop's among them, of the groups that say something."""
    stage, found = folder / "round1/train/default/online", []
    candidates, valued = ShardFolder(stage / "rollouts"), ShardFolder(stage / "advantages")
    for number in range(len(candidates)):
        steps = {c.candidate_id: len(c.token_logps) for c in candidates.read(number, Candidate)}
        rows = valued.read(number, Valued)
        groups = [rows[at : at + 3] for at in range(0, len(rows), 3)]
        telling = [v for g in groups if max(v.reward for v in g) - min(v.reward for v in g) > 1e-6 for v in g]
        told = telling or groups[0]
        found.append(-sum(sum(v.steps) for v in told) / sum(steps[v.candidate_id] for v in told))
    return found


def test_losses_are_those_that_the_shards_say(finished: tuple[Path, Path]) -> None:
    rows = log(finished[1])
    assert [row["loss"] for row in rows] == pytest.approx(losses_by_hand(finished[1]), abs=2e-4)
    assert any(abs(row["loss"]) > 1e-3 for row in rows)


def test_the_largest_of_several_forwards_is_logged_and_not_their_mean() -> None:
    window = Window()
    for largest, mean in ((3e-6, 1e-7), (9e-6, 3e-7), (1e-6, 2e-7)):
        window.add({"difference/max": (largest, 1.0), "difference/mean": (mean * 4, 4.0)})
    assert window.means() == pytest.approx({"difference/max": 9e-6, "difference/mean": 2e-7})


@pytest.mark.parametrize("loss", [
    {"type": "grpo", "beta": 0.1}, {"type": "grpo", "loss_type": "grpo"}, {"type": "rloo"}, {"type": "dpo"},
    {"type": "mix", "terms": [{"loss": {"type": "grpo"}}, {"loss": {"type": "sft"}}]}])
def test_a_step_is_the_same_however_many_forwards_it_takes(tmp_path: Path, loss: dict[str, Any]) -> None:
    config, rows = world(tmp_path, loss, decodes=6, pairs={"margin": 0.0, "max_pairs_per_prompt": 3}), []
    for size in (6, 4, 1):  # six samples at once, in unequal parts, one by one
        folder = tmp_path / f"run{size}"
        assert train(config, folder, f"train.args.per_device_train_batch_size={size}", "train.args.optim=sgd",
                     "checkpoint.tried=last") == 0
        rows.append(log(folder)[0])
    for row in rows[1:]:
        assert [row[name] for name in ("loss", "grad_norm")] == pytest.approx(
            [rows[0][name] for name in ("loss", "grad_norm")], rel=2e-3, abs=1e-6)
    assert rows[0]["grad_norm"] > 1e-3


def _shifted(example: Any) -> Any:
    return replace(example, behaviour_logps=[one.roll(1) for one in example.behaviour_logps])


def _without_stop(example: Any) -> Any:
    (sequence,) = example.sequences
    return replace(example, sequences=[replace(sequence, speech=sequence.speech.cut(sequence.speech.frames))],
                   behaviour_logps=[example.behaviour_logps[0][: sequence.speech.frames]],
                   advantages=[example.advantages[0][: sequence.speech.frames]])


@pytest.mark.parametrize("fault", ["shifted", "denominator", "without_stop", "neighbour"])
def test_planted_mistakes_are_caught(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the run's own alarm, or by the losses that follow from its shards."""
    right = Live._of_samples

    def wrong(self: Live, groups: Any) -> Any:
        if fault == "neighbour":  # each group has the advantages of the next
            values = [group.values for group in groups]
            groups = [replace(group, advantages=[np.full(c.speech.steps, v, dtype=np.float32) for c, v in zip(
                group.candidates, other, strict=True)]) for group, other in zip(
                groups, [*values[1:], values[0][::-1]], strict=True)]
        if fault == "denominator":  # what was drawn from, in the place of the policy
            groups = [replace(g, candidates=[replace(c, token_logps=c.processed_logps) for c in g.candidates])
                      for g in groups]
        plant = {"shifted": _shifted, "without_stop": _without_stop}.get(fault, lambda example: example)
        return [plant(example) for example in right(self, groups)]

    monkeypatch.setattr(Live, "_of_samples", wrong)
    config = world(tmp_path, sampling=SAMPLING | ({"temperature": 0.7} if fault == "denominator" else {}))
    code = train(config, tmp_path / "run", "checkpoint.tried=last")
    told = capsys.readouterr().err
    if fault in ("shifted", "denominator"):
        assert code == 1 and "differ by" in told and "talker-rl parity" in told
    else:
        assert code == 0
        assert [row["loss"] for row in log(tmp_path / "run")] != pytest.approx(
            losses_by_hand(tmp_path / "run"), abs=2e-4)


@pytest.mark.parametrize(("loss", "online"), [
    ({"type": "gspo", "beta": 0.1}, {"mini_batches": 2, "num_iterations": 2}),
    ({"type": "rloo", "stop": "drop"}, {"advantages": {"baseline": "leave_one_out", "scale_rewards": "none"},
                                        "truncated": "left_out"}),
    ({"type": "dapo"}, {"refill": 2, "advantages": {"credit": "words", "sequence_share": 0.5}}),
    ({"type": "dpo", "beta": 0.1, "stop": "drop"}, {"pairs": {"margin": 0.0, "strategy": "all_margin"}}),
    ({"type": "mix", "terms": [{"loss": {"type": "dpo", "token_weights": {"others": 0.5, "stop": 1}}},
                               {"loss": {"type": "sft"}}]}, {"num_iterations": 2}),
    ({"type": "sft"}, {}),
    ({"type": "mix", "terms": [{"loss": {"type": "grpo", "loss_type": "dr_grpo"}}]}, {}),
    ({"type": "mix", "terms": [{"loss": {"type": "grpo"}}, {"weight": 0.5, "loss": {"type": "sft"}}]},
     {"max_length_ratio": 1.2, "overlap": True}),
    ({"type": "grpo"}, {"sampling": SAMPLING | {"temperature": 0.9, "top_k": 40}, "importance": {"mode": "mask"}}),
])
def test_every_kind_trains(tmp_path: Path, loss: dict[str, Any], online: dict[str, Any]) -> None:
    config = world(tmp_path, loss, **online)
    whole = "pairs" in online or "advantages" in online  # whose pages say other things
    assert (run if whole else train)(config, tmp_path / "run") == 0
    rows = log(tmp_path / "run")
    assert len(rows) == 3 * online.get("mini_batches", 1) * online.get("num_iterations", 1) or "refill" in online
    assert rows[-1]["online/decodes"] <= 20


@pytest.mark.parametrize(("changes", "told"), [
    ({"train.data": "null"}, "data: online"),
    ({"train.loss": "{type: mix, terms: [{loss: {type: grpo}}, {loss: {type: dpo}}]}"}, "only sft can be mixed"),
    ({"train.online.prompts_per_step": "9", "train.online.decodes": "100"}, "takes 9 prompts"),
    ({"train.online.overlap": "true", "train.online.refill": "2"}, "choose one"),
    ({"devices": "[cpu, cpu]"}, "an online training is one process"),
    ({"train.online.decodes": "3"}, "one sampling takes 2 x 3 decodes"),
    ({"train.online.mini_batches": "3"}, "cannot share 2 groups"),
    ({"train.online.num_generation": "3"}, "num_generations"),
])
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], told: str) -> None:
    config = world(tmp_path)
    said = [f"{key}={value}" for key, value in changes.items()]
    assert cli.main(["run", "-c", str(config), "--run-dir", str(tmp_path / "run"), "-q", *said]) != 0
    assert told in capsys.readouterr().err


def test_the_running_baseline_is_the_mean_of_the_samplings_before(tmp_path: Path) -> None:
    config = world(tmp_path, advantages={"baseline": "running", "scale_rewards": "none"})
    assert train(config, tmp_path / "run") == 0
    shards = ShardFolder(tmp_path / "run/round1/train/default/online/advantages")
    before: list[float] = []
    for number in range(3):
        valued = shards.read(number, Valued)
        if before:  # at the first there is only the group's own mean
            baseline = sum(before) / len(before)
            assert [v.advantage for v in valued] == pytest.approx([v.reward - baseline for v in valued], abs=1e-6)
        before += [v.reward for v in valued]


def test_diagnostics_read_what_was_sampled(finished: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(finished[1], tmp_path / "run")
    assert cli.main(["diagnose", "--run-dir", str(folder), "-q", "--reward-noise", "2", "--debug"]) == 0
    told = json.loads((folder / "diagnostics/default/summary.json").read_text())
    stage = folder / "round1/train/default/online"
    rewards = {r.candidate_id: r.reward for r in ShardFolder(stage / "scores").read_all(ScoreRow)}
    pairs = pq.read_table(folder / "diagnostics/default/pairs.parquet").to_pylist()
    assert told["n_pairs"] == len({row["pair_id"] for row in pairs}) > 0
    assert all(row["chosen_reward"] in rewards.values() and row["chosen_reward"] >= row["rejected_reward"] + 0.1
               for row in pairs)
    assert any("groups of all samplings" in note for note in told["notes"])
    assert json.loads((folder / "reward_noise/noise.json").read_text())["figures"]


def test_a_sweep_compares_online_losses_at_equal_decodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world(tmp_path, decodes=12)
    file, folder = tmp_path / "sweep.yaml", tmp_path / "sweep"
    file.write_text(yaml.safe_dump({
        "name": "tiny-online", "run": {"extends": ["config.yaml"], "eval": {"seeds": 1}}, "seeds": [0],
        "variants": {"grpo": {}, "expert": {"loss": {"type": "sft"}}}, "arms": {"online": {}}, "baseline": "grpo"}))
    monkeypatch.setattr(sweep, "_pages", lambda *_: None)
    assert cli.main(["sweep", str(file), "--dry-run", "--run-dir", str(folder)]) == 0
    # 2 x 12 decodes, 4 eval utterances of base; 2 trainings x (4 eval + 3 dev x (2 checkpoints + the start))
    told = capsys.readouterr().out
    assert f"2 trainings, {24 + 4 + 2 * (4 + 3 * 3)} utterances" in told and "2 steps of 12 decodes in all" in told
    assert cli.main(["sweep", str(file), "--run-dir", str(folder), "-q", "--debug"]) == 0
    rows = json.loads((folder / "ablation.json").read_text())["rows"]
    assert {row["variant"] for row in rows} == {"base", "grpo", "expert"}
    stage = folder / "arms/online/round1/train"
    drawn = [[c.codes for c in ShardFolder(stage / f"{name}-s0/online/rollouts").read(0, Candidate)]
             for name in ("grpo", "expert")]
    assert drawn[0] == drawn[1], "they begin with the same policy, prompts and seeds"
    assert not (folder / "shared/rollouts").exists()


def test_a_sweep_may_compare_stored_pairs_with_live_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world(tmp_path, decodes=12)
    file, folder = tmp_path / "sweep.yaml", tmp_path / "sweep"
    file.write_text(yaml.safe_dump({
        "name": "mixed", "run": {"extends": ["config.yaml"], "eval": {"seeds": 1}, "pairs": {"margin": 0.0}},
        "seeds": [0], "arms": {"both": {}}, "baseline": "dpo",
        "variants": {"grpo": {}, "dpo": {"data": None, "loss": {"type": "dpo"}}}}))
    monkeypatch.setattr(sweep, "_pages", lambda *_: None)
    assert cli.main(["sweep", str(file), "--run-dir", str(folder), "-q", "--debug"]) == 0
    assert (folder / "shared/rollouts").exists() and (folder / "arms/both/pairs").exists()
    rows = json.loads((folder / "ablation.json").read_text())["rows"]
    assert {row["variant"] for row in rows} == {"base", "grpo", "dpo"}
