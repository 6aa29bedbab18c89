"""DPO and its nearest kin: the plain, the length-normalized and the hinge form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from talker_rl.losses.config import DPOLossConfig, DPONormLossConfig, HingeLossConfig, SigmoidConfig
from talker_rl.losses.ops import counted, finish, kept_stops, log_ratios, masks, mean_over_tokens, non_empty
from talker_rl.losses.types import LossOutput, PairBatch


def sigmoid_loss(margin: Tensor, config: SigmoidConfig) -> Tensor:
    """-log sigmoid(z), or with a share e of flipped labels (1 - e) L(z) + e L(-z) (cDPO), or `robust`
    ((1 - e) L(z) - e L(-z)) / (1 - 2 e), whose mean over such labels is L(z) (Chowdhury et al. 2024, arXiv
    2403.00409). `logsigmoid` is exact at z = -1e4, where `log(sigmoid)` is -inf. (B,) -> (B,).
    """
    loss, flipped = -F.logsigmoid(margin), config.label_smoothing
    if not flipped:
        return loss
    if config.robust:
        return ((1 - flipped) * loss + flipped * F.logsigmoid(-margin)) / (1 - 2 * flipped)
    return (1 - flipped) * loss - flipped * F.logsigmoid(-margin)


def dpo_loss(batch: PairBatch, config: DPOLossConfig) -> LossOutput:
    """Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.

    R = sum over the completion's tokens (EOS included) of log pi - log ref;
    z = beta (R_w - R_l); loss = -log sigmoid(z).
    """
    ratios_w, ratios_l = log_ratios(counted(batch, config))
    reward_w, reward_l = config.beta * ratios_w.sum(dim=1), config.beta * ratios_l.sum(dim=1)
    margin = reward_w - reward_l
    return finish(batch, sigmoid_loss(margin, config), margin, (reward_w, reward_l))


def dpo_norm_loss(batch: PairBatch, config: DPONormLossConfig) -> LossOutput:
    """DPO on mean log-ratios (TRL's `sigmoid_norm`): z = beta (R_w / T_w - R_l / T_l).

    The rewards in the metrics are the plain sums, as TRL reports them.
    """
    pairs = counted(batch, config)
    (mask_w, mask_l), (stop_w, stop_l) = masks(pairs), kept_stops(batch, config)
    valid = non_empty(config, chosen=mask_w, rejected=mask_l)
    ratios_w, ratios_l = log_ratios(pairs)
    mean_w = mean_over_tokens(ratios_w, mask_w, stop_w)
    margin = config.beta * (mean_w - mean_over_tokens(ratios_l, mask_l, stop_l))
    rewards = config.beta * ratios_w.sum(dim=1), config.beta * ratios_l.sum(dim=1)
    return finish(batch, sigmoid_loss(margin, config), margin, rewards, valid)


def hinge_loss(batch: PairBatch, config: HingeLossConfig) -> LossOutput:
    """max(0, 1 - z) with DPO's z (SLiC-HF, arXiv 2305.10425, on DPO's rewards)."""
    ratios_w, ratios_l = log_ratios(counted(batch, config))
    reward_w, reward_l = config.beta * ratios_w.sum(dim=1), config.beta * ratios_l.sum(dim=1)
    margin = reward_w - reward_l
    return finish(batch, torch.relu(1 - margin), margin, (reward_w, reward_l))
