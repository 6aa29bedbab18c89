"""What ablations plant in pairs: lengths in balance, wrong labels."""

from __future__ import annotations

from collections import Counter

import pytest
from said import said
from test_pairs import group, prompt

from talker_rl.data.arms import Balance, mislabel
from talker_rl.data.config import PairsConfig
from talker_rl.data.pairs import explain_pairs
from talker_rl.records.pair import Pair, pair_id_of

EOS = 8294


def pair(name: str, chosen: int, rejected: int, margin: float = 0.5, cut: bool = False) -> Pair:
    sides = said([1] * chosen + [EOS]), said([2] * rejected + ([] if cut else [EOS]))
    return Pair(name, pair_id_of(name, *(s.ids for s in sides)), "say it.", "anna", f"{name}-c", f"{name}-r", *sides,
                chosen_reward=0.9, rejected_reward=0.9 - margin, margin=margin)


def lengths(pairs: list[Pair]) -> list[int]:
    return [p.chosen.frames - p.rejected.frames for p in pairs]


def balance_lengths(pairs: list[Pair], codes: int) -> list[Pair]:
    balance = Balance(codes)
    for at in range(0, len(pairs), 2):  # they may come in parts
        balance.add(pairs[at : at + 2])
    kept = [pair for pair in pairs if pair.pair_id in balance.kept]
    assert balance.prompts == {pair.prompt_id for pair in kept}
    return kept


def test_each_difference_is_mirrored_and_the_widest_margins_stay() -> None:
    pairs = [pair("a", 10, 7, 0.1), pair("b", 12, 9, 0.4), pair("c", 7, 10), pair("d", 20, 10), pair("e", 5, 5),
             pair("f", 3, 5)]
    kept = balance_lengths(pairs, 1)
    assert [p.prompt_id for p in kept] == ["b", "c", "e"]
    assert sorted(lengths(kept)) == [-3, 0, 3]
    # in bins of two, 1 and 2 codes, 3 and 4, ... are one difference
    wider = balance_lengths([*pairs, pair("g", 4, 8)], 2)
    assert sorted(lengths(wider)) == [-4, -3, 0, 3, 3]


def test_prompts_whose_pairs_have_no_counterpart_are_counted() -> None:
    candidates, scores = group([0.9, 0.1, 0.4], lengths=[100, 80, 100])
    cfg = PairsConfig(strategy="all_margin", max_pairs_per_prompt=9, balance_lengths=5)
    pairs, reasons = explain_pairs([prompt("p")], candidates, scores, cfg)
    assert lengths(pairs) == [0] and reasons == {}
    alone, reasons = explain_pairs([prompt("p")], candidates[:2], scores[:2], cfg)
    assert alone == [] and reasons == {"p": "unbalanced"}


def test_wrong_labels_are_exchanged_whole_and_drawn_pair_by_pair() -> None:
    pairs = [pair(f"p{i}", 10 + i % 7, 9) for i in range(2000)]
    wrong = mislabel(pairs, 0.2, seed=3)
    flipped = [i for i, (a, b) in enumerate(zip(pairs, wrong, strict=True)) if a != b]
    assert 330 < len(flipped) < 470  # 400, sd 18
    for i in flipped:
        a, b = pairs[i], wrong[i]
        assert (b.chosen, b.rejected, b.chosen_id, b.rejected_id) == (a.rejected, a.chosen, a.rejected_id, a.chosen_id)
        assert (b.chosen_reward, b.rejected_reward, b.margin) == (a.rejected_reward, a.chosen_reward, -a.margin)
        assert b.pair_id == pair_id_of(b.prompt_id, b.chosen.ids, b.rejected.ids) != a.pair_id
    half = mislabel(pairs[::2], 0.2, seed=3)
    assert half == wrong[::2]  # whoever else is there
    assert mislabel(pairs, 0.2, seed=4) != wrong
    assert Counter(p == q for p, q in zip(mislabel(pairs, 0.1, seed=3), wrong, strict=True))[False] > 100


def test_a_side_that_was_cut_never_becomes_chosen() -> None:
    pairs = [pair(f"p{i}", 10, 9, cut=True) for i in range(200)]
    assert mislabel(pairs, 0.5, seed=0) == pairs


def test_no_more_than_half_may_be_wrong() -> None:
    with pytest.raises(ValueError, match="less than or equal to 0.5"):
        PairsConfig(mislabeled=0.6)
