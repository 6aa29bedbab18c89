"""R-DPO: DPO with a margin that grows with the length by which the chosen completion exceeds the rejected one."""

from __future__ import annotations

from talker_rl.losses.config import RDPOLossConfig
from talker_rl.losses.dpo import sigmoid_loss
from talker_rl.losses.ops import counted, finish, lengths, log_ratios, masks
from talker_rl.losses.types import LossOutput, PairBatch
from talker_rl.records.codec import FIRST, codec_named


def r_dpo_loss(batch: PairBatch, config: RDPOLossConfig) -> LossOutput:
    """Park et al. 2024 (arXiv 2403.19159), eq. 9: z = beta (R_w - R_l) + alpha (T_w - T_l).

    The sign is plus: if the longer one is preferred, alpha (T_w - T_l) > 0 already satisfies part of the margin, so
    the pair pulls less; with the minus that circulates it would pull more, and length would be rewarded. The term is a
    constant for the gradient. T is in tokens, or in seconds (tokens / code_rate), so that alpha keeps its meaning
    between codecs.
    """
    pairs = counted(batch, config)
    ratios_w, ratios_l = log_ratios(pairs)
    reward_w, reward_l = config.beta * ratios_w.sum(dim=1), config.beta * ratios_l.sum(dim=1)
    mask_w, mask_l = masks(pairs)
    extra_length = (lengths(mask_w) - lengths(mask_l)).to(reward_w.dtype)
    if config.alpha_unit == "second":
        extra_length = extra_length / (config.code_rate or codec_named(FIRST).rate)
    margin = reward_w - reward_l + config.alpha * extra_length
    return finish(batch, sigmoid_loss(margin, config), margin, (reward_w, reward_l))
