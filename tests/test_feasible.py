"""Settings that cannot give a pair are told before the work; where none came out, the advice names the real reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import write_world

from talker_rl import cli
from talker_rl.base.errors import ConfigError
from talker_rl.config import load_config, load_data
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.stages.feasible import advice, check_config, check_texts, codes_needed

S = "rollouts.sampling."
OWN = {"reward": {"components": [{"name": "mine", "import_path": "toy:variety", "weight": 1.0}]}}


def config(*overrides: str, **data: Any) -> Any:
    return load_data(data, list(overrides))


IMPOSSIBLE = [
    ([S + "do_sample=false"], "do_sample", "do_sample=true"), ([S + "top_k=1"], "top_k is 1", "default: 40"),
    ([S + "top_p=0.0001"], "top_p", "leave top_p out"), ([S + "temperature=0.001"], "temperature", "default: 0.9"),
    ([S + "min_p=1.0"], "min_p", "leave min_p out"), ([S + "epsilon_cutoff=0.9"], "epsilon_cutoff", "leave"),
    ([S + "max_new_tokens=3"], "No text can be said in 3 codes", "50 codes per second"),
    ([S + "max_new_tokens=100", S + "min_new_tokens=100"], "min_new_tokens 100 forbids", "raise max_new_tokens"),
    ([S + "suppress_tokens=[8292, 8294]"], "both stop ids", "take 8294 out"),
    (["pairs.margin=1.5"], "lies within [0, 1]", "at most 1 can"),
    (["pairs.margin=0.6", "reward.clip=[0.5, 1.0]"], "lies within [0.5, 1]", "at most 0.5 can"),
    (["reward.clip=[1.0, 2.0]"], "Every reward is 1", "rewards lie within [0, 1]"),
    (["pairs.reward_key=pause_error", "pairs.margin=2"], "pause_error lies within", "at most 1 can"),
    (["pairs.reward_key=-cap_hit", "pairs.margin=2"], "-cap_hit lies within", "at most 1 can"),
    (["pairs.reward_key=wre"], "did you mean 'wer'", "one of: reward, wer"),
    (["pairs.reward_key=-rewards"], "did you mean 'reward'", "a minus before it"),
    (["pairs.reward_key=nothing_like_it"], "no score has such a component", "one of"),
    (["pairs.reward_key=ref_words"], "which the text decides", "e.g. reward"),
    (["pairs.chosen_longer_by=1023"], "longer than its rejected by 1023", "max_new_tokens"),
    ([S + "min_new_tokens=900", "pairs.chosen_longer_by=200"], "900 to 1023 frames", "lower it below 124"),
    (["pairs.min_chosen_reward=1.2"], "reward is 1 at the most", "lower it to 1"),
    (["pairs.min_chosen_reward=0.1", "pairs.reward_key=-wer"], "-wer is 0 at the most", "negative else"),
    (["train.data=best_of_n", "completions.min_reward=2"], "completions.min_reward 2", "lower it to 1"),
    (["train.data=best_of_n", "completions.reward_key=were"], "completions.reward_key is 'were'", "one of"),
    (["train.data=best_of_n", S + "max_new_tokens=2"], "No text can be said", "50 codes"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "what", "fix"), IMPOSSIBLE, ids=[" ".join(o) for o, *_ in IMPOSSIBLE])
def test_settings_that_cannot_give_anything(overrides: list[str], what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_config(config(*overrides))
    assert what in raised.value.what and fix in (raised.value.fix or ""), raised.value
    assert "\n" not in raised.value.what and raised.value.where


@pytest.mark.parametrize("overrides", [
    [], [S + "temperature=0.2"], [S + "top_k=2"], [S + "top_k=0"], [S + "top_p=0.1"], [S + "min_p=0.2"],
    [S + "min_new_tokens=4", S + "max_new_tokens=24"], [S + "suppress_tokens=[8292]"], ["pairs.margin=1"],
    ["pairs.margin=3", "pairs.reward_key=wer"], ["pairs.margin=3", "pairs.length_normalized=per_second"],
    ["pairs.margin=3", "reward.remove_length=true"], ["pairs.margin=3", "pairs.demote_over_limit=true"],
    ["pairs.reward_key=-reward"], ["pairs.reward_key=rate"], ["pairs.chosen_longer_by=1022"],
    ["pairs.min_chosen_reward=1"], ["pairs.min_chosen_reward=-0.1", "pairs.reward_key=-wer"],
    ["train.data=best_of_n", S + "do_sample=false"], ["train.data=best_of_n", "pairs.margin=9"],
    ["train.data=file", S + "max_new_tokens=1"], ["pairs.votes=votes.json", "pairs.margin=9"],
], ids=" ".join)  # fmt: skip
def test_what_may_work_is_not_refused(overrides: list[str]) -> None:
    check_config(config(*overrides))


def test_components_of_ones_own_are_known() -> None:
    check_config(config("pairs.reward_key=mine", **OWN))
    with pytest.raises(ConfigError, match="mine lies within"):
        check_config(config("pairs.reward_key=-mine", "pairs.margin=1.1", **OWN))


@pytest.mark.parametrize("file", sorted((Path(__file__).resolve().parents[1] / "configs").glob("*/*.yaml")), ids=str)
def test_every_shipped_configuration_may_work(file: Path) -> None:
    if file.parent.name in ("runs", "stages"):
        check_config(load_config([file]))


def test_what_a_text_takes_at_the_least() -> None:
    assert codes_needed("River.", 50) == 8  # 2 syllables of 50 / 15 codes, and the stop
    assert codes_needed("你好世界", 50) == 15


@pytest.mark.parametrize("data", ["null", "best_of_n"])
def test_texts_that_cannot_be_said_within_the_limit(data: str) -> None:
    texts = ["one two three four five", "a river and a garden", "一二三四五六七八"]
    prompts = [Prompt(text, "Chelsie") for text in texts]
    cfg = config(S + "max_new_tokens=12", f"train.data={data}")
    with pytest.raises(ConfigError, match="No train text can be said in 12 codes") as raised:
        check_texts(cfg, prompts)
    assert "max_new_tokens to" in (raised.value.fix or "")
    short = [*prompts, Prompt("Go.", "Chelsie")]
    told = check_texts(cfg, short)
    assert told is not None and "3 of 4 train texts cannot be said" in told
    assert check_texts(config(f"train.data={data}"), prompts) is None
    assert check_texts(config(S + "max_new_tokens=12", "train.data=file"), prompts) is None


@pytest.mark.parametrize("verb", ["run", "rollout", "score", "pair"])
def test_every_verb_that_samples_or_pairs_says_so_first(verb: str, tmp_path: Path, capsys: Any) -> None:
    world = write_world(tmp_path)
    for dry in ([], ["--dry-run"]):
        command = [verb, "-c", str(world), "--run-dir", str(tmp_path / "run"), "-q", S + "do_sample=false"]
        assert cli.main([*command, *dry]) == 2
        assert "do_sample=true" in capsys.readouterr().err
    assert not (tmp_path / "run/rollouts").exists() and not (tmp_path / "run/prompts").exists()


def test_the_token_limit_is_told_before_anything_is_sampled(tmp_path: Path, capsys: Any) -> None:
    world = write_world(tmp_path)
    limits = [S + "max_new_tokens=6", S + "min_new_tokens=0"]
    assert cli.main(["run", "-c", str(world), "--run-dir", str(tmp_path / "run"), "-q", *limits]) == 2
    assert "No train text can be said in 6 codes" in capsys.readouterr().err
    assert not (tmp_path / "run/conditioning").exists()


def test_validate_says_so_without_torch(tmp_path: Path) -> None:
    world = write_world(tmp_path)
    code = ("import sys; from talker_rl import cli\n"
            f"rc = cli.main(['validate', {str(world)!r}, 'pairs.margin=2'])\nprint(rc, 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=Path(__file__).resolve().parents[1])
    assert done.stdout.strip().endswith("2 False") and "pairs.margin" in done.stderr


def rows(*rewards: float | None) -> list[ScoreRow]:
    return [ScoreRow("p", f"p-{i}", "failed", error_code="silent", error_message="at -70 dBFS") if r is None
            else ScoreRow("p", f"p-{i}", "ok", r, {"wer": None}) for i, r in enumerate(rewards)]


@pytest.mark.parametrize(("reasons", "scores", "fixes"), [
    ({"duplicates": 3}, rows(0.5, 0.5), ["do_sample=true", "temperature"]),
    ({"all_truncated": 3}, rows(0.0, 0.0), ["max_new_tokens", "1024 codes (20.5 s)"]),
    ({"all_failed": 3}, rows(None, None), ["2 x silent (at -70 dBFS)"]),
    ({"no_margin": 3}, rows(0.5, 0.52), ["pairs.margin (0.05)", "0.02"]),
    ({"no_margin": 3}, rows(0.5, 0.5), ["all are equal"]),
    ({"below_minimum": 3}, rows(0.5, 0.7), ["pairs.min_chosen_reward", "0.7 is the best"]),
    ({"not_longer": 2, "all_truncated": 5}, rows(0.5, 0.7), ["max_new_tokens", "chosen_longer_by"]),
    ({"length_mismatch": 2}, rows(0.5, 0.7), ["length_match"]),
    ({"length_outlier": 2}, rows(0.5, 0.7), ["max_length_sd"]),
    ({"over_limit": 2}, rows(0.5, 0.7), ["max_seconds"]),
    ({"one_scored": 2}, rows(0.5, None), ["made the others fail"]),
    ({"not_scored": 2, "no_candidates": 1}, [], ["--force-stage scores", "--force-stage rollouts"]),
    ({}, [], ["stages before"]),
])  # fmt: skip
def test_the_advice_names_the_real_reason(reasons: dict[str, int], scores: list[ScoreRow], fixes: list[str]) -> None:
    told, fix = advice(config(), reasons, scores, "reward", "pairs.min_chosen_reward")
    assert all(part in fix for part in fixes), fix
    assert all(f"{count} x " in told for count in reasons.values())


def test_a_component_without_values_is_the_reason() -> None:
    _, fix = advice(config(), {"all_failed": 1}, rows(0.5, 0.7), "wer", "pairs.min_chosen_reward")
    assert "wer has no value" in fix


def test_a_run_that_gives_no_pair_ends_with_what_helps(tmp_path: Path, capsys: Any) -> None:
    cut = write_world(tmp_path / "cut", rollouts={
        "num_candidates": 2, "batch_size": 6, "shard_size": 4,
        "sampling": {"max_new_tokens": 16, "top_k": 0, "top_p": 1.0, "temperature": 1.0,
                     "sequence_bias": [[[8294], -100.0], [[8292], -100.0]]}})
    assert cli.main(["run", "-c", str(cut), "--run-dir", str(tmp_path / "cut/run"), "-q"]) == 1
    assert "raise rollouts.sampling.max_new_tokens: all were cut at 16" in capsys.readouterr().err
    close = write_world(tmp_path / "close", pairs={"margin": 0.95, "reward_key": "variety"})
    assert cli.main(["run", "-c", str(close), "--run-dir", str(tmp_path / "close/run"), "-q"]) == 1
    assert "lower pairs.margin (0.95): the largest difference within a prompt is" in capsys.readouterr().err
