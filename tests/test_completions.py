"""Completions: which samples are imitated, which given codes are taken, and that to imitate is SFT on the chosen."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from train_helpers import losses, make_config, make_generator, make_pairs

from talker_rl.base.errors import ConfigError, DataError
from talker_rl.config import load_data
from talker_rl.data.completions import import_completions, select_completions
from talker_rl.data.config import CompletionsConfig
from talker_rl.data.export import export_completions
from talker_rl.evaluation.likelihood import compare_likelihood
from talker_rl.records.candidate import Candidate
from talker_rl.records.pair import Completion
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.stages.plan import plan
from talker_rl.train.run import train_variant

PROMPTS = [Prompt("stop go.", "Ann"), Prompt("go on.", "Ann"), Prompt("go on.", "Bob")]


def sampled(prompt: Prompt, *rows: tuple[list[int], float | None, str]) -> tuple[list[Candidate], list[ScoreRow]]:
    """Candidates with scores from (codes, reward or None where scoring failed, end reason)."""
    candidates, scores = [], []
    for k, (codes, reward, end) in enumerate(rows):
        name = f"{prompt.prompt_id}-{k}"
        stop = 8294 if end == "eos" else None
        candidates.append(Candidate(prompt.prompt_id, name, prompt.speaker, k, codes, stop, end, [0.0]))  # type: ignore[arg-type]
        failed = reward is None
        scores.append(ScoreRow(prompt.prompt_id, name, "failed" if failed else "ok", reward,
                               {} if failed else {"wer": 1 - reward}))
    return candidates, scores


@pytest.mark.parametrize(
    ("written", "taken"), [((0.8, 0.8), None), ((0.9, 0.8), 0), ((0.7, 0.8), 1), ((None, None), None)],
)
def test_which_is_best_does_not_hang_on_what_recognizers_do_not_write(
    written: tuple[float | None, float | None], taken: int | None
) -> None:
    """"120" read as words costs four errors, and left out one: the worse reading ranks higher."""
    prompt = Prompt("It costs 120 now.", "Ann")
    candidates, scores = sampled(prompt, ([1, 2], 0.2, "eos"), ([3, 4], 0.6, "eos"))
    for row, value in zip(scores, written, strict=True):
        row.components |= {"unwritten": 1.0, "reward_written": value}
    found, reasons = select_completions([prompt], candidates, scores, CompletionsConfig())
    assert [c.origin for c in found] == ([] if taken is None else [candidates[taken].candidate_id])
    assert reasons == ({"unwritten": 1} if taken is None else {})
    found, _ = select_completions([prompt], candidates, scores, CompletionsConfig(unwritten=True))
    assert [c.origin for c in found] == [candidates[1].candidate_id]


def test_silence_is_never_imitated() -> None:
    prompt = Prompt("one two.", "Ann")
    candidates, scores = sampled(prompt, ([1, 2], 0.9, "eos"), ([3, 4], 0.1, "eos"))
    counts = {"ref_words": 2.0, "substitutions": 0.0, "insertions": 0.0}
    scores[0].components |= counts | {"deletions": 2.0}
    scores[1].components |= counts | {"deletions": 1.0}
    for key in ("reward", "-substitutions"):
        found, _ = select_completions([prompt], candidates, scores, CompletionsConfig(reward_key=key))
        assert [c.origin for c in found] == [candidates[1].candidate_id]
    found, reasons = select_completions([prompt], candidates[:1], scores[:1], CompletionsConfig())
    assert (found, reasons) == ([], {"nothing_recognized": 1})


def test_the_best_finished_candidates_are_imitated_and_cut_ones_never() -> None:
    first, second, third = PROMPTS
    candidates, scores = [], []
    for made in (
        sampled(first, ([1, 2], 0.7, "eos"), ([3], 1.0, "max_tokens"), ([4, 5], 0.9, "eos"), ([4, 5], 0.9, "eos"),
                ([6], None, "eos"), ([7, 8, 9], 0.8, "eos")),
        sampled(second, ([1], 1.0, "max_tokens")),
        sampled(third, ([1], 0.2, "eos")),
    ):
        candidates += made[0]
        scores += made[1]
    random.Random(0).shuffle(candidates)
    cfg = CompletionsConfig(min_reward=0.8, max_per_prompt=3)
    found, reasons = select_completions(PROMPTS, candidates, scores, cfg)
    assert [(c.speech.ids, c.reward, c.rank, c.best_of, c.seconds) for c in found] == [
        ([4, 5, 8294], 0.9, 1, 3, 0.04), ([7, 8, 9, 8294], 0.8, 2, 3, 0.06)]
    assert [c.origin for c in found] == [f"{first.prompt_id}-2", f"{first.prompt_id}-5"]
    assert reasons == {"all_truncated": 1, "below_minimum": 1}
    by_wer, _ = select_completions(PROMPTS, candidates, scores, CompletionsConfig(reward_key="-wer", min_reward=-0.15))
    assert [c.speech.ids for c in by_wer] == [[4, 5, 8294]]


def test_given_codes_are_joined_to_prompts_and_end_with_a_stop(tmp_path: Path) -> None:
    file = tmp_path / "codes.jsonl"

    def write(*rows: dict) -> Path:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    rows = ({"text": " stop go. ", "codes": [1, 2]}, {"text": "go on.", "speaker": "Bob", "codes": [3, 8292]},
            {"text": "go on.", "codes": [4]}, {"text": "never heard", "codes": [5]},
            {"text": "stop go.", "codes": [1, 2]})
    found, reasons = import_completions(write(*rows), PROMPTS)
    assert [(c.prompt_id, c.speech.ids, c.origin, c.reward) for c in found] == [
        (PROMPTS[0].prompt_id, [1, 2, 8294], "codes.jsonl:1", None),
        (PROMPTS[2].prompt_id, [3, 8292], "codes.jsonl:2", None)]
    assert reasons == {"duplicate": 1, "no_speaker": 1, "unknown_prompt": 1}
    with pytest.raises(DataError, match="row 2.*") as error:
        import_completions(write(rows[0], {"text": "go on.", "speaker": "Bob", "codes": [8200]}), PROMPTS)
    assert "8200" in error.value.what
    with pytest.raises(DataError, match="gives codes of a train prompt.*1 x unknown_prompt"):
        import_completions(write(rows[3]), PROMPTS)


def test_datasets_loads_completions(tmp_path: Path) -> None:
    import datasets

    candidates, scores = sampled(PROMPTS[0], ([1, 2], 0.7, "eos"))
    found, _ = select_completions(PROMPTS[:1], candidates, scores, CompletionsConfig())
    loaded = datasets.load_dataset(str(export_completions(found, tmp_path / "out", reasons={"all_failed": 2})),
                                   split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["prompt"] == "stop go." and loaded[0]["completion"] == [1, 2, 8294] and loaded[0]["rank"] == 1
    assert "2 x `all_failed`" in (tmp_path / "out/README.md").read_text()


def test_imitating_completions_is_sft_on_the_chosen_without_the_rejected(tmp_path: Path) -> None:
    pairs, conditionings = make_pairs(12)
    alone = [Completion(p.prompt_id, p.pair_id, p.text, p.speaker, p.chosen, p.chosen_id) for p in pairs]
    found = {}
    for name, data, cfg in (("pairs", pairs, make_config(loss={"type": "sft"})),
                            ("alone", alone, make_config(data="best_of_n"))):
        found[name] = train_variant(make_generator(), data[:8], conditionings, cfg, tmp_path / name,
                                    eval_pairs=data[8:], progress=False)
    for key in ("loss", "logps/chosen_per_code", "logps/chosen_drift", "eval_loss"):
        both = [losses(tmp_path / name, key) for name in ("pairs", "alone")]
        assert len(both[0]) >= 2 and [step for step, _ in both[0]] == [step for step, _ in both[1]]
        assert [v for _, v in both[0]] == pytest.approx([v for _, v in both[1]], abs=1e-5), key
    drift = losses(tmp_path / "alone", "logps/chosen_drift")
    assert abs(drift[0][1]) < 1e-5 < drift[-1][1]  # it says what it imitates more gladly than the start did
    assert found["alone"]["reference"]["computed"] == 12 and found["pairs"]["reference"]["computed"] == 24
    assert not any("rejected" in key or "margin" in key for key in found["alone"]["train"])


def test_a_loss_that_compares_is_refused_on_completions() -> None:
    assert load_data({"train": {"data": "file"}}).variants["default"].loss == {"type": "sft"}
    for loss in ({"type": "dpo"}, {"type": "mix", "terms": [{"loss": {"type": "sft"}}]}):
        with pytest.raises(ConfigError, match="best_of_n are completions"):
            load_data({"train": {"data": "best_of_n", "loss": loss}})
    with pytest.raises(ConfigError, match="iterations above 1 sample again"):
        load_data({"train": {"data": "file"}, "iterations": 2})


def test_the_plan_names_what_each_variant_learns_from() -> None:
    def steps(*data: str) -> list[str]:
        variants = {name: {"data": name} if name != "pairs" else {} for name in data}
        limit = {"limit": {"train": 4, "dev": 2, "eval": 2}}
        found = plan(load_data({"train": variants, "prompts": limit, "completions": {"min_reward": 0.9}}))
        return [f"{step.stage}: {step.what}" for step in found if step.stage in ("rollouts", "pairs", "completions")]

    assert steps("file") == ["completions: round 1: the codes of micro:train"]
    assert steps("pairs", "best_of_n") == [
        "rollouts: round 1: 32 candidates (4 prompts x 8)", "pairs: round 1: at most 4 pairs",
        "completions: round 1: the best 1 of each prompt's candidates with reward >= 0.9"]


def test_likelihood_is_nats_a_code_over_all_codes_with_an_interval_over_prompts() -> None:
    rows = [{"prompt_id": f"p{i % 4}", "tokens": 10 * n, "base_logp": -20.0 * n, "trained_logp": -15.0 * n}
            for i, n in enumerate(range(1, 9))]
    found = compare_likelihood(rows, resamples=200)
    assert (found["base"], found["trained"], found["prompts"], found["codes"]) == (2.0, 1.5, 4, 360)
    assert found["diff_ci95"] == pytest.approx((-0.5, -0.5))
    rows[0]["trained_logp"] = -40.0
    low, high = compare_likelihood(rows, resamples=500)["diff_ci95"]
    assert low < -0.5 + 25 / 360 < high
    with pytest.raises(DataError, match="no held-out codes"):
        compare_likelihood([])
