"""Losses against values derived by hand. The derivations stand beside the numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from losses_helpers import ALL_LOSSES, make_batch

from talker_rl.base.errors import ConfigError, DataError
from talker_rl.losses import LossOutput, PairBatch, build_loss, parse_loss
from talker_rl.losses.config import filled, parts_of
from talker_rl.records.token_classes import CLASSES

# Two pairs. Log-ratios (policy - reference), per token:
#   pair 0: chosen  [-1 - -2, -2 - -2, -1 - -1.5] = [1, 0, 0.5]      R_w = 1.5,  T_w = 3, mean 0.5
#           rejected [-3 - -2] = [-1]                                R_l = -1,   T_l = 1, mean -1
#   pair 1: chosen  [-0.5 - -1, -1 - -1] = [0.5, 0]                  R_w = 0.5,  T_w = 2, mean 0.25
#           rejected [-1 - -1, -2 - -1, -1 - -3, -4 - -3] = [0, -1, 2, -1]  R_l = 0, T_l = 4, mean 0
POLICY_W = [[-1.0, -2.0, -1.0], [-0.5, -1.0]]
REF_W = [[-2.0, -2.0, -1.5], [-1.0, -1.0]]
POLICY_L = [[-3.0], [-1.0, -2.0, -1.0, -4.0]]
REF_L = [[-2.0], [-1.0, -1.0, -3.0, -3.0]]


def batch(**kwargs) -> PairBatch:
    return make_batch(POLICY_W, POLICY_L, REF_W, REF_L, **kwargs)


def softplus(x: float) -> float:
    """-log sigmoid(-x), in plain Python."""
    return math.log1p(math.exp(x))


def check(out: LossOutput, margins: list[float], per_pair: list[float], loss: float | None = None) -> None:
    assert out.margin.tolist() == pytest.approx(margins, abs=1e-6)
    assert out.per_pair.tolist() == pytest.approx(per_pair, abs=1e-6)
    assert out.loss.item() == pytest.approx(sum(per_pair) / len(per_pair) if loss is None else loss, abs=1e-6)


@pytest.mark.parametrize("kind", ["dpo", "sigmoid"])
def test_dpo(kind):
    # z = 0.4 (R_w - R_l) = 0.4 * 2.5 = 1, and 0.4 * 0.5 = 0.2; -log sigmoid(1) = 0.313262, -log sigmoid(0.2) = 0.598139
    out = build_loss({"type": kind, "beta": 0.4})(batch())
    check(out, [1.0, 0.2], [0.3132617, 0.5981389])
    # TRL's metrics: rewards 0.4 * (1.5, 0.5) and 0.4 * (-1, 0); both pairs are ordered rightly;
    # log-probability sums: chosen (-4, -1.5), rejected (-3, -8).
    assert {name: value.item() for name, value in out.metrics.items()} == pytest.approx(
        {
            "rewards/chosen": 0.4,
            "rewards/rejected": -0.2,
            "rewards/accuracies": 1.0,
            "rewards/margins": 0.6,
            "logps/chosen": -2.75,
            "logps/rejected": -5.5,
        }
    )
    assert all(value.ndim == 0 and not value.requires_grad for value in out.metrics.values())


def test_dpo_label_smoothing():
    # cDPO: 0.9 * -log sigmoid(1) + 0.1 * -log sigmoid(-1) = 0.9 * 0.313262 + 0.1 * 1.313262 = 0.413262;
    # second pair: 0.9 * 0.598139 + 0.1 * 0.798139 = 0.618139. In general the first plus 0.1 z.
    out = build_loss({"type": "dpo", "beta": 0.4, "label_smoothing": 0.1})(batch())
    check(out, [1.0, 0.2], [0.4132617, 0.6181389])


def test_dpo_robust_to_flipped_labels():
    # (0.9 * 0.313262 - 0.1 * 1.313262) / 0.8 = 0.188262; (0.9 * 0.598139 - 0.1 * 0.798139) / 0.8 = 0.573139
    robust = build_loss({"type": "dpo", "beta": 0.4, "label_smoothing": 0.1, "robust": True})
    check(robust(batch()), [1.0, 0.2], [0.1882617, 0.5731389])
    # Over labels of which a tenth is flipped it is in expectation the loss of right ones.
    right = build_loss({"type": "dpo", "beta": 0.4})(batch()).per_pair
    flipped = robust(make_batch(POLICY_L, POLICY_W, REF_L, REF_W)).per_pair
    assert torch.allclose(0.9 * robust(batch()).per_pair + 0.1 * flipped, right, atol=1e-6)


@pytest.mark.parametrize("loss", [
    {"type": "dpo_norm", "beta": 2.0}, {"type": "r_dpo", "beta": 0.3, "alpha": 0.2}, {"type": "sampo", "mode": "top_k"},
    {"type": "ld_dpo", "alpha": 0.3}, {"type": "simpo", "gamma": 0.3}])
def test_every_sigmoid_loss_can_be_smoothed(loss):
    plain = build_loss(loss)(batch())
    smooth = build_loss({**loss, "label_smoothing": 0.2})(batch())
    assert torch.allclose(smooth.margin, plain.margin)  # -log sigmoid(-z) = -log sigmoid(z) + z
    assert torch.allclose(smooth.per_pair, plain.per_pair + 0.2 * plain.margin, atol=1e-6)
    robust = build_loss({**loss, "label_smoothing": 0.2, "robust": True})(batch())
    assert torch.allclose(robust.per_pair, plain.per_pair - 0.2 / 0.6 * plain.margin, atol=1e-6)


def test_accuracy_counts_wrong_pairs():
    # Chosen and rejected swapped: both pairs are ordered wrongly.
    out = build_loss({"type": "dpo"})(make_batch(POLICY_L, POLICY_W, REF_L, REF_W))
    assert out.metrics["rewards/accuracies"].item() == 0.0


@pytest.mark.parametrize("kind", ["dpo_norm", "sigmoid_norm"])
def test_dpo_norm(kind):
    # z = 2 (0.5 - -1) = 3, and 2 (0.25 - 0) = 0.5
    check(build_loss({"type": kind, "beta": 2.0})(batch()), [3.0, 0.5], [softplus(-3), softplus(-0.5)])


def test_ipo():
    # tau = 0.25, target 1 / (2 * 0.25) = 2.
    # mean: h = 1.5, 0.25 -> (-0.5)^2, (-1.75)^2. sum: h = 2.5, 0.5 -> 0.5^2, 1.5^2
    check(build_loss({"type": "ipo", "beta": 0.25})(batch()), [1.5, 0.25], [0.25, 3.0625])
    check(build_loss({"type": "ipo", "beta": 0.25, "normalize": "sum"})(batch()), [2.5, 0.5], [0.25, 2.25])


def test_hinge():
    # z = 2.5 and 0.5 at beta 1: max(0, -1.5) = 0 and 0.5
    check(build_loss({"type": "hinge", "beta": 1.0})(batch()), [2.5, 0.5], [0.0, 0.5])


def test_r_dpo():
    # T_w - T_l = 2 and -2; z = 1 + 0.3 * 2 = 1.6 and 0.2 - 0.6 = -0.4. Plus: the longer winner has less left to gain.
    per_token = {"type": "r_dpo", "beta": 0.4, "alpha": 0.3, "alpha_unit": "token"}
    check(build_loss(per_token)(batch()), [1.6, -0.4], [softplus(-1.6), softplus(0.4)])
    # 2 codes at 50 per second are 0.04 s; alpha 15 per second is 0.3 per code, so the same numbers.
    per_second = {"type": "r_dpo", "beta": 0.4, "alpha": 15.0, "alpha_unit": "second", "code_rate": 50}
    check(build_loss(per_second)(batch()), [1.6, -0.4], [softplus(-1.6), softplus(0.4)])


def test_ld_dpo():
    # Common lengths 1 and 2. Pair 0: chosen 1 + a (0 + 0.5), a = 0.5 -> 1.25; rejected -1. z = 0.4 * 2.25 = 0.9
    # Pair 1: chosen 0.5; rejected (0 - 1) + 0.5 (2 - 1) = -0.5. z = 0.4 * 1 = 0.4
    out = build_loss({"type": "ld_dpo", "beta": 0.4, "alpha": 0.5})(batch())
    check(out, [0.9, 0.4], [softplus(-0.9), softplus(-0.4)])
    assert out.metrics["logps/chosen"].item() == pytest.approx(-2.75)  # unweighted sums, as for every loss


def test_ld_dpo_reference_policy():
    # Pair 0: policy chosen -1 + 0.5 (-2 - 1) = -2.5, reference -5.5 -> 3; rejected -1. z = 0.4 * 4 = 1.6
    # Pair 1: chosen 0.5; policy rejected -3 + 0.5 * -5 = -5.5, reference -8 -> 2.5. z = 0.4 * -2 = -0.8
    out = build_loss({"type": "ld_dpo", "beta": 0.4, "alpha": 0.5, "reference": "policy"})(batch())
    check(out, [1.6, -0.8], [softplus(-1.6), softplus(0.8)])


def test_sampo_top_k():
    # by ratio: T_m = 1 and 2. Pair 0 keeps the 1 of [1, 0, 0.5]: z = 0.4 (1 - -1) = 0.8.
    # Pair 1 keeps 2 and 0 of [0, -1, 2, -1]: z = 0.4 (0.5 - 2) = -0.6.
    out = build_loss({"type": "sampo", "beta": 0.4, "mode": "top_k", "by": "ratio"})(batch())
    check(out, [0.8, -0.6], [softplus(-0.8), softplus(0.6)])
    # by logp: pair 0's chosen log-probs [-1, -2, -1] tie, the earlier is kept (ratio 1); pair 1's rejected
    # [-1, -2, -1, -4] keeps the two of -1 (ratios 0 and 2).
    check(
        build_loss({"type": "sampo", "beta": 0.4, "mode": "top_k", "by": "logp"})(batch()),
        [0.8, -0.6],
        [softplus(-0.8), softplus(0.6)],
    )


def test_sampo_top_k_by_logp_is_not_by_ratio():
    # Chosen log-probs [-1, -2], ratios [0, 3]: by logp keeps the first (0), by ratio the second (3); rejected ratio 0.
    args = ([[-1.0, -2.0]], [[-1.0]], [[-1.0, -5.0]], [[-1.0]])
    for by, margin in (("logp", 0.0), ("ratio", 3.0)):
        out = build_loss({"type": "sampo", "beta": 1.0, "mode": "top_k", "by": by})(make_batch(*args))
        assert out.margin.tolist() == pytest.approx([margin])


def test_simpo():
    # Mean log-probs: pair 0 -4/3 and -3; pair 1 -0.75 and -2. z = 2 (5/3) - 0.5 = 2.8333, 2 * 1.25 - 0.5 = 2.
    no_reference = make_batch(POLICY_W, POLICY_L)
    out = build_loss({"type": "simpo", "beta": 2.0, "gamma": 0.5})(no_reference)
    check(out, [17 / 6, 2.0], [softplus(-17 / 6), softplus(-2)])
    assert out.metrics["rewards/chosen"].item() == pytest.approx((-8 / 3 - 1.5) / 2)


def test_stop_dropped():
    # Without the last token ratios are w: (1, 0), (0.5); l: (), (0, -1, 2). z = 0.4 (1 - 0), 0.4 (0.5 - 1).
    out = build_loss({"type": "dpo", "beta": 0.4, "stop": "drop"})(batch())
    check(out, [0.4, -0.2], [softplus(-0.4), softplus(0.2)])
    assert out.metrics["logps/chosen"].item() == pytest.approx(-2.75)  # plain sums, as of every loss
    # LD-DPO: nothing in common in pair 0, one token in pair 1: 0.4 (0.5 - 0), 0.4 (0.5 - 0.5)
    out = build_loss({"type": "ld_dpo", "beta": 0.4, "alpha": 0.5, "stop": "drop"})(batch())
    check(out, [0.2, 0.0], [softplus(-0.2), math.log(2)])
    # R-DPO counts lengths without it: 0.4 + 0.1 (2 - 0), -0.2 + 0.1 (1 - 3)
    out = build_loss({"type": "r_dpo", "beta": 0.4, "alpha": 0.1, "stop": "drop"})(batch())
    check(out, [0.6, -0.4], [softplus(-0.6), softplus(0.4)])
    # SamPO: no token of pair 0; the largest of pair 1's, 0.5 and 2: 0.4 (0.5 - 2)
    out = build_loss({"type": "sampo", "beta": 0.4, "mode": "top_k", "stop": "drop"})(batch())
    check(out, [0.0, -0.6], [math.log(2), softplus(0.6)])
    with pytest.raises(DataError, match="the rejected completion is empty"):
        build_loss({"type": "dpo_norm", "stop": "drop"})(batch())


def test_stop_kept():
    # LD-DPO: w: 1 + 0 / 2 + 0.5 = 1.5, l: -1; w: 0.5, l: 0 - 1 + 2 / 2 - 1 = -1. z = 0.4 * 2.5, 0.4 * 1.5
    out = build_loss({"type": "ld_dpo", "beta": 0.4, "alpha": 0.5, "stop": "keep"})(batch())
    check(out, [1.0, 0.6], [softplus(-1), softplus(-0.6)])
    # mean log-ratios: w: (1 + 0) / 3 + 0.5, l: 0 / 1 - 1; w: 0.5 / 2 + 0, l: (0 - 1 + 2) / 4 - 1. z = 11/6, 1
    out = build_loss({"type": "dpo_norm", "beta": 1.0, "stop": "keep"})(batch())
    check(out, [11 / 6, 1.0], [softplus(-11 / 6), softplus(-1)])
    # the same margins under IPO: (h - 2)^2 at beta 0.25
    out = build_loss({"type": "ipo", "beta": 0.25, "stop": "keep"})(batch())
    check(out, [11 / 6, 1.0], [(11 / 6 - 2) ** 2, 1.0])
    # SimPO: w: -3 / 3 - 1, l: -3; w: -0.5 / 2 - 1, l: -4 / 4 - 4. z = 2 (1) - 0.5, 2 (3.75) - 0.5
    out = build_loss({"type": "simpo", "beta": 2.0, "gamma": 0.5, "stop": "keep"})(batch())
    check(out, [1.5, 7.0], [softplus(-1.5), softplus(-7)])
    # SamPO: the drawn token 1 and the stop 0.5, l: the stop alone; w: 0.5, l: 2 + 0 and the stop -1
    out = build_loss({"type": "sampo", "beta": 0.4, "mode": "top_k", "stop": "keep"})(batch())
    check(out, [1.0, -0.2], [softplus(-1), softplus(0.2)])


@pytest.mark.parametrize("config", [{"type": "dpo"}, {"type": "hinge"}, {"type": "ipo", "normalize": "sum"},
                                    {"type": "r_dpo"}], ids=lambda config: config["type"])
def test_a_stop_that_weighs_one_already_is_kept(config):
    assert torch.equal(build_loss({**config, "stop": "keep"})(batch()).margin, build_loss(config)(batch()).margin)


def test_a_completion_that_was_cut_has_no_stop():
    cut = replace(batch(), chosen_stop=torch.tensor([[False, False, False], [False, True, False]]))
    # w: all of (1, 0, 0.5), (0.5); l: (), (0, -1, 2): 0.4 * 1.5, 0.4 * -0.5
    out = build_loss({"type": "dpo", "beta": 0.4, "stop": "drop"})(cut)
    check(out, [0.6, -0.2], [softplus(-0.6), softplus(0.2)])
    # its last code is weighed as the others past the common length: 1 + 0 / 2 + 0.5 / 2
    out = build_loss({"type": "ld_dpo", "beta": 0.4, "alpha": 0.5, "stop": "keep"})(cut)
    check(out, [0.9, 0.6], [softplus(-0.9), softplus(-0.6)])
    with pytest.raises(ValueError, match="more than one token"):
        replace(cut, chosen_stop=cut.chosen_mask)
    with pytest.raises(ValueError, match="chosen_stop must be bool"):
        replace(cut, chosen_stop=cut.rejected_mask)


def test_tokens_weigh_by_what_they_say():
    # w: right 1, inserted 0, stop 0.5; right 0.5, stop 0. l: stop -1; right 0, substituted -1 and 2, stop -1
    classes = {name: CLASSES.index(name) for name in ("right", "inserted", "substituted", "stop")}
    right, inserted, substituted, stop = classes.values()
    told = replace(batch(), chosen_classes=torch.tensor([[right, inserted, stop], [right, stop, 0]]),
                   rejected_classes=torch.tensor([[stop, 0, 0, 0], [right, substituted, substituted, stop]]))
    # wrong words only: 0; 0 and -1 + 2. z = 0.4 (0 - 0), 0.4 (0 - 1)
    wrong = {"others": 0, "substituted": 1, "inserted": 1}
    check(build_loss({"type": "dpo", "beta": 0.4, "token_weights": wrong})(told), [0.0, -0.4],
          [math.log(2), softplus(0.4)])
    # right words twice: 2 + 0 + 0.5, -1; 1 + 0, 0 + 1 - 1. z = 0.4 * 3.5, 0.4 * 1
    check(build_loss({"type": "dpo", "beta": 0.4, "token_weights": {"right": 2}})(told), [1.4, 0.4],
          [softplus(-1.4), softplus(-0.4)])
    # the stop at a weight of 0 is what `drop` does to DPO, though its place still counts where lengths do
    dropped = build_loss({"type": "dpo", "beta": 0.4, "stop": "drop"})(told)
    assert torch.equal(build_loss({"type": "dpo", "beta": 0.4, "token_weights": {"stop": 0}})(told).margin,
                       dropped.margin)
    # LD-DPO 0.5, right words twice: w: 2 + 0 + 0.25, l: -1; w: 1 + 0, l: 0 - 1 + 1 - 0.5. z = 0.4 * 3.25, 0.4 * 1.5
    out = build_loss({"type": "ld_dpo", "beta": 0.4, "alpha": 0.5, "token_weights": {"right": 2}})(told)
    check(out, [1.3, 0.6], [softplus(-1.3), softplus(-0.6)])
    with pytest.raises(ValueError, match="the batch has no classes"):
        build_loss({"type": "dpo", "token_weights": wrong})(batch())
    with pytest.raises(ConfigError, match="no class 'substitued' of tokens, did you mean 'substituted'"):
        build_loss({"type": "dpo", "token_weights": {"substitued": 1}})
    with pytest.raises(ConfigError, match="below 0"):
        build_loss({"type": "dpo", "token_weights": {"stop": -1}})


def test_sft():
    no_reference = make_batch(POLICY_W, POLICY_L)
    # sequence: means 4/3 and 0.75. token: 5.5 nats over 5 tokens = 1.1.
    check(build_loss({"type": "sft"})(no_reference), [0, 0], [4 / 3, 0.75])
    out = build_loss({"type": "sft", "normalize": "token"})(no_reference)
    # per_pair: 4 * 2/5 and 1.5 * 2/5, so that their mean is the loss
    check(out, [0, 0], [1.6, 0.6], loss=1.1)
    assert set(out.metrics) == {"logps/chosen", "logps/rejected"}


def test_mix():
    # 1.0 * DPO + 0.2 * SFT: margins and rewards are DPO's.
    config = {
        "type": "mix",
        "terms": [
            {"weight": 1.0, "loss": {"type": "dpo", "beta": 0.4}},
            {"weight": 0.2, "loss": {"type": "sft"}},
        ],
    }
    out = build_loss(config)(batch())
    check(out, [1.0, 0.2], [0.3132617 + 0.2 * 4 / 3, 0.5981389 + 0.15])
    assert out.metrics["loss/dpo"].item() == pytest.approx(0.4557003)
    assert out.metrics["loss/sft"].item() == pytest.approx((4 / 3 + 0.75) / 2)
    assert out.metrics["rewards/margins"].item() == pytest.approx(0.6)


def test_mix_order_weight_zero_and_repeated_types():
    terms = [
        {"weight": 0.2, "loss": {"type": "sft"}},
        {"weight": 0.0, "loss": {"type": "ipo", "beta": 0.25}},
        {"weight": 1.0, "loss": {"type": "dpo", "beta": 0.4}},
        {"weight": 1.0, "loss": {"type": "dpo", "beta": 4.0}},
    ]
    out = build_loss({"type": "mix", "terms": terms})(batch(grad=True))
    # The IPO term is watched (0.25 + 3.0625) / 2 but not added; margins are those of the first preference term.
    assert out.metrics["loss/ipo"].item() == pytest.approx(1.65625)
    assert out.margin.tolist() == pytest.approx([1.5, 0.25])
    expected = 0.2 * (4 / 3 + 0.75) / 2 + 0.4557003 + (softplus(-10) + softplus(-2)) / 2
    assert out.loss.item() == pytest.approx(expected, abs=1e-6)
    assert out.metrics["loss/dpo_2"].item() == pytest.approx((softplus(-10) + softplus(-2)) / 2, abs=1e-6)


def test_initialization_is_ln_2():
    same = make_batch(POLICY_W, POLICY_L, POLICY_W, POLICY_L, seed=0)
    for config in ({"type": "dpo"}, {"type": "dpo_norm"}, {"type": "ld_dpo"}, {"type": "sampo"}):
        out = build_loss(config)(same)
        assert out.per_pair.tolist() == pytest.approx([math.log(2)] * 2)
        assert out.margin.tolist() == [0.0, 0.0], config  # exactly: policy and reference share SamPO's draw


EMPTY = make_batch([[-1.0], []], [[-2.0], [-1.0, -3.0]], [[-2.0], []], [[-2.0], [-1.0, -1.0]])


def test_empty_completion_in_sum_losses():
    # Pair 1: R_w = 0 over no token, R_l = -2: DPO z = 1 * 2; LD-DPO's common length is 0, so all weigh a = 0.5: z = 1;
    # R-DPO z = 2 + 0.1 * (0 - 2) = 1.8; SamPO keeps no token: z = 0; hinge max(0, 1 - 2) = 0; IPO (2 - 1)^2 = 1.
    def second(config):
        return build_loss(config)(EMPTY).per_pair[1].item()

    assert second({"type": "dpo", "beta": 1.0}) == pytest.approx(softplus(-2))
    assert second({"type": "ld_dpo", "beta": 1.0, "alpha": 0.5}) == pytest.approx(softplus(-1))
    assert second({"type": "r_dpo", "beta": 1.0, "alpha": 0.1}) == pytest.approx(softplus(-1.8))
    assert second({"type": "sampo", "beta": 1.0}) == pytest.approx(math.log(2))
    assert second({"type": "hinge", "beta": 1.0}) == 0.0
    assert second({"type": "ipo", "beta": 0.5, "normalize": "sum"}) == pytest.approx(1.0)
    assert second({"type": "sft", "normalize": "token"}) == 0.0


@pytest.mark.parametrize("kind", sorted({c["type"] for c in ALL_LOSSES if hasattr(parse_loss(c), "empty")}))
def test_empty_completion_in_mean_losses(kind):
    config = {"type": kind}
    with pytest.raises(DataError, match=r"chosen completion is empty[\s\S]*pair\(s\) \[1\]"):
        build_loss(config)(EMPTY)
    out = build_loss({**config, "empty": "skip"})(EMPTY)
    alone = build_loss(config)(make_batch([[-1.0]], [[-2.0]], [[-2.0]], [[-2.0]]))
    assert out.metrics["loss/skipped_pairs"].item() == 1
    assert out.loss.item() == pytest.approx(alone.loss.item())
    assert out.per_pair.tolist() == pytest.approx([alone.loss.item(), 0.0])
    if "rewards/margins" in alone.metrics:
        assert out.metrics["rewards/margins"].item() == pytest.approx(alone.metrics["rewards/margins"].item())


def test_sft_with_an_empty_rejected_side_is_defined():
    assert build_loss({"type": "sft"})(make_batch([[-1.0]], [[]])).loss.item() == 1.0


def test_only_empty_completions():
    nothing = make_batch([[]], [[]], [[]], [[]], extra=2, grad=True)
    with pytest.raises(DataError, match="no chosen completion of the batch has any"):
        build_loss({"type": "sft", "normalize": "token"})(nothing)
    for config in ({"type": "sft", "normalize": "token", "empty": "skip"}, {"type": "simpo", "empty": "skip"}):
        out = build_loss(config)(nothing)
        out.loss.backward()  # a graph without anything to learn, not a crash
        assert out.loss.item() == 0.0 and out.metrics["loss/skipped_pairs"].item() == 1
        assert nothing.policy_chosen_logps.grad.tolist() == [[0.0, 0.0]]


def test_missing_reference_is_named():
    no_reference = make_batch(POLICY_W, POLICY_L)
    with pytest.raises(ConfigError, match="`dpo` compares the policy with a reference"):
        build_loss({"type": "dpo"})(no_reference)
    assert not build_loss({"type": "simpo"}).needs_reference
    mix = build_loss({"type": "mix", "terms": [{"loss": {"type": "sft"}}, {"loss": {"type": "dpo"}}]})
    assert mix.needs_reference
    with pytest.raises(ConfigError, match="reference"):
        mix(no_reference)


def test_pair_batch_refuses_what_does_not_fit():
    ok = batch()
    fields = dict(vars(ok))
    with pytest.raises(TypeError, match="must be bool"):
        PairBatch(**{**fields, "chosen_mask": ok.chosen_mask.long()})
    with pytest.raises(ValueError, match=r"ref_rejected_logps is \(2, 3\), but rejected_mask is \(2, 4\)"):
        PairBatch(**{**fields, "ref_rejected_logps": ok.ref_chosen_logps})
    with pytest.raises(ValueError, match="both"):
        PairBatch(**{**fields, "ref_rejected_logps": None})
    with pytest.raises(ValueError, match="2 chosen, but 1 rejected"):
        one = {k: fields[k][:1] for k in ("policy_rejected_logps", "ref_rejected_logps", "rejected_mask")}
        PairBatch(**{**fields, **one})
    with pytest.raises(TypeError, match="floating point"):
        PairBatch(**{**fields, "policy_chosen_logps": ok.policy_chosen_logps.long()})


def test_half_precision_is_computed_in_float32():
    half = make_batch(POLICY_W, POLICY_L, REF_W, REF_L, dtype=torch.bfloat16)
    out = build_loss({"type": "dpo", "beta": 0.4})(half)
    assert out.loss.dtype == torch.float32
    check(out, [1.0, 0.2], [0.3132617, 0.5981389])  # these inputs are exact in bfloat16


def test_a_watched_term_that_overflows_does_not_spoil_the_sum():
    # IPO squares a margin of 1e30: inf in float32. At weight 0 it must stay out, since 0 * inf is NaN.
    terms = [{"weight": 0.0, "loss": {"type": "ipo"}}, {"weight": 1.0, "loss": {"type": "hinge", "beta": 1.0}}]
    out = build_loss({"type": "mix", "terms": terms})(make_batch([[1e30]], [[0.0]], [[0.0]], [[0.0]]))
    assert out.metrics["loss/ipo"].item() == math.inf and out.loss.item() == 0.0


def test_which_tokens_sampo_keeps_does_not_hang_on_their_weights():
    """What counts nothing has a weighted log-prob of 0, the largest there is: ranked so, only such tokens were kept."""
    right, substituted, stop = (CLASSES.index(name) for name in ("right", "substituted", "stop"))
    told = replace(batch(), chosen_classes=torch.tensor([[right, right, stop], [right, stop, 0]]),
                   rejected_classes=torch.tensor([[stop, 0, 0, 0], [right, substituted, substituted, stop]]))
    for by in ("ratio", "logp"):  # pair 1 keeps the rejected's tokens 0 and 2, of which the substituted one counts
        out = build_loss({"type": "sampo", "beta": 0.4, "mode": "top_k", "by": by,
                          "token_weights": {"others": 0, "substituted": 1}})(told)
        check(out, [0.0, -0.8], [math.log(2), softplus(0.8)])


def test_a_code_rate_that_is_not_said_is_the_models():
    terms = ({"type": "r_dpo", "alpha_unit": "second"}, {"type": "r_dpo", "code_rate": 7}, {"type": "sft"})
    loss = parse_loss({"type": "mix", "terms": [{"loss": term} for term in terms]})
    assert [getattr(part, "code_rate", "-") for part in parts_of(filled(loss, code_rate=12.5))] == ["-", 12.5, 7, "-"]
    args = ([[-1.0] * 5], [[-1.0]], [[-1.0] * 5], [[-1.0]])
    for rate, margin in ((None, 4 / 50), (12.5, 4 / 12.5)):
        r_dpo = parse_loss({"type": "r_dpo", "alpha": 1.0, "alpha_unit": "second"})
        assert build_loss(filled(r_dpo, code_rate=rate))(make_batch(*args)).margin.item() == pytest.approx(margin)
