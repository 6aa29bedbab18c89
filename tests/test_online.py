"""Online training on a random tiny model: what is sampled, judged and trained on; going on after an interruption."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import write_world
from safetensors.torch import load_file

from talker_rl import cli
from talker_rl.records.candidate import Candidate
from talker_rl.records.score import ScoreRow
from talker_rl.records.valued import Valued
from talker_rl.store.shards import ShardFolder
from talker_rl.train.live import Live

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
    assert run(config, tmp_path / "run") == 0
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
        assert run(config, tmp_path / "cut") == 130
    half = tmp_path / "cut/round1/train/default/online"
    assert len(ShardFolder(half / "rollouts")) == 3 and len(ShardFolder(half / "scores")) == 2
    assert run(config, tmp_path / "cut") == 0
    assert [[c.codes for c in ShardFolder(half / "rollouts").read(n, Candidate)] for n in range(3)] == drawn
    one, other = weights(tmp_path / "run"), weights(tmp_path / "cut")
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_check_ups_are_heard_by_the_second_recognizer_and_end_it(tmp_path: Path) -> None:
    config = world(tmp_path, held_out={"every": 1, "prompts": 2, "patience": 1})
    assert run(config, tmp_path / "run") == 0
    rows = log(tmp_path / "run")
    heard = ShardFolder(tmp_path / "run/round1/train/default/online/held_out")
    assert len(heard) == len(rows) >= 2
    assert len({row["seed"] for i in range(len(heard)) for row in heard.rows(i)}) == 2, "the same seeds always"
    wers = [row["held_out/wer"] for row in rows]
    assert all(w >= min(wers[:-1]) for w in wers[-1:]) or len(rows) == 3, "it ends without a lower WER"
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
        assert run(config, tmp_path / "run") == 130
    assert run(config, tmp_path / "run") == 0
    one, other = weights(folder), weights(tmp_path / "run")
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert [row["loss"] for row in log(folder)] == [row["loss"] for row in log(tmp_path / "run")]


def test_log_probs_of_another_policy_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = Live._examples

    def shifted(self: Live, group: Any) -> Any:
        made = examples(self, group)
        for example in made:
            example.behaviour_logps = [one.roll(1) for one in example.behaviour_logps or []]
        return made

    monkeypatch.setattr(Live, "_examples", shifted)
    config = world(tmp_path)
    assert cli.main(["run", "-c", str(config), "--run-dir", str(tmp_path / "run"), "-q"]) == 1
    told = capsys.readouterr().err
    assert "differ by" in told and "talker-rl parity" in told


@pytest.mark.parametrize(("loss", "online"), [
    ({"type": "gspo", "beta": 0.1}, {"mini_batches": 2, "num_iterations": 2}),
    ({"type": "rloo", "stop": "drop"}, {"advantages": {"baseline": "leave_one_out", "scale_rewards": "none"},
                                        "truncated": "left_out"}),
    ({"type": "dapo"}, {"refill": 2, "advantages": {"credit": "words", "sequence_share": 0.5}}),
    ({"type": "dpo", "beta": 0.1, "stop": "drop"}, {"pairs": {"margin": 0.0, "strategy": "all_margin"}}),
    ({"type": "mix", "terms": [{"loss": {"type": "dpo", "token_weights": {"others": 0.5, "stop": 1}}},
                               {"loss": {"type": "sft"}}]}, {"num_iterations": 2}),
    ({"type": "sft"}, {}),
    ({"type": "mix", "terms": [{"loss": {"type": "grpo"}}, {"weight": 0.5, "loss": {"type": "sft"}}]},
     {"max_length_ratio": 1.2, "overlap": True}),
    ({"type": "grpo"}, {"sampling": SAMPLING | {"temperature": 0.9, "top_k": 40}, "importance": {"mode": "mask"}}),
])
def test_every_kind_trains(tmp_path: Path, loss: dict[str, Any], online: dict[str, Any]) -> None:
    config = world(tmp_path, loss, **online)
    assert run(config, tmp_path / "run") == 0
    rows = log(tmp_path / "run")
    assert len(rows) == 3 * online.get("mini_batches", 1) * online.get("num_iterations", 1) or "refill" in online
    assert rows[-1]["online/decodes"] <= 20


@pytest.mark.parametrize(("changes", "told"), [
    ({"train.data": "null"}, "data: online"),
    ({"train.loss": "{type: mix, terms: [{loss: {type: grpo}}, {loss: {type: dpo}}]}"}, "only sft can be mixed"),
    ({"train.online.prompts_per_step": "9", "train.online.decodes": "100"}, "takes 9 prompts"),
    ({"train.online.overlap": "true", "train.online.refill": "2"}, "choose one"),
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
    assert run(config, tmp_path / "run") == 0
    shards = ShardFolder(tmp_path / "run/round1/train/default/online/advantages")
    before: list[float] = []
    for number in range(3):
        valued = shards.read(number, Valued)
        if before:  # at the first there is only the group's own mean
            baseline = sum(before) / len(before)
            assert [v.advantage for v in valued] == pytest.approx([v.reward - baseline for v in valued], abs=1e-6)
        before += [v.reward for v in valued]
