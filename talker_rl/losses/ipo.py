"""IPO: the margin is pulled to a finite target instead of to infinity."""

from __future__ import annotations

from talker_rl.losses.config import IPOLossConfig
from talker_rl.losses.ops import finish, log_ratios, mean_over_tokens, non_empty
from talker_rl.losses.types import LossOutput, PairBatch


def ipo_loss(batch: PairBatch, config: IPOLossConfig) -> LossOutput:
    """Azar et al. 2023 (arXiv 2310.12036), eq. 17: (h - 1 / (2 tau))^2, tau = beta.

    h = R_w - R_l (`sum`, the formula as printed) or R_w / T_w - R_l / T_l (`mean`, what its authors ran, and TRL's).
    ``margin`` is h; the rewards in the metrics are beta times the plain sums, as TRL reports them.
    """
    ratios_w, ratios_l = log_ratios(batch)
    sum_w, sum_l = ratios_w.sum(dim=1), ratios_l.sum(dim=1)
    valid = None
    if config.normalize == "mean":
        valid = non_empty(config, chosen=batch.chosen_mask, rejected=batch.rejected_mask)
        margin = mean_over_tokens(ratios_w, batch.chosen_mask) - mean_over_tokens(ratios_l, batch.rejected_mask)
    else:
        margin = sum_w - sum_l
    per_pair = (margin - 1 / (2 * config.beta)) ** 2
    return finish(batch, per_pair, margin, (config.beta * sum_w, config.beta * sum_l), valid)
