"""What losses push on, by hand: a chosen of four tokens and a rejected of two, each with its stop last."""

from __future__ import annotations

import math
from typing import Any

import pytest

from talker_rl.config import load_data
from talker_rl.diagnostics.anatomy import Anatomy, Side, anatomy
from talker_rl.stages.anatomy import findings, losses_of

CHOSEN = Side([-1.0, -2.0, -0.5, -0.1], ["right", "right", "tail", "stop"], seconds=3.0)
REJECTED = Side([-1.5, -0.3], ["substituted", "stop"], seconds=1.0)
BEFORE: list[tuple[dict[str, Any], float]] = [
    # before training every loss but IPO and SimPO has sigmoid(0) = 1/2: a push of beta / 2 a token, the unit
    ({"type": "dpo", "beta": 0.3}, 0.0),
    ({"type": "dpo", "beta": 0.3, "stop": "keep"}, 0.0),
    ({"type": "dpo", "beta": 0.3, "stop": "drop"}, 0.0),
    ({"type": "r_dpo", "beta": 0.1, "alpha": 0.0}, 0.0),
    ({"type": "ld_dpo", "alpha": 0.0}, -1.0),  # the chosen's stop lies past the common length, the rejected's does not
    ({"type": "ld_dpo", "alpha": 0.25}, -0.75),
    ({"type": "ld_dpo", "alpha": 0.0, "stop": "keep"}, 0.0),
    ({"type": "dpo_norm", "beta": 2.0}, 1 / 4 - 1 / 2),  # one over each length
    ({"type": "dpo_norm", "beta": 2.0, "stop": "keep"}, 0.0),
]


def told(loss: dict[str, Any], *pairs: tuple[Side, Side]) -> Anatomy:
    return anatomy(loss, pairs or [(CHOSEN, REJECTED)])


@pytest.mark.parametrize(("loss", "stop"), BEFORE)
def test_the_net_push_on_the_stop(loss: dict[str, Any], stop: float) -> None:
    found = told(loss)
    assert found.stop == pytest.approx(stop, abs=1e-12) and found.stop_down == (stop < 0)


def test_every_token_of_dpo_is_pushed_by_one() -> None:
    found = told({"type": "dpo"})
    assert found.push == {"chosen": {"right": pytest.approx(2), "tail": pytest.approx(1), "stop": pytest.approx(1)},
                          "rejected": {"substituted": pytest.approx(-1), "stop": pytest.approx(-1)}}
    assert found.tokens == {"chosen": {"right": 2, "tail": 1, "stop": 1}, "rejected": {"substituted": 1, "stop": 1}}
    # the stop's pushes sum to nothing, and still move it: +1 at 3 s, -1 at 1 s
    assert found.stop_seconds == pytest.approx(3.0 - 1.0)
    assert found.past_common == {"chosen": pytest.approx(2), "rejected": 0.0}
    assert found.net("right", "substituted") == pytest.approx(1)


def test_losses_of_any_scale_compare_in_units_of_their_own_push_on_a_token() -> None:
    # LD-DPO 0: +1 +1 0 0 and -1 -1: a token 4/6; the stop -1
    found = told({"type": "ld_dpo", "alpha": 0.0})
    assert (found.per_token, found.stop_share) == (pytest.approx(4 / 6), pytest.approx(-6 / 4))
    # mean log-ratios: 1/4 four times and 1/2 twice: 2/6; the stop 1/4 - 1/2, at any beta
    for loss in ({"type": "dpo_norm", "beta": 2.0}, {"type": "ipo", "beta": 50.0}, {"type": "simpo", "beta": 3.0}):
        assert told(loss).stop_share == pytest.approx(-3 / 4, abs=1e-6)
        assert told(loss).stop_seconds_share == pytest.approx((3 / 4 - 1 / 2) * 3, abs=1e-6)
    assert told({"type": "dpo"}).per_token == pytest.approx(1)
    assert told({"type": "dpo", "token_weights": {"others": 0}}).stop_share == 0.0  # pushes nothing at all


def test_a_stop_that_is_dropped_is_pushed_nowhere() -> None:
    found = told({"type": "dpo", "stop": "drop"})
    assert found.push["chosen"]["stop"] == found.push["rejected"]["stop"] == found.stop_seconds == 0.0
    assert found.push["chosen"]["tail"] == pytest.approx(1)


def test_sampo_keeps_the_longer_sides_stop_in_half_of_its_draws() -> None:
    found = told({"type": "sampo", "mode": "random"}, *[(CHOSEN, REJECTED)] * 400)
    assert found.stop == pytest.approx(2 / 4 - 1, abs=0.08) and found.stop_down == round(-found.stop * 400)
    assert told({"type": "sampo", "mode": "random", "stop": "keep"}).stop == pytest.approx(0.0)


def test_what_was_cut_has_no_stop() -> None:
    cut = Side(REJECTED.logps, ["substituted", "tail"], seconds=1.0)
    found = told({"type": "dpo"}, (CHOSEN, cut))
    assert found.stop == pytest.approx(1) and found.push["rejected"]["tail"] == pytest.approx(-1)
    assert told({"type": "dpo", "stop": "drop"}, (CHOSEN, cut)).push["rejected"]["tail"] == pytest.approx(-1)


def test_a_trained_policy_is_pushed_less_where_it_has_learned() -> None:
    learned = Side([-0.5, -1.0, -0.25, -0.05], CHOSEN.classes, CHOSEN.logps, 3.0)
    assert 0 < told({"type": "dpo", "beta": 1.0}, (learned, REJECTED)).push["chosen"]["stop"] < 1


def test_supervised_training_pushes_the_chosen_alone() -> None:
    found = told({"type": "sft"})
    assert found.push["chosen"]["stop"] == pytest.approx(2 / 4) and found.push["rejected"]["stop"] == 0.0


@pytest.mark.parametrize(("loss", "share"), [
    ({"type": "ld_dpo", "alpha": 0.0}, "0%"), ({"type": "ld_dpo", "alpha": 0.75}, "75%"),
    ({"type": "ipo"}, "83%"), ({"type": "simpo"}, "83%"), ({"type": "dpo_norm"}, "83%"),  # 100 tokens over 120
    ({"type": "sampo", "mode": "top_k"}, "0%"), ({"type": "sampo"}, ""),
    ({"type": "mix", "terms": [{"loss": {"type": "ld_dpo", "alpha": 0.5}}, {"weight": 0.0, "loss": {"type": "sft"}}]},
     "50%"),
])
def test_a_loss_that_would_push_the_stop_down_is_foreseen_and_a_kept_or_dropped_stop_is_not(
    loss: dict[str, Any], share: str
) -> None:
    (told,) = findings(load_data({"train": {"loss": loss}}))
    assert f"pushed up by {share}" in told and "default will push the stop down" in told
    if loss["type"] != "mix":
        for stop in ("keep", "drop"):
            assert findings(load_data({"train": {"loss": loss | {"stop": stop}}})) == []


@pytest.mark.parametrize("loss", [
    {"type": "dpo"}, {"type": "hinge"}, {"type": "r_dpo"}, {"type": "ipo", "normalize": "sum"}, {"type": "sft"},
    {"type": "ld_dpo", "alpha": 1.0}, {"type": "dpo_norm", "token_weights": {"stop": 0}},
    # a term that pushes it up by more than the other leaves of it
    {"type": "mix", "terms": [{"loss": {"type": "ld_dpo", "alpha": 0.5}}, {"weight": 5, "loss": {"type": "sft"}}]},
])
def test_a_loss_that_would_not_is_not_told_of(loss: dict[str, Any]) -> None:
    assert findings(load_data({"train": {"loss": loss}})) == []


def test_equal_losses_are_told_once_by_the_variant_that_they_are_of() -> None:
    ld, same = {"type": "ld_dpo", "alpha": 0.0}, {"type": "ld_dpo", "alpha": 0.0, "beta": 0.1}  # its default
    config = load_data({"variants": {
        **{f"ld-s{seed}": {"loss": loss, "args": {"seed": seed}} for seed, loss in enumerate((ld, same, ld))},
        "plain": {"loss": {"type": "dpo"}}, "slow": {"loss": {"type": "dpo"}, "args": {"learning_rate": 1e-6}},
        "alone": {"loss": {"type": "sft"}, "data": "best_of_n"},
        "own": {"loss": {"type": "custom", "import_path": "losses_helpers:own"}}}})
    sweep = {f"ld-s{seed}": {"variant": "ld", "seed": seed} for seed in range(3)}
    found = losses_of(config, config.variants, sweep)
    assert list(found) == ["ld (3 trainings)", "plain (as slow)"]
    assert list(losses_of(config, config.variants, {})) == ["ld-s0 (as ld-s1, ld-s2)", "plain (as slow)"]
    assert list(losses_of(config, ["own", "plain"], {}, own=True)) == ["own", "plain"]
    (told,) = findings(config)
    assert "ld-s0 (as ld-s1, ld-s2) will push the stop down" in told


def test_the_unit_of_a_mixture_is_the_push_of_its_dpo() -> None:
    for weight in (1.0, 0.5):
        dpo: dict[str, Any] = {"weight": weight, "loss": {"type": "dpo", "beta": 0.3}}
        assert told({"type": "mix", "terms": [dpo]}).push == told({"type": "dpo"}).push
        # SFT gives each of the chosen's four tokens 1/4, which is 1/4 / (weight * .15) of the unit
        both = told({"type": "mix", "terms": [dpo, {"weight": 1.0, "loss": {"type": "sft"}}]})
        assert both.push["chosen"]["stop"] == pytest.approx(1 + 1 / 4 / (weight * 0.15))
        assert both.push["rejected"]["stop"] == pytest.approx(-1)


def test_lengths_in_seconds_are_those_of_the_pairs_codec() -> None:
    """R-DPO's margin of 2 a second on 2 s more: the pair pulls as if it were won by 4, at 1 frame a second as at 50."""
    for rate in (1, 50):
        chosen, rejected = (Side([-1.0] * (n * rate + 1), ["right"] * n * rate + ["stop"], seconds=float(n))
                            for n in (3, 1))
        found = told({"type": "r_dpo", "alpha": 2.0, "alpha_unit": "second"}, (chosen, rejected))
        assert found.push["rejected"]["stop"] == pytest.approx(-2 / (1 + math.exp(4.0)))
