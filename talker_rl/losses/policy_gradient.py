"""Policy gradients: pure functions of samples and their advantages.

As in :mod:`talker_rl.losses.ops`, what stands at padding is replaced before any arithmetic, and two log-probs of a step
are subtracted before anything is summed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from talker_rl.losses.ops import clean, last_tokens, lengths, mean_by_group
from talker_rl.losses.policy_config import PolicyLossConfig, ReinforceLossConfig
from talker_rl.losses.types import LossOutput, SampleBatch


def policy_gradient_loss(batch: SampleBatch, config: PolicyLossConfig) -> LossOutput:
    """Clipped surrogate of a step with ratio r = pi / old and advantage A (Schulman et al. 2017, eq. 7; GRPO, Shao et
    al. 2024, arXiv 2402.03300, eq. 3): -min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) + beta k3, where
    k3 = exp(log ref - log pi) - (log ref - log pi) - 1. With ``delta`` no r above it counts where A < 0 (dual clip, Ye
    et al. 2020). On sequence level r is the geometric mean of its steps' (GSPO, Zheng et al. 2025, arXiv 2507.18071,
    eq. 5 and 7), in the form that gives each step its own advantage (GSPO-token, eq. 13 and 14): where all steps have
    the same it is the same.

    The mean is over a sequence's steps and then sequences (`grpo`), over steps (`bnpo`, `dapo`: Yu et al. 2025, arXiv
    2503.14476, eq. 8), or a sum over a constant (`dr_grpo`: Liu et al. 2025, arXiv 2503.20783).
    """
    mask, logps, advantages = batch.mask, clean(batch.logps, batch.mask), _advantages(batch, config.stop)
    old = logps.detach() if batch.old_logps is None else clean(batch.old_logps.detach(), mask)
    log_ratio = logps - old
    if config.importance_sampling_level == "sequence":
        mean = log_ratio.sum(dim=1, keepdim=True) / lengths(mask).clamp(min=1)[:, None]
        log_ratio = mean.detach() + (logps - logps.detach())  # its value, and each step's own gradient
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - config.epsilon, 1 + config.high)
    bounded = ratio if config.delta is None else ratio.clamp(max=config.delta)
    losses = -torch.minimum(bounded * advantages, clipped * advantages)
    metrics = _ratio_metrics(batch, ratio.detach(), advantages, config)
    return _finish(batch, losses, config.loss_type, config.beta, config.max_completion_length, metrics)


def reinforce_loss(batch: SampleBatch, config: ReinforceLossConfig) -> LossOutput:
    """-A log pi, summed over all steps of an optimizer step and divided by their number (Williams 1992; RLOO,
    Ahmadian et al. 2024, arXiv 2402.14740, eq. 6, where A is of the leave-one-out baseline). It is unbiased for samples
    of the policy as it is."""
    losses = -_advantages(batch, config.stop) * clean(batch.logps, batch.mask)
    return _finish(batch, losses, "dapo", float(config.beta), None, {})


def _advantages(batch: SampleBatch, stop: str) -> Tensor:
    """(S, T) float, 0 at padding, and where `stop` is `drop` at the stops."""
    counted = batch.mask
    if stop == "drop":
        counted = counted & ~(last_tokens(batch.mask) if batch.stop is None else batch.stop)
    return clean(batch.advantages.detach(), counted)


def _finish(
    batch: SampleBatch, losses: Tensor, loss_type: str, beta: float, longest: int | None, metrics: dict[str, Tensor]
) -> LossOutput:
    mask = batch.mask
    if batch.weights is not None:
        losses = losses * clean(batch.weights.detach(), mask)
    if beta:
        if batch.ref_logps is None:
            raise ValueError("this loss has a KL to the reference, and the batch has no reference log-probabilities")
        apart = clean(batch.ref_logps.detach(), mask) - clean(batch.logps, mask)
        k3 = torch.where(mask, apart.exp() - apart - 1, 0.0)
        losses = losses + beta * k3
        metrics["kl_k3"] = (k3.detach().sum() / mask.sum().clamp(min=1))
    losses = torch.where(mask, losses, torch.zeros_like(losses))
    steps = lengths(mask)
    if loss_type == "grpo":
        of_sequences = losses.sum(dim=1) / steps.clamp(min=1)
    elif loss_type == "dr_grpo":
        if longest is None:
            raise ValueError("dr_grpo divides by a constant: give max_completion_length")
        of_sequences = losses.sum(dim=1) / longest
    else:
        # A batch counts by its sequences, so those are divided by what a sequence has on average, here or everywhere.
        alone = batch.mean_steps is None or loss_type == "bnpo"
        mean = float(steps.sum()) / len(mask) if alone else batch.mean_steps
        of_sequences = losses.sum(dim=1) / max(1.0, mean or 0.0)
    with torch.no_grad():
        size = _advantages(batch, "as_sequence").abs().sum(dim=1) / steps.clamp(min=1)
    return LossOutput(of_sequences.mean(), mean_by_group(of_sequences, batch.group), mean_by_group(size, batch.group),
                      metrics)


@torch.no_grad()
def _ratio_metrics(
    batch: SampleBatch, ratio: Tensor, advantages: Tensor, config: PolicyLossConfig
) -> dict[str, Tensor]:
    """Under TRL's names: shares of steps at which the clip holds, and the ratios."""
    mask = batch.mask
    count = mask.sum().clamp(min=1)
    low = mask & (ratio < 1 - config.epsilon) & (advantages < 0)
    high = mask & (ratio > 1 + config.high) & (advantages > 0)
    found = {"clip_ratio/low_mean": low.sum() / count, "clip_ratio/high_mean": high.sum() / count,
             "clip_ratio/region_mean": (low | high).sum() / count,
             "ratio/mean": torch.where(mask, ratio, 0.0).sum() / count}
    return found
