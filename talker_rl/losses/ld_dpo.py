"""LD-DPO: tokens past the length that both completions have in common count less."""

from __future__ import annotations

import torch
from torch import Tensor

from talker_rl.losses.config import LDDPOLossConfig
from talker_rl.losses.dpo import sigmoid_loss
from talker_rl.losses.ops import counted, finish, kept_stops, lengths, masks, policy_logps, ref_logps, token_index
from talker_rl.losses.types import LossOutput, PairBatch


def ld_weights(mask_BT: Tensor, common_B: Tensor, alpha: float, dtype: torch.dtype) -> Tensor:
    """1 for the first ``common_B`` completion tokens, alpha for the rest; counts tokens, not positions. (B, T)."""
    ones = torch.ones(mask_BT.shape, dtype=dtype, device=mask_BT.device)
    return torch.where(token_index(mask_BT) <= common_B[:, None], ones, ones * alpha)


def ld_dpo_loss(batch: PairBatch, config: LDDPOLossConfig) -> LossOutput:
    """Liu et al. 2024 (arXiv 2409.06411), eq. 11: weight 1 up to l_p = min(T_w, T_l), alpha after it, on both sides.

    With ``reference="both"`` the reference is weighed alike (as TRL does): the loss is ln 2 when policy and reference
    agree. With ``"policy"`` the reference keeps its full sum, as the paper's formula can also be read.
    """
    pairs = counted(batch, config)
    (policy_w, policy_l), (ref_w, ref_l) = policy_logps(pairs), ref_logps(pairs)
    (mask_w, mask_l), (stop_w, stop_l) = masks(pairs), kept_stops(batch, config)
    common = torch.minimum(lengths(mask_w), lengths(mask_l))
    rewards = []
    for policy, ref, mask, stop in ((policy_w, ref_w, mask_w, stop_w), (policy_l, ref_l, mask_l, stop_l)):
        weights = ld_weights(mask, common, config.alpha, policy.dtype)
        if stop is not None:
            weights = torch.where(stop, torch.ones_like(weights), weights)
        # Per token before the sum in both modes, for the precision that ops.py speaks of.
        terms = weights * (policy - ref) if config.reference == "both" else weights * policy - ref
        rewards.append(config.beta * terms.sum(dim=1))
    reward_w, reward_l = rewards
    margin = reward_w - reward_l
    return finish(batch, sigmoid_loss(margin, config), margin, (reward_w, reward_l))
