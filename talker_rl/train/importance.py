"""Samples of another distribution than the policy's: what each of their steps counts for.

The usual sampling options (top-k, top-p, a temperature, a penalty) and other engines sample from a distribution mu that
is not the policy pi. A ratio of a policy gradient is always raw over raw, pi(now) / pi(when sampled); what mu differs
from that is corrected by a weight, pi(when sampled) / mu, bounded because it is heavy-tailed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from talker_rl.train.online_config import ImportanceConfig


def weights(raw: Tensor, sampled: Tensor, cfg: ImportanceConfig) -> Tensor:
    """Weight of each step, (T,) float32, from its log-prob under the policy and under what was sampled from, (T,) each.

    Truncated importance sampling (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training"; Ionides 2008): min(ratio, cap). With ``mask`` a ratio outside [floor, cap] counts nothing (IcePop, Ling
    team 2025). On sequence level a ratio is the product of its steps', and all of them have it.
    """
    ratio = (raw - sampled).float()
    if cfg.level == "sequence":
        ratio = ratio.sum().expand_as(ratio)
    ratio = ratio.exp()
    if cfg.mode == "truncate":
        return ratio.clamp(max=cfg.cap)
    return torch.where((ratio <= cfg.cap) & (ratio >= cfg.floor), ratio, 0.0)


def gap(raw: Tensor, sampled: Tensor) -> dict[str, float]:
    """How far what was sampled from lies from the policy, for the log: mean |difference| of log-probs, and the share of
    steps whose ratio lies outside 0.8 to 1.2, where a clip would hold before any step was taken."""
    apart = raw - sampled
    ratio = apart.exp()
    return {"sampling/processed_gap": float(apart.abs().mean()),
            "sampling/processed_outside": float(((ratio < 0.8) | (ratio > 1.2)).float().mean())}
