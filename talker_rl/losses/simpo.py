"""SimPO: mean log-probabilities, a target margin, no reference."""

from __future__ import annotations

from talker_rl.losses.config import SimPOLossConfig
from talker_rl.losses.dpo import sigmoid_loss
from talker_rl.losses.ops import counted, finish, kept_stops, masks, mean_over_tokens, non_empty, policy_logps
from talker_rl.losses.types import LossOutput, PairBatch


def simpo_loss(batch: PairBatch, config: SimPOLossConfig) -> LossOutput:
    """Meng et al. 2024 (arXiv 2405.14734), eq. 6: z = beta (mean log pi(w) - mean log pi(l)) - gamma.

    gamma is absolute (the authors' code takes gamma / beta). The rewards in the metrics are beta * mean log pi.
    """
    pairs = counted(batch, config)
    (mask_w, mask_l), (stop_w, stop_l) = masks(pairs), kept_stops(batch, config)
    valid = non_empty(config, chosen=mask_w, rejected=mask_l)
    policy_w, policy_l = policy_logps(pairs)
    reward_w = config.beta * mean_over_tokens(policy_w, mask_w, stop_w)
    reward_l = config.beta * mean_over_tokens(policy_l, mask_l, stop_l)
    margin = reward_w - reward_l - config.gamma
    return finish(batch, sigmoid_loss(margin, config), margin, (reward_w, reward_l), valid)
