"""What must hold for every loss: identities, gradients, padding, permutation, extreme margins."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_helpers import ALL_LOSSES, loss_id, make_batch, random_parts

from talker_rl.losses import PairBatch, build_loss
from talker_rl.losses.sampo import keep_smallest

DPO = {"type": "dpo", "beta": 0.1}
LENGTHS_W, LENGTHS_L = [5, 3, 7, 1], [2, 6, 7, 4]
every_loss = pytest.mark.parametrize("config", ALL_LOSSES, ids=loss_id)

shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5)
seeds = st.integers(0, 10_000)
few = settings(max_examples=25, deadline=None)


def grads(config: dict, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss and the gradients at the policy's completion tokens, in reading order."""
    loss = build_loss(config)(batch).loss
    g_w, g_l = torch.autograd.grad(
        loss, (batch.policy_chosen_logps, batch.policy_rejected_logps), allow_unused=True, materialize_grads=True
    )
    return loss.detach(), g_w, g_l


# Identities ------------------------------------------------------------------------------------------------------


@few
@given(shapes, seeds)
def test_r_dpo_without_alpha_and_ld_dpo_with_alpha_one_are_dpo(shape, seed):
    parts = random_parts([w for w, _ in shape], [n for _, n in shape], seed)
    expected = grads(DPO, make_batch(*parts, grad=True))
    for config in (
        {"type": "r_dpo", "beta": 0.1, "alpha": 0.0},
        {"type": "ld_dpo", "beta": 0.1, "alpha": 1.0},
        {"type": "ld_dpo", "beta": 0.1, "alpha": 1.0, "reference": "policy"},
        {"type": "dpo", "beta": 0.1, "label_smoothing": 0.0},
    ):
        torch.testing.assert_close(grads(config, make_batch(*parts, grad=True)), expected, rtol=0, atol=1e-7)


@few
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), seeds)
def test_at_equal_lengths_the_length_aware_losses_are_dpo(lengths, seed):
    parts = random_parts(lengths, lengths, seed)
    expected = grads(DPO, make_batch(*parts, grad=True))
    for config in (
        {"type": "sampo", "beta": 0.1, "mode": "random"},
        {"type": "sampo", "beta": 0.1, "mode": "top_k", "by": "logp"},
        {"type": "ld_dpo", "beta": 0.1, "alpha": 0.1},
        {"type": "r_dpo", "beta": 0.1, "alpha": 5.0},
    ):
        torch.testing.assert_close(grads(config, make_batch(*parts, grad=True)), expected, rtol=0, atol=1e-7)


def test_length_aware_losses_are_not_dpo_at_unequal_lengths():
    batch = make_batch(*random_parts(LENGTHS_W, LENGTHS_L), seed=0)
    plain = build_loss(DPO)(batch).loss
    for config in ({"type": "sampo"}, {"type": "ld_dpo"}, {"type": "r_dpo"}, {"type": "dpo_norm"}):
        assert (build_loss({**config, "beta": 0.1})(batch).loss - plain).abs() > 1e-4, config


def test_ld_dpo_with_alpha_zero_is_dpo_on_the_common_prefix():
    parts = random_parts(LENGTHS_W, LENGTHS_L)
    cut = [[row[: min(w, n)] for row, w, n in zip(part, LENGTHS_W, LENGTHS_L, strict=True)] for part in parts]
    for side in ("left", "right"):
        got = build_loss({"type": "ld_dpo", "beta": 0.1, "alpha": 0.0})(make_batch(*parts, side=side))
        torch.testing.assert_close(got.margin, build_loss(DPO)(make_batch(*cut)).margin)


def test_r_dpo_penalizes_a_longer_winner_less_gradient_not_more():
    # Same log-ratios, chosen longer or shorter: the longer winner must pull less (weight sigmoid(-z) on its tokens).
    longer = make_batch([[-1.0] * 6], [[-1.0] * 2], [[-1.0] * 6], [[-1.0] * 2], grad=True)
    shorter = make_batch([[-1.0] * 2], [[-1.0] * 6], [[-1.0] * 2], [[-1.0] * 6], grad=True)
    config = {"type": "r_dpo", "beta": 0.1, "alpha": 0.5}
    pull_longer, pull_shorter = (-grads(config, b)[1][0, 0].item() for b in (longer, shorter))
    # sigmoid(-0.5 * 4) = 0.1192 and sigmoid(2) = 0.8808, times beta
    assert (pull_longer, pull_shorter) == pytest.approx((0.01192029, 0.08807971), rel=1e-5)


@few
@given(shapes, seeds, st.floats(0, 3), st.floats(0, 3))
def test_mix_is_the_weighted_sum(shape, seed, a, b):
    parts = random_parts([w for w, _ in shape], [n for _, n in shape], seed)
    first, second = {"type": "ipo", "beta": 0.3}, {"type": "sft"}
    mix = {"type": "mix", "terms": [{"weight": a, "loss": first}, {"weight": b, "loss": second}]}
    if a == b == 0:
        assert build_loss(mix)(make_batch(*parts)).loss.item() == 0
        return
    got = grads(mix, make_batch(*parts, grad=True))
    one, two = (grads(config, make_batch(*parts, grad=True)) for config in (first, second))
    for value, x, y in zip(got, one, two, strict=True):
        torch.testing.assert_close(value, a * x + b * y, rtol=1e-5, atol=1e-6)


# Padding, permutation, reference -----------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("fill", [0.0, float("nan"), float("inf"), -1e30])
def test_padding_changes_nothing_and_gets_no_gradient(config, side, fill):
    parts = random_parts(LENGTHS_W, LENGTHS_L)
    plain = make_batch(*parts, seed=7, grad=True)
    padded = make_batch(*parts, seed=7, grad=True, side=side, extra=3, fill=fill)
    loss, g_w, g_l = grads(config, plain)
    loss_p, g_wp, g_lp = grads(config, padded)
    torch.testing.assert_close(loss_p, loss, rtol=1e-6, atol=1e-6)
    for g, g_p, before, after in (
        (g_w, g_wp, plain.chosen_mask, padded.chosen_mask),
        (g_l, g_lp, plain.rejected_mask, padded.rejected_mask),
    ):
        torch.testing.assert_close(g_p[after], g[before], rtol=1e-5, atol=1e-7)
        assert (g_p[~after] == 0).all()


@every_loss
def test_permuting_the_batch_permutes_the_pairs(config):
    parts = random_parts(LENGTHS_W, LENGTHS_L)
    order = [2, 0, 3, 1]
    # One pair is drawn like any other, but which draw a pair gets depends on its row: SamPO's random mode is
    # compared where no token is left out.
    if config.get("mode") == "random":
        parts = random_parts(LENGTHS_W, LENGTHS_W)
    out = build_loss(config)(make_batch(*parts))
    shuffled = build_loss(config)(make_batch(*[[part[i] for i in order] for part in parts]))
    torch.testing.assert_close(shuffled.per_pair, out.per_pair[order])
    torch.testing.assert_close(shuffled.margin, out.margin[order])
    torch.testing.assert_close(shuffled.loss, out.loss)
    for name, value in out.metrics.items():
        torch.testing.assert_close(shuffled.metrics[name], value)


@every_loss
def test_nothing_flows_into_the_reference(config):
    batch = make_batch(*random_parts(LENGTHS_W, LENGTHS_L), seed=0, grad=True)
    batch.ref_chosen_logps.requires_grad_()
    batch.ref_rejected_logps.requires_grad_()
    build_loss(config)(batch).loss.backward()
    assert batch.ref_chosen_logps.grad is None and batch.ref_rejected_logps.grad is None
    assert batch.policy_chosen_logps.grad.abs().sum() > 0


@every_loss
def test_per_pair_averages_to_the_loss_and_metrics_are_plain(config):
    out = build_loss(config)(make_batch(*random_parts(LENGTHS_W, LENGTHS_L), seed=0, grad=True))
    torch.testing.assert_close(out.loss, out.per_pair.mean())
    assert out.per_pair.shape == out.margin.shape == (4,)
    for name, value in out.metrics.items():
        assert value.ndim == 0 and not value.requires_grad and math.isfinite(value.item()), name


@every_loss
def test_a_nan_inside_a_completion_reaches_the_loss(config):
    parts = random_parts(LENGTHS_W, LENGTHS_W)
    parts[0][1][0] = float("nan")
    assert build_loss(config)(make_batch(*parts)).loss.isnan()


def test_a_nan_in_a_longer_side_is_not_sorted_away():
    parts = random_parts([6], [2])
    parts[0][0][4] = float("nan")
    for by in ("ratio", "logp"):
        assert build_loss({"type": "sampo", "mode": "top_k", "by": by})(make_batch(*parts)).loss.isnan()


# Gradients -----------------------------------------------------------------------------------------------------------


@every_loss
def test_gradcheck_in_float64(config):
    """Finite differences, with NaN padding in the closed-over batch. Inputs are ragged and continuous (no ties)."""
    parts = random_parts([3, 2], [2, 4], seed=3)
    base = make_batch(*parts, dtype=torch.float64, side="left", extra=1, fill=float("nan"))
    loss = build_loss(config)
    mask_w, mask_l = base.chosen_mask, base.rejected_mask

    def scatter(values, mask):
        return torch.full(mask.shape, float("nan"), dtype=torch.float64).masked_scatter(mask, values)

    def value(x_w, x_l):
        batch = PairBatch(
            scatter(x_w, mask_w), scatter(x_l, mask_l), base.ref_chosen_logps, base.ref_rejected_logps, mask_w, mask_l,
            torch.Generator().manual_seed(5),
        )  # fmt: skip
        return loss(batch).loss

    inputs = [
        base.policy_chosen_logps[mask_w].requires_grad_(),
        base.policy_rejected_logps[mask_l].requires_grad_(),
    ]
    assert value(*inputs).dtype == torch.float64
    assert torch.autograd.gradcheck(value, inputs)


@every_loss
@pytest.mark.parametrize("difference", [1e4, -1e4])
def test_extreme_margins_stay_finite_and_right(config, difference):
    """Sums 1e4 nats apart, in float32: loss and gradients finite, and the asymptote where there is one."""
    # 4 tokens a side; chosen tokens are difference / 4 above their reference, rejected ones equal theirs.
    policy_w = [[-2500.0 + (difference / 4 if difference < 0 else 0)] * 4]
    ref_w = [[-2500.0 - (difference / 4 if difference > 0 else 0)] * 4]
    batch = make_batch(policy_w, [[-2500.0] * 4], ref_w, [[-2500.0] * 4], grad=True, fill=float("nan"), extra=1)
    out = build_loss(config)(batch)
    out.loss.backward()
    for tensor in (
        out.loss,
        out.per_pair,
        out.margin,
        batch.policy_chosen_logps.grad,
        batch.policy_rejected_logps.grad,
    ):
        assert tensor is None or tensor.isfinite().all()
    if config == DPO:
        # z = +-1000: the loss is 0, or -z with the full gradient -beta on every chosen token.
        assert out.loss.item() == (0.0 if difference > 0 else 1000.0)
        expected = 0.0 if difference > 0 else -0.1
        assert batch.policy_chosen_logps.grad[batch.chosen_mask].tolist() == pytest.approx([expected] * 4)


def test_margin_of_ten_thousand():
    """z = -1e4 itself: -log sigmoid(z) = 1e4 and its slope is 1; log(sigmoid(z)) would be -inf."""
    batch = make_batch([[-1e4]], [[-1.0]], [[-1.0]], [[-2.0]], grad=True)  # R_w = -9999, R_l = 1
    out = build_loss({"type": "dpo", "beta": 1.0, "label_smoothing": 0.25})(batch)
    out.loss.backward()
    # 0.75 * 1e4 + 0.25 * 0; slope -0.75 for the chosen (0.25 * sigmoid(z) = 0 from the flipped part)
    assert out.margin.item() == -1e4 and out.loss.item() == 7500.0
    assert batch.policy_chosen_logps.grad.item() == -0.75


def test_small_differences_of_large_sums_survive():
    """4,000 tokens of -8 nats (sum -32,000: float32 steps are 0.002), each 1e-6 above the reference."""
    n = 4000
    policy = torch.full((1, n), -8.0) + 2.0**-20
    mask = torch.ones(1, n, dtype=torch.bool)
    reference = torch.full((1, n), -8.0)
    batch = PairBatch(policy, reference, reference, reference, mask, mask)
    assert build_loss({"type": "dpo", "beta": 1.0})(batch).margin.item() == pytest.approx(n * 2.0**-20, rel=1e-4)


# SamPO's draw --------------------------------------------------------------------------------------------------------


def kept_tokens(config: dict, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens got a gradient: (B, T) bool for each side."""
    _, g_w, g_l = grads(config, batch)
    return g_w != 0, g_l != 0


@few
@given(shapes, seeds)
def test_sampo_keeps_as_many_tokens_as_the_shorter_side_has(shape, seed):
    lengths_w, lengths_l = [w for w, _ in shape], [n for _, n in shape]
    common = [min(pair) for pair in shape]
    parts = random_parts(lengths_w, lengths_l, seed)
    for mode in ("random", "top_k"):
        batch = make_batch(*parts, seed=seed, grad=True, side="left", extra=2)
        kept_w, kept_l = kept_tokens({"type": "sampo", "mode": mode}, batch)
        assert kept_w.sum(1).tolist() == common and kept_l.sum(1).tolist() == common


def test_sampo_draw_is_reproducible_and_independent_of_padding():
    parts = random_parts([9, 3], [4, 8])
    config = {"type": "sampo", "mode": "random"}

    def kept(seed, **padding):
        batch = make_batch(*parts, seed=seed, grad=True, **padding)
        return [k[m].tolist() for k, m in zip(kept_tokens(config, batch), (batch.chosen_mask, batch.rejected_mask),
                                              strict=True)]  # fmt: skip

    assert kept(3) == kept(3) == kept(3, side="left", extra=4, fill=float("nan"))
    assert len({str(kept(seed)) for seed in range(8)}) > 1


def test_sampo_draw_is_uniform_over_subsets():
    """4 tokens against 2: each of the 6 subsets equally often (chi-squared, 5 degrees of freedom, p > 1e-4)."""
    n = 3000
    ones = torch.ones(n, 4)
    batch = PairBatch(
        ones.clone().requires_grad_(), ones[:, :2].clone().requires_grad_(), ones, ones[:, :2],
        torch.ones(n, 4, dtype=torch.bool), torch.ones(n, 2, dtype=torch.bool), torch.Generator().manual_seed(0),
    )  # fmt: skip
    kept, _ = kept_tokens({"type": "sampo"}, batch)
    counts = Counter(tuple(row) for row in kept.tolist())
    assert len(counts) == 6
    assert sum((count - n / 6) ** 2 / (n / 6) for count in counts.values()) < 25.7


def test_sampo_without_a_generator_follows_the_global_seed():
    parts = random_parts([9], [2])
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(build_loss({"type": "sampo"})(make_batch(*parts)).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_keep_smallest_puts_padding_last_even_behind_infinite_keys():
    keys = torch.tensor([[0.0, float("inf"), 5.0, 1.0]])
    mask = torch.tensor([[False, True, True, True]])
    assert keep_smallest(keys, mask, torch.tensor([3])).tolist() == [[False, True, True, True]]
    assert keep_smallest(keys, mask, torch.tensor([2])).tolist() == [[False, False, True, True]]
    assert keep_smallest(keys, mask, torch.tensor([0])).tolist() == [[False] * 4]
