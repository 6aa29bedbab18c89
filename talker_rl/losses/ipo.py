"""IPO: the margin is pulled to a finite target instead of to infinity."""

from __future__ import annotations

from talker_rl.losses.config import IPOLossConfig
from talker_rl.losses.ops import counted, finish, kept_stops, log_ratios, masks, mean_over_tokens, non_empty
from talker_rl.losses.types import LossOutput, PairBatch


def ipo_loss(batch: PairBatch, config: IPOLossConfig) -> LossOutput:
    """Azar et al. 2023 (arXiv 2310.12036), eq. 17: (h - 1 / (2 tau))^2, tau = beta.

    h = R_w - R_l (`sum`, the formula as printed) or R_w / T_w - R_l / T_l (`mean`, what its authors ran, and TRL's).
    ``margin`` is h; the rewards in the metrics are beta times the plain sums, as TRL reports them.
    """
    pairs = counted(batch, config)
    ratios_w, ratios_l = log_ratios(pairs)
    sum_w, sum_l = ratios_w.sum(dim=1), ratios_l.sum(dim=1)
    valid = None
    if config.normalize == "mean":
        (mask_w, mask_l), (stop_w, stop_l) = masks(pairs), kept_stops(batch, config)
        valid = non_empty(config, chosen=mask_w, rejected=mask_l)
        margin = mean_over_tokens(ratios_w, mask_w, stop_w) - mean_over_tokens(ratios_l, mask_l, stop_l)
    else:
        margin = sum_w - sum_l
    per_pair = (margin - 1 / (2 * config.beta)) ** 2
    return finish(batch, per_pair, margin, (config.beta * sum_w, config.beta * sum_l), valid)
