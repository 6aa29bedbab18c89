"""Pair selection on hand-made score sets: every reason, every option, and that row order never matters."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from talker_rl.base.errors import DataError
from talker_rl.data.config import PairsConfig
from talker_rl.data.export import export_pairs
from talker_rl.data.import_pairs import import_pairs
from talker_rl.data.pairs import REASONS, PairSelection, explain_pairs, pairs_hash, select_pairs
from talker_rl.records.candidate import Candidate
from talker_rl.records.codec import codec_named
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow

EOS = 8294


def prompt(name: str) -> Prompt:
    return Prompt(text=f"say {name}.", speaker="anna", prompt_id=name)


def candidate(prompt_id: str, k: int, length: int, end: str = "eos", codes: list[int] | None = None) -> Candidate:
    codes = [k] * length if codes is None else codes
    return Candidate(
        prompt_id=prompt_id,
        candidate_id=f"{prompt_id}-{k}",
        speaker="anna",
        seed=k,
        codes=codes,
        stop_id=EOS if end == "eos" else None,
        end_reason=end,  # type: ignore[arg-type]
        token_logps=[-1.0] * (len(codes) + (end == "eos")),
    )


def score(prompt_id: str, k: int, reward: float | None, **components: float | None) -> ScoreRow:
    status = "failed" if reward is None else "ok"
    return ScoreRow(prompt_id, f"{prompt_id}-{k}", status, reward, dict(components))  # type: ignore[arg-type]


def group(rewards: list[float | None], lengths: list[int] | None = None, ends: list[str] | None = None):
    lengths = lengths or [100] * len(rewards)
    ends = ends or ["eos"] * len(rewards)
    rows = list(zip(rewards, lengths, ends, strict=True))
    candidates = [candidate("p", k, n, end) for k, (_, n, end) in enumerate(rows)]
    return candidates, [score("p", k, reward) for k, (reward, _, _) in enumerate(rows)]


def pick(rewards, lengths=None, ends=None, **settings):
    candidates, scores = group(rewards, lengths, ends)
    pairs, reasons = select_pairs([prompt("p")], candidates, scores, PairsConfig(**settings))
    return [(p.chosen_id, p.rejected_id) for p in pairs], reasons


def test_best_against_worst():
    candidates, scores = group([0.2, 0.9, 0.5, 0.1], lengths=[50, 100, 100, 75])
    pairs, reasons = select_pairs([prompt("p")], candidates, scores, PairsConfig())
    (pair,) = pairs
    assert (pair.chosen_id, pair.rejected_id) == ("p-1", "p-3")
    assert reasons == {}
    assert pair.chosen.ids == [1] * 100 + [EOS] and pair.rejected.ids == [3] * 75 + [EOS]
    assert pair.margin == pytest.approx(0.8)
    assert (pair.chosen_seconds, pair.rejected_seconds) == (2.0, 1.5)  # durations leave the stop out


@pytest.mark.parametrize(
    ("rewards", "lengths", "ends", "settings", "reason"),
    [
        ([], None, None, {}, "no_candidates"),
        ([None, None], None, None, {}, "all_failed"),
        ([0.5, None], None, None, {}, "one_scored"),
        ([0.9, 0.1], [100, 100], ["max_tokens"] * 2, {}, "all_truncated"),
        ([0.5, 0.5], None, None, {"margin": 0.0}, "no_margin"),
        ([0.5, 0.46], None, None, {"margin": 0.05}, "no_margin"),
        # the better one was cut: it may not be chosen, and the finished one does not beat it
        ([0.9, 0.1], [100, 100], ["max_tokens", "eos"], {}, "no_margin"),
        ([0.9, 0.1], [100, 104], None, {"length_match": 3}, "length_mismatch"),
        ([0.9, 0.1], [102, 100], None, {"chosen_longer_by": 3}, "not_longer"),
        ([0.9, 0.1, 0.1, 0.1], [400, 100, 100, 100], ["eos"] + ["max_tokens"] * 3, {"max_length_sd": 1.0},
         "length_outlier"),
        ([0.4, 0.1], None, None, {"min_chosen_reward": 0.5}, "below_minimum"),
        ([0.9, 0.1], None, ["eos", "invalid_code"], {}, "one_scored"),
    ],
)  # fmt: skip
def test_reason(rewards, lengths, ends, settings, reason):
    pairs, reasons = pick(rewards, lengths, ends, **settings)
    assert pairs == [] and reasons == {reason: 1}
    assert reason in REASONS


def test_reasons_not_scored_and_duplicates():
    twins = [candidate("p", 0, 3, codes=[5, 6, 7]), candidate("p", 1, 3, codes=[5, 6, 7])]
    scores = [score("p", 0, 0.9), score("p", 1, 0.1)]
    assert select_pairs([prompt("p")], twins, [], PairsConfig())[1] == {"not_scored": 1}
    assert select_pairs([prompt("p")], twins, scores, PairsConfig())[1] == {"duplicates": 1}
    assert len(select_pairs([prompt("p")], twins, scores, PairsConfig(dedup=False))[0]) == 1


def test_failures_never_enter_and_zero_reward_is_a_value():
    pairs, _ = pick([0.9, None, 0.0, None])
    assert pairs == [("p-0", "p-2")]


def test_truncated_may_be_rejected():
    assert pick([0.9, 0.1], ends=["eos", "max_tokens"])[0] == [("p-0", "p-1")]


def test_cap_uses_each_candidate_once():
    rewards = [0.0, 0.2, 0.8, 1.0]
    assert pick(rewards, max_pairs_per_prompt=5)[0] == [("p-3", "p-0"), ("p-2", "p-1")]
    every = pick(rewards, max_pairs_per_prompt=9, strategy="all_margin", margin=0.5)[0]
    assert every == [("p-3", "p-0"), ("p-2", "p-0"), ("p-3", "p-1"), ("p-2", "p-1")]
    assert len(pick(rewards, max_pairs_per_prompt=3, strategy="all_margin", margin=0.5)[0]) == 3


def test_a_planted_length_bias_keeps_only_pairs_with_a_longer_chosen():
    rewards, lengths = [0.9, 0.8, 0.2, 0.1], [100, 110, 90, 105]
    settings = {"strategy": "all_margin", "max_pairs_per_prompt": 9}
    assert len(pick(rewards, lengths, **settings)[0]) == 6
    assert pick(rewards, lengths, chosen_longer_by=10, **settings)[0] == [("p-0", "p-2"), ("p-1", "p-2")]
    assert ("p-1", "p-3") in pick(rewards, lengths, chosen_longer_by=5, **settings)[0]  # longer by exactly 5
    assert pick(rewards, lengths, chosen_longer_by=10, length_match=10, **settings)[0] == [("p-0", "p-2")]
    with pytest.raises(ValueError, match="chosen_longer_by"):
        PairsConfig(chosen_longer_by=10, length_match=9)


def test_a_candidate_over_its_limit_is_demoted():
    candidates, scores = group([0.9, 0.5, 0.45, 0.1], lengths=[200, 100, 85, 80])

    def chosen(limit, **settings):
        one = Prompt(text="say p.", speaker="anna", prompt_id="p", max_seconds=limit)
        pairs, reasons = select_pairs([one], candidates, scores, PairsConfig(**settings))
        return [(p.chosen_id, p.rejected_id) for p in pairs], reasons, pairs

    assert chosen(3.0)[0] == [("p-0", "p-3")]  # a limit alone changes nothing
    assert chosen(4.0, demote_over_limit=True)[0] == [("p-0", "p-3")]  # exactly at the limit is within it
    assert chosen(None, demote_over_limit=True)[0] == [("p-0", "p-3")]
    names, _, pairs = chosen(3.0, demote_over_limit=True)
    assert names == [("p-1", "p-0")]  # what was chosen is now rejected, against the best within
    assert pairs[0].margin == pytest.approx(-0.4)
    names, _, _ = chosen(3.0, demote_over_limit=True, strategy="all_margin", max_pairs_per_prompt=9)
    assert names == [("p-1", "p-0"), ("p-2", "p-0"), ("p-3", "p-0"), ("p-1", "p-3"), ("p-2", "p-3"), ("p-1", "p-2")]
    names, _, _ = chosen(1.65, demote_over_limit=True, strategy="all_margin", max_pairs_per_prompt=9)
    assert {rejected for _, rejected in names} == {"p-0", "p-1", "p-2"} and {c for c, _ in names} == {"p-3"}
    assert chosen(1.0, demote_over_limit=True)[1] == {"over_limit": 1}
    names, _, _ = chosen(3.0, demote_over_limit=True, length_normalized="per_second")
    assert names == [("p-2", "p-0")]  # 0.45 in 1.7 s is best a second; still demoted where lengths are normalized


def test_best_vs_random_is_seeded():
    rewards = [1.0] + [i / 20 for i in range(10)]
    draws = {tuple(pick(rewards, strategy="best_vs_random", seed=s, max_pairs_per_prompt=2)[0]) for s in range(8)}
    again = {tuple(pick(rewards, strategy="best_vs_random", seed=s, max_pairs_per_prompt=2)[0]) for s in range(8)}
    assert draws == again and len(draws) > 1
    assert all(chosen == "p-0" for draw in draws for chosen, _ in draw)


def test_length_match_finds_the_matching_sibling():
    assert pick([0.9, 0.1, 0.3], [100, 110, 102], length_match=3)[0] == [("p-0", "p-2")]


def test_max_length_sd_takes_the_next_best():
    lengths = [200, 100, 101, 99, 100]
    assert pick([0.9, 0.8, 0.1, 0.2, 0.2], lengths)[0] == [("p-0", "p-2")]
    assert pick([0.9, 0.8, 0.1, 0.2, 0.2], lengths, max_length_sd=1.0)[0] == [("p-1", "p-2")]


def test_length_normalized_ranking():
    # Reward is 0.01 per code plus a quality that only p-1 has: raw ranking picks the longest, the residual the best.
    lengths = [100, 110, 120, 130]
    rewards = [1.00, 1.10 + 0.05, 1.20, 1.30]
    assert pick(rewards, lengths)[0] == [("p-3", "p-0")]
    assert pick(rewards, lengths, length_normalized="residual", margin=0.01)[0][0][0] == "p-1"
    assert pick(rewards, lengths, length_normalized="per_second", margin=0.001)[0][0][0] == "p-1"


def test_component_as_reward_key():
    candidates, _ = group([1, 1, 1])
    scores = [score("p", 0, 1.0, wer=0.5), score("p", 1, 0.0, wer=0.0), score("p", 2, 2.0, wer=None)]
    pairs, _ = select_pairs([prompt("p")], candidates, scores, PairsConfig(reward_key="-wer"))
    assert [(p.chosen_id, p.rejected_id, p.margin) for p in pairs] == [("p-1", "p-0", 0.5)]


@pytest.mark.parametrize(
    ("chosen", "near", "far"),
    [([1, 2, 3, 4], [1, 2, 9, 4], [7, 7, 7, 7]), ([1, 2, 3], [1, 3], [9, 8, 3]), ([1, 2, 3], [2, 3, 4], [9, 8, 7]),
     (list(b"kitten"), list(b"sitting"), list(b"jumped")), ([1], [2], [3, 4])],
)  # fmt: skip
def test_prefer_min_edit(chosen, near, far):
    """An insertion, a deletion and a substitution cost 1 each."""
    codes = [chosen, near, far]
    candidates = [candidate("p", k, 4, codes=c) for k, c in enumerate(codes)]
    scores = [score("p", 0, 0.9), score("p", 1, 0.4), score("p", 2, 0.1)]
    rejected = {
        flag: select_pairs([prompt("p")], candidates, scores, PairsConfig(prefer_min_edit=flag))[0][0].rejected_id
        for flag in (False, True)
    }
    assert rejected == {False: "p-2", True: "p-1"}


def world(seed: int = 0):
    rng = random.Random(seed)
    prompts = [prompt(f"q{i:02d}") for i in range(30)]
    candidates, scores = [], []
    for p in prompts:
        for k in range(6):
            candidates.append(candidate(p.prompt_id, k, rng.randint(90, 110)))
            scores.append(score(p.prompt_id, k, rng.choice([None, 0.1, 0.5, 0.5, 0.9, rng.random()])))
    return prompts, candidates, scores


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strategy": "best_vs_random", "max_pairs_per_prompt": 2},
        {"strategy": "all_margin", "max_pairs_per_prompt": 3, "length_match": 4, "length_normalized": "residual"},
        {"prefer_min_edit": True, "max_pairs_per_prompt": 2},
    ],
)
def test_row_order_never_matters(settings):
    prompts, candidates, scores = world()
    expected, reasons = select_pairs(prompts, candidates, scores, PairsConfig(**settings))
    assert len(expected) > 10
    for seed in range(3):
        for rows in (prompts, candidates, scores):
            random.Random(seed).shuffle(rows)
        again, reasons_again = select_pairs(prompts, candidates, scores, PairsConfig(**settings))
        assert again == expected and reasons_again == reasons
        assert pairs_hash(again) == pairs_hash(expected)


def test_every_prompt_is_accounted_for():
    prompts, candidates, scores = world(3)
    pairs, reason_of = explain_pairs(prompts, candidates, scores, PairsConfig(margin=0.6))
    assert {p.prompt_id for p in pairs} | set(reason_of) == {p.prompt_id for p in prompts}
    assert not {p.prompt_id for p in pairs} & set(reason_of)


def test_contradicting_rows_are_refused_and_retries_accepted():
    candidates, scores = group([0.9, 0.1])
    with pytest.raises(DataError, match="two different scores"):
        select_pairs([prompt("p")], candidates, [*scores, score("p", 0, 0.3)], PairsConfig())
    other = candidate("p", 0, 7)
    with pytest.raises(DataError, match="appears twice"):
        select_pairs([prompt("p")], [*candidates, other], scores, PairsConfig())
    retried = [score("p", 0, None), *scores, score("p", 1, None)]
    assert len(select_pairs([prompt("p")], candidates, retried, PairsConfig())[0]) == 1


def test_export_loads_with_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    prompts, candidates, scores = world()
    prompts[0].messages = [{"role": "user", "content": "hello"}]
    pairs, reasons = select_pairs(prompts, candidates, scores, PairsConfig())
    folder = export_pairs(pairs, tmp_path / "pairs", prompts=prompts, reasons=reasons, source={"model": "abc"})
    (folder / "index.json").write_text("{}")  # other files of a run folder must not disturb
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"), split="train")
    assert len(loaded) == len(pairs)
    assert {"prompt", "chosen", "rejected", "text", "margin", "chosen_length"} <= set(loaded.column_names)
    assert loaded[0]["chosen"] == pairs[0].chosen.ids and loaded[0]["prompt"] == pairs[0].text
    assert loaded[0]["chosen_length"] == pairs[0].chosen.steps
    again = import_pairs(folder / "data" / "train-00000-of-00001.parquet", prompts)
    assert again.pairs == pairs
    card = (folder / "README.md").read_text()
    assert pairs_hash(pairs) in card and "model: abc" in card


GOOD = {"prompt": "hello there.", "speaker": "anna", "chosen": [1, 2, EOS], "rejected": [3]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": " "}, "unknown_prompt"),
        ({"prompt": None, "prompt_id": "nobody"}, "unknown_prompt"),
        ({"speaker": None}, "no_speaker"),
        ({"chosen": "1 2 3"}, "no_codes"),
        ({"chosen": [1.5, EOS]}, "no_codes"),
        ({"rejected": []}, "no_codes"),
        ({"rejected": [EOS]}, "empty"),
        ({"rejected": [1, 8293, 2]}, "invalid_code"),
        ({"rejected": [1, -1]}, "invalid_code"),
        ({"rejected": [1, 2, EOS]}, "identical"),
        ({"chosen": [1, 2]}, "chosen_truncated"),
        ({"chosen_reward": "good"}, "bad_reward"),
        ({"chosen_reward": True}, "bad_reward"),
        ({"margin": float("nan")}, "bad_reward"),
    ],
)
def test_import_checks_each_row(tmp_path, change, reason):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (GOOD, GOOD | {"rejected": [9]} | change)))
    with pytest.raises(DataError, match="row 2") as error:
        import_pairs(path)
    assert reason in str(error.value)
    imported = import_pairs(path, on_error="skip")
    assert len(imported.pairs) == 1 and imported.skipped == {reason: 1}


def test_import_by_id_and_from_its_own_export(tmp_path):
    known = Prompt(text="hello there.", speaker="anna")
    path = tmp_path / "mine.jsonl"
    by_id = {"prompt_id": known.prompt_id, "chosen": [1, 2], "rejected": [3], "chosen_reward": 0.7}
    path.write_text("\n".join(json.dumps(row) for row in (by_id, GOOD | {"rejected": [4, 4]})))
    imported = import_pairs(path, [known], append_stop=True)
    assert [p.rejected.ids for p in imported.pairs] == [[3, EOS], [4, 4, EOS]]
    assert [(p.prompt_id, p.chosen_reward) for p in imported.pairs] == [(known.prompt_id, 0.7), (known.prompt_id, 1.0)]
    path.write_text("\n".join(json.dumps(row) for row in (by_id, GOOD)))
    with pytest.raises(DataError, match="duplicate"):  # with the stops appended, both rows say the same
        import_pairs(path, [known], append_stop=True)
    folder = export_pairs(imported.pairs, tmp_path / "out", prompts=imported.prompts)
    again = import_pairs(folder / "data" / "train-00000-of-00001.parquet", imported.prompts)
    assert again.pairs == imported.pairs and again.prompts == [known]


def test_import_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        import_pairs(tmp_path / "none.jsonl")
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match="file type"):
        import_pairs(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_text("{")
    with pytest.raises(DataError, match="line 1"):
        import_pairs(tmp_path / "a.jsonl")
    (tmp_path / "a.parquet").write_bytes(b"PAR1, cut")
    with pytest.raises(DataError, match="cannot be read"):
        import_pairs(tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no usable pair"):
        import_pairs(tmp_path / "b.jsonl")


SILENT = {"ref_words": 4.0, "substitutions": 0.0, "deletions": 4.0, "insertions": 0.0, "wer": 1.0, "pause_false": 0.0,
          "max_inner_silence": 0.0}
HEARD = {"ref_words": 4.0, "substitutions": 1.0, "deletions": 1.0, "insertions": 0.0, "wer": 0.5, "pause_false": 1.0,
         "max_inner_silence": 0.4}


@pytest.mark.parametrize("key", ["-substitutions", "-pause_false", "-max_inner_silence", "reward"])
def test_a_candidate_in_which_nothing_was_recognized_is_never_chosen(key: str) -> None:
    """Silence has no substitution, no false pause and no long silence between words; it is no better for it."""
    candidates = [candidate("p", 0, 50), candidate("p", 1, 60)]
    scores = [score("p", 0, 0.9, **SILENT), score("p", 1, 0.1, **HEARD)]
    pairs, reasons = select_pairs([prompt("p")], candidates, scores, PairsConfig(reward_key=key, margin=0))
    assert (pairs, reasons) == ([], {"no_margin": 1})
    pairs, _ = select_pairs([prompt("p")], candidates, scores, PairsConfig(reward_key="-wer", margin=0))
    assert [(p.chosen_id, p.rejected_id) for p in pairs] == [("p-1", "p-0")]
    both_silent = [score("p", k, 0.5 * k, **SILENT) for k in (0, 1)]
    _, reasons = select_pairs([prompt("p")], candidates, both_silent, PairsConfig(margin=0))
    assert reasons == {"nothing_recognized": 1}


@pytest.mark.parametrize(
    ("better", "worse", "made"),
    [
        ((0.9, 0.8), (0.5, 0.8), False),  # the same but for the figure
        ((0.9, 0.7), (0.5, 0.8), False),  # the other way round but for the figure
        ((0.9, 0.8), (0.5, 0.6), True),
        ((0.9, None), (0.5, None), False),  # a text of figures alone: nothing else to judge
    ],
)
def test_a_pair_whose_order_hangs_on_what_recognizers_do_not_write_is_made_only_when_asked(
    better: tuple[float, float | None], worse: tuple[float, float | None], made: bool
) -> None:
    candidates = [candidate("p", 0, 50), candidate("p", 1, 60)]
    scores = [score("p", k, value, unwritten=1.0, reward_written=written)
              for k, (value, written) in enumerate((better, worse))]
    pairs, reasons = select_pairs([prompt("p")], candidates, scores, PairsConfig())
    assert bool(pairs) is made and reasons == ({} if made else {"unwritten": 1})
    assert len(select_pairs([prompt("p")], candidates, scores, PairsConfig(unwritten=True))[0]) == 1
    # a key that no word error moves
    longer = [ScoreRow("p", s.candidate_id, "ok", s.reward, s.components | {"duration": float(k)})
              for k, s in enumerate(scores)]
    assert len(select_pairs([prompt("p")], candidates, longer, PairsConfig(reward_key="-duration"))[0]) == 1


def test_silence_does_not_bend_rewards_without_length() -> None:
    candidates = [candidate("p", k, n) for k, n in enumerate((10, 10, 10, 50, 150))]
    counts = [SILENT, SILENT | {"wer": 1.0}, SILENT, HEARD, HEARD | {"substitutions": 0.0, "deletions": 0.0}]
    scores = [score("p", k, r, **c) for k, (r, c) in enumerate(zip((0.0, 0.0, 0.0, 0.296, 0.5), counts, strict=True))]
    cfg = PairsConfig(length_normalized="residual", strategy="all_margin", max_pairs_per_prompt=9, margin=0.0)
    pairs, _ = select_pairs([prompt("p")], candidates, scores, cfg)
    assert pairs and ("p-3", "p-4") not in [(p.chosen_id, p.rejected_id) for p in pairs]


def test_per_second_never_prefers_fewer_right_words() -> None:
    whole = {"ref_words": 5.0, "substitutions": 0.0, "deletions": 0.0, "insertions": 0.0}
    candidates = [candidate("p", 0, 160), candidate("p", 1, 6)]
    scores = [score("p", 0, 0.35, **whole), score("p", 1, 0.079, **whole | {"deletions": 3.0})]
    pairs, reasons = select_pairs([prompt("p")], candidates, scores, PairsConfig(length_normalized="per_second"))
    assert (pairs, reasons) == ([], {"fewer_words": 1})
    scores[1] = score("p", 1, 0.079, **whole)
    assert select_pairs([prompt("p")], candidates, scores, PairsConfig(length_normalized="per_second"))[0]
    with pytest.raises(ValueError, match="smallest for the longest speech"):
        PairsConfig(length_normalized="per_second", reward_key="-wer")


def test_what_a_recognizer_hears_in_noise_is_not_chosen_by_a_component() -> None:
    yeah = {"ref_words": 5.0, "substitutions": 1.0, "deletions": 4.0, "insertions": 0.0, "duration": 0.4}
    half = {"ref_words": 5.0, "substitutions": 2.0, "deletions": 1.0, "insertions": 0.0, "duration": 2.0}
    candidates = [candidate("p", 0, 20), candidate("p", 1, 100)]
    scores = [score("p", 0, 0.0, **yeah), score("p", 1, 0.2, **half)]
    for key in ("-substitutions", "-duration"):
        pairs, _ = select_pairs([prompt("p")], candidates, scores, PairsConfig(reward_key=key, margin=0))
        assert pairs == []


def test_the_spelling_of_older_runs_is_read() -> None:
    from talker_rl.config import load_data

    config = load_data({"pairs": {"length_normalised": "residual", "margin": 0.2}})
    assert config.pairs.length_normalized == "residual" and "length_normalised" not in config.to_yaml()


def test_lengths_are_frames_where_a_frame_is_many_codes():
    """Four frames of 16 codes differ by 4, and not by 64."""
    codec = codec_named("qwen3_omni")
    frames = [20, 24, 30]
    candidates = [replace(candidate("p", k, 0, codes=[k] * codec.groups * n), codec=codec.name, stop_id=codec.stop,
                          token_logps=[-1.0] * (n + 1)) for k, n in enumerate(frames)]
    scores = [score("p", k, reward) for k, reward in enumerate([0.1, 0.9, 0.2])]

    def picked(**settings):
        pairs, reasons = select_pairs([prompt("p")], candidates, scores, PairsConfig(**settings))
        return [(p.chosen_id, p.rejected_id) for p in pairs], reasons

    assert picked(length_match=4) == ([("p-1", "p-0")], {})
    assert picked(length_match=3) == ([], {"length_mismatch": 1})
    assert picked(chosen_longer_by=4) == ([("p-1", "p-0")], {})
    assert picked(chosen_longer_by=11) == ([], {"not_longer": 1})


def test_lengths_are_balanced_among_the_pairs_that_can_be_used():
    """Four pairs, two each way; one of which it cannot be told what its tokens say takes its counterpart along."""
    prompts, candidates, scores = [], [], []
    for name, lengths in (("a", (100, 110)), ("b", (110, 100)), ("c", (100, 110)), ("d", (110, 100))):
        prompts.append(prompt(name))
        candidates += [candidate(name, k, n) for k, n in enumerate(lengths)]
        scores += [score(name, 0, 0.9), score(name, 1, 0.1)]
    selection = PairSelection(PairsConfig(balance_lengths=4))
    chosen = selection.choose(prompts, candidates, scores, lambda pairs: [p for p in pairs if p.prompt_id != "a"])
    kept = selection.finish(chosen)
    assert len(chosen) == 3 and len(kept) == 2 and sum(p.chosen.frames - p.rejected.frames for p in kept) == 0
