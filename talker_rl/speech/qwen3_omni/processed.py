"""Log-probs of frames under both processed distributions."""

from __future__ import annotations

from typing import Any

import torch

from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.processed import forced_processed
from talker_rl.speech.qwen3_omni.config import ResidualSampling
from talker_rl.speech.qwen3_omni.layout import TalkerBatch, code_ids
from talker_rl.speech.qwen3_omni.logps import forced, residual_hidden
from talker_rl.speech.qwen3_omni.sampling import ResidualSampler
from talker_rl.speech.sampling import CodeSampler
from talker_rl.speech.unwrap import unwrap_talker


@torch.no_grad()
def processed_logps(
    talker: Any, batch: TalkerBatch, sampling: SamplingConfig, residual: ResidualSampling, residual_weight: float
) -> torch.Tensor:
    """(S, T) float32; 0 at padding."""
    logits_MV, hidden_MH, batch = forced(talker, batch)
    mask, framed = batch.mask_ST, batch.framed_ST
    sampler = CodeSampler(sampling, code_ids(talker), mask.device, narrow=False)
    out = forced_processed(sampler, logits_MV, batch.first_ST, mask)
    if not residual_weight:
        return out
    warped, heads = ResidualSampler(residual, sampling.do_sample), unwrap_talker(talker).code_predictor.lm_head
    hidden = residual_hidden(talker, hidden_MH[framed[mask]], batch.frames_NG)
    total = torch.zeros(len(batch.frames_NG), device=mask.device)
    for k, head in enumerate(heads):
        logps = warped.scores(head(hidden[:, k]).float()).double().log_softmax(-1)
        total += logps.gather(-1, batch.frames_NG[:, k + 1, None])[:, 0].float()
    return out + residual_weight * torch.zeros_like(out).masked_scatter(framed, total)
