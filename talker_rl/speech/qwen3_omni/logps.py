"""Log-probs of the Talker and its code predictor, teacher-forced, in two forwards: the Talker over the packed row, the
predictor over all frames as a batch of rows of 16. They equal the raw ones that rollouts record, within float error.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from talker_rl.speech import head
from talker_rl.speech.head import kl_divergence, selective_logps
from talker_rl.speech.policy_weights import PolicyWeights
from talker_rl.speech.protocol import Compared
from talker_rl.speech.qwen3_omni.experts import replay
from talker_rl.speech.qwen3_omni.layout import TalkerBatch, talker_inputs
from talker_rl.speech.unwrap import unwrap_talker


def forced(talker: Any, batch: TalkerBatch) -> tuple[torch.Tensor, torch.Tensor, TalkerBatch]:
    """Logits (M, V) of codebook 0 at the M steps of all sequences, the hidden states (M, H) that gave them, and the
    batch on the model's device. Gradients flow.
    """
    inner = unwrap_talker(talker)
    batch = batch.to(inner.codec_head.weight.device)
    replay(inner, batch.experts_LC)
    logits_MV, hidden_MH = head.forced(talker, talker_inputs(inner, batch), batch.position_ids_3L, batch.packing,
                                       batch.predictor_ST[batch.mask_ST])
    return logits_MV, hidden_MH, batch


def residual_hidden(talker: Any, hidden_NH: torch.Tensor, frames_NG: torch.Tensor) -> torch.Tensor:
    """(N, G-1, H) of the code predictor: column k-1 predicts code k of each frame.

    Args:
        hidden_NH: the Talker's states that predicted the frames' first codes, behind its last norm.
    """
    inner = unwrap_talker(talker)
    predictor, groups = inner.code_predictor, frames_NG.shape[1]
    if not len(frames_NG):  # its attention cannot take an empty batch
        return hidden_NH.new_zeros(0, groups - 1, predictor.config.hidden_size)
    tables = [inner.model.codec_embedding, *predictor.model.codec_embedding][: groups - 1]
    rows = [hidden_NH, *(table(ids) for table, ids in zip(tables, frames_NG.T, strict=False))]
    positions = torch.arange(groups, device=hidden_NH.device)[None]
    out = predictor.model(inputs_embeds=torch.stack(rows, dim=1), position_ids=positions, use_cache=False)
    hidden: torch.Tensor = out.last_hidden_state[:, 1:]
    return hidden


@torch.no_grad()
def compared(policy: PolicyWeights, batch: TalkerBatch, residual_weight: float = 0.0) -> Compared:
    """A policy beside its reference; see :meth:`talker_rl.speech.protocol.Policy.compared`. The KL is of whole frames,
    whatever the residual codes weigh: they are said too, and hang on the states that an adapter moves."""
    talker, ended = policy.module, unwrap_talker(policy.module).config.codec_eos_token_id
    sides = []
    for side in (nullcontext, policy.as_reference):
        with side():
            logits_MV, hidden_MH, batch = forced(talker, batch)
            mask, framed = batch.mask_ST, batch.framed_ST
            hidden_NGH = residual_hidden(talker, hidden_MH[framed[mask]], batch.frames_NG)
            heads = unwrap_talker(talker).code_predictor.lm_head
            sides.append((logits_MV, [one(hidden_NGH[:, k]) for k, one in enumerate(heads)]))
    zeros = torch.zeros(mask.shape, device=mask.device)

    def steps(first_MV: torch.Tensor, rest: list[torch.Tensor]) -> torch.Tensor:
        out = zeros.masked_scatter(mask, selective_logps(first_MV, batch.first_ST[mask]))
        if not residual_weight:
            return out
        rest_NG = torch.stack([selective_logps(one, batch.frames_NG[:, k + 1]) for k, one in enumerate(rest)], 1)
        return out + residual_weight * zeros.masked_scatter(framed, rest_NG.sum(-1))

    (first, rest), (ref_first, ref_rest) = sides
    kl_ST = zeros.masked_scatter(mask, kl_divergence(first, ref_first))
    for mine, other in zip(rest, ref_rest, strict=True):
        kl_ST = kl_ST + zeros.masked_scatter(framed, kl_divergence(mine, other))
    stops_M = selective_logps(first, torch.full((len(first),), ended, device=mask.device))
    return Compared(steps(first, rest), zeros.masked_scatter(mask, stops_M), steps(ref_first, ref_rest), kl_ST)


def residual_logps(talker: Any, hidden_NH: torch.Tensor, frames_NG: torch.Tensor) -> torch.Tensor:
    """Raw log-probs (N, G-1) float32 of the frames' residual codes."""
    heads = unwrap_talker(talker).code_predictor.lm_head
    hidden = residual_hidden(talker, hidden_NH, frames_NG)
    return torch.stack([selective_logps(one(hidden[:, k]), frames_NG[:, k + 1]) for k, one in enumerate(heads)], 1)


def code_logps(talker: Any, batch: TalkerBatch) -> torch.Tensor:
    """Raw log-probs (S, T, G) float32 of every code; of the stop in group 0; 0 elsewhere."""
    logits_MV, hidden_MH, batch = forced(talker, batch)
    mask, framed = batch.mask_ST, batch.framed_ST
    out = torch.zeros(*mask.shape, batch.frames_NG.shape[1], device=mask.device)
    first_M = selective_logps(logits_MV, batch.first_ST[mask])
    rest_NG = residual_logps(talker, hidden_MH[framed[mask]], batch.frames_NG)
    first = out[..., :1].masked_scatter(mask[..., None], first_M)
    return torch.cat([first, out[..., 1:].masked_scatter(framed[..., None], rest_NG)], dim=-1)


def step_logps(talker: Any, batch: TalkerBatch, residual_weight: float = 0.0) -> torch.Tensor:
    """Raw log-probs (S, T) float32 of the steps: codebook 0's, and the weighted sum of the residual ones; 0 at padding.

    With weight 0 the predictor is not run.
    """
    if residual_weight:
        codes_STG = code_logps(talker, batch)
        return codes_STG[..., 0] + residual_weight * codes_STG[..., 1:].sum(-1)
    logits_MV, _, batch = forced(talker, batch)
    mask = batch.mask_ST
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(
        mask, selective_logps(logits_MV, batch.first_ST[mask]))


def step_and_stop_logps(
    talker: Any, batch: TalkerBatch, residual_weight: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`step_logps`, and the raw log-prob of stopping at each step; (S, T), 0 at padding."""
    logits_MV, hidden_MH, batch = forced(talker, batch)
    mask, framed, stop = batch.mask_ST, batch.framed_ST, unwrap_talker(talker).config.codec_eos_token_id
    zeros = torch.zeros(mask.shape, device=mask.device)
    steps = zeros.masked_scatter(mask, selective_logps(logits_MV, batch.first_ST[mask]))
    if residual_weight:
        rest_NG = residual_logps(talker, hidden_MH[framed[mask]], batch.frames_NG)
        steps = steps + residual_weight * zeros.masked_scatter(framed, rest_NG.sum(-1))
    ids = torch.full((len(logits_MV),), stop, device=mask.device)
    return steps, zeros.masked_scatter(mask, selective_logps(logits_MV, ids))
