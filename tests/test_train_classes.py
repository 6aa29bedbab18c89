"""Losses that weigh tokens by what they say are given pairs that tell it, and in which something counts."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from train_helpers import make_config, make_generator, make_pairs

from talker_rl.base.errors import StageError
from talker_rl.losses import parse_loss
from talker_rl.records.pair import Pair
from talker_rl.records.token_classes import CLASSES
from talker_rl.train.classes import check_classes
from talker_rl.train.run import train_variant

PAIRS, CONDITIONINGS = make_pairs(4)
WRONG: dict[str, Any] = {"type": "dpo", "token_weights": {"others": 0, "substituted": 1}}


def of(pair: Pair, kind: str) -> Pair:
    """All that both sides say is of one class, the stops as they are."""
    sides = [[CLASSES.index(kind)] * speech.frames + [CLASSES.index("stop")] * speech.stopped for speech in pair.sides]
    return replace(pair, chosen_classes=sides[0], rejected_classes=sides[1])


RIGHT, SUBSTITUTED = [of(p, "right") for p in PAIRS], [of(p, "substituted") for p in PAIRS]


def test_pairs_that_do_not_tell_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="4 pairs of 4 do not tell") as caught:
        train_variant(make_generator(), PAIRS, CONDITIONINGS, make_config(loss=WRONG), tmp_path / "a", progress=False)
    assert "--force-stage pairs" in (caught.value.fix or "") and not (tmp_path / "a").exists()
    with pytest.raises(StageError, match="1 pair of 5 does not tell"):
        check_classes(parse_loss(WRONG), [SUBSTITUTED, PAIRS[:1]])
    for loss in ({"type": "dpo"}, {"type": "sft"}):
        check_classes(parse_loss(loss), [PAIRS])


@pytest.mark.parametrize(("loss", "pairs", "silent"), [
    (WRONG, SUBSTITUTED, 0), (WRONG, RIGHT, 4), (WRONG, [*SUBSTITUTED[:3], RIGHT[3]], 1),
    ({"type": "dpo", "token_weights": {"others": 0, "stop": 1}}, RIGHT, 0),
    ({"type": "dpo", "token_weights": {"others": 0, "stop": 1}, "stop": "drop"}, RIGHT, 4),
    ({"type": "mix", "terms": [{"loss": WRONG}, {"loss": {"type": "sft"}}]}, RIGHT, 0),  # SFT learns from all
])
def test_pairs_in_which_nothing_counts_are_told_and_if_all_are_refused(
    loss: dict[str, Any], pairs: list[Pair], silent: int
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if silent == len(pairs):
            with pytest.raises(StageError, match="no token of any pair counts"):
                check_classes(parse_loss(loss), [pairs])
        else:
            check_classes(parse_loss(loss), [pairs])
    assert [str(w.message)[:26] for w in caught] == (["1 pair of 4 teaches nothin"] if silent == 1 else [])
