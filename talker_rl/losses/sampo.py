"""SamPO: both completions contribute the same number of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from talker_rl.losses.config import SamPOLossConfig
from talker_rl.losses.dpo import sigmoid_loss
from talker_rl.losses.ops import counted, finish, kept_stops, lengths, log_ratios, masks, policy_logps, token_index
from talker_rl.losses.types import LossOutput, PairBatch, Share


def random_keys(batch: PairBatch) -> tuple[Tensor, Tensor]:
    """A uniform number for each completion token; the tokens with the smallest are kept. ((B, T_w), (B, T_l)).

    One row of numbers per pair serves both sides, since only the longer side loses tokens. They belong to the n-th
    completion token and not to a position, so the draw does not depend on where or how wide the padding is. Processes
    that share a batch each draw for all of it and take their own rows.
    """
    both = masks(batch)
    longest = max(1, int(torch.stack([lengths(mask).max() for mask in both]).max()))
    whole = batch.share or Share(0, len(batch), 0, longest)
    device = batch.generator.device if batch.generator is not None else torch.device("cpu")
    noise = torch.rand(whole.pairs, whole.longest, generator=batch.generator, device=device)
    noise = noise[whole.first : whole.first + len(batch)].to(batch.chosen_mask.device)
    keys_w, keys_l = (noise.gather(1, (token_index(mask) - 1).clamp(min=0)) for mask in both)
    return keys_w, keys_l


def keep_smallest(keys_BT: Tensor, mask_BT: Tensor, count_B: Tensor) -> Tensor:
    """The ``count_B`` completion tokens with the smallest keys; ties go to the earlier token. (B, T) bool.

    A NaN key counts as smallest: a NaN log-probability in a completion must reach the loss, not be sorted away.
    """
    keys = torch.where(keys_BT.isnan(), torch.full_like(keys_BT, -torch.inf), keys_BT)
    # Two stable sorts, so that padding comes last even behind a key of +inf.
    order = keys.argsort(dim=1, stable=True)
    order = order.gather(1, (~mask_BT.gather(1, order)).int().argsort(dim=1, stable=True))
    positions = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, positions)
    return mask_BT & (rank < count_B[:, None])


def sampo_loss(batch: PairBatch, config: SamPOLossConfig) -> LossOutput:
    """Lu et al. 2024 (arXiv 2406.10957), eq. 8: z = beta (R'_w - R'_l), R' over T_m = min(T_w, T_l) tokens.

    From the longer side T_m tokens are drawn without replacement (`random`), or those with the largest log-ratio or
    policy log-probability are taken (`top_k`); the shorter side is kept whole. The same tokens are used for policy and
    reference (the authors' code draws twice, which makes the margin noisy where both agree). Nothing is rescaled.
    """
    pairs = counted(batch, config)
    ratios_w, ratios_l = log_ratios(pairs)
    (mask_w, mask_l), (stop_w, stop_l) = masks(pairs), kept_stops(batch, config)
    count = torch.minimum(lengths(mask_w), lengths(mask_l))
    if config.mode == "random":
        keys_w, keys_l = random_keys(batch)  # whatever counts of it: the draw is that of the paper's loss
    else:
        scores = log_ratios(batch) if config.by == "ratio" else policy_logps(batch)  # likewise: before any weights
        keys_w, keys_l = (-score.detach() for score in scores)
    rewards = []
    for ratios, keys, mask, stop in ((ratios_w, keys_w, mask_w, stop_w), (ratios_l, keys_l, mask_l, stop_l)):
        kept = keep_smallest(keys, mask, count)
        if stop is not None:
            kept = kept | stop
        rewards.append(config.beta * torch.where(kept, ratios, torch.zeros_like(ratios)).sum(dim=1))
    reward_w, reward_l = rewards
    margin = reward_w - reward_l
    return finish(batch, sigmoid_loss(margin, config), margin, (reward_w, reward_l))
