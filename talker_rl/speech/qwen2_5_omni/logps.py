"""Token log-probs of the Talker, teacher-forced. They equal the raw ones that rollouts record, within float error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.head import forced, kl_divergence, selective_logps
from talker_rl.speech.policy_weights import PolicyWeights
from talker_rl.speech.processed import forced_processed
from talker_rl.speech.protocol import Compared
from talker_rl.speech.qwen2_5_omni.layout import (
    TalkerBatch,
    code_ids,
    stop_ids,
    stretch_of,
    talker_inputs,
    unwrap_talker,
)
from talker_rl.speech.sampling import CodeSampler
from talker_rl.speech.sequence import SequenceGroup


def token_logps(talker: Any, batch: TalkerBatch, sequence: SequenceGroup | None = None) -> torch.Tensor:
    """Raw natural log-probs (B, T) float32 of the batch's ids; 0 at padding. Gradients flow.

    Args:
        sequence: processes that share the batch's row, each of which must be here with it.
    """
    logits_NV, batch = _completion_logits(talker, batch if sequence is None else stretch_of(batch, sequence))
    mask = batch.completion_mask_BT
    logps_N = selective_logps(logits_NV, batch.codes_BT[mask])
    logps_BT = torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, logps_N)
    return logps_BT if sequence is None else sequence.summed(logps_BT)


def token_and_stop_logps(talker: Any, batch: TalkerBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """``token_logps``, and the raw log-prob of stopping (by either stop id) at each position; (B, T), 0 at padding."""
    logits_NV, batch = _completion_logits(talker, batch)
    logits_NV, mask = logits_NV.float(), batch.completion_mask_BT
    token_N = selective_logps(logits_NV, batch.codes_BT[mask])
    stop_N = logits_NV[:, stop_ids(talker)].logsumexp(-1) - logits_NV.logsumexp(-1)
    zeros = torch.zeros(mask.shape, device=mask.device)
    return zeros.masked_scatter(mask, token_N), zeros.masked_scatter(mask, stop_N)


@torch.no_grad()
def compared(policy: PolicyWeights, batch: TalkerBatch) -> Compared:
    """A policy beside its reference; see :meth:`talker_rl.speech.protocol.Policy.compared`."""
    logits_NV, batch = _completion_logits(policy.module, batch)
    with policy.as_reference():
        ref_NV, _ = _completion_logits(policy.module, batch)
    mask = batch.completion_mask_BT
    ids_N, stops = batch.codes_BT[mask], stop_ids(policy.module)
    parts = (selective_logps(logits_NV, ids_N), logits_NV[:, stops].float().logsumexp(-1) - logits_NV.float().logsumexp(
        -1), selective_logps(ref_NV, ids_N), kl_divergence(logits_NV, ref_NV))
    return Compared(*(torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, part) for part in parts))


@torch.no_grad()
def processed_logps(talker: Any, batch: TalkerBatch, sampling: SamplingConfig) -> torch.Tensor:
    """Log-probs (B, T) float32 under the processed distribution; 0 at padding, -inf where an id cannot be drawn."""
    logits_NV, batch = _completion_logits(talker, batch)
    sampler = CodeSampler(sampling, code_ids(talker), logits_NV.device, narrow=False)
    return forced_processed(sampler, logits_NV, batch.codes_BT, batch.completion_mask_BT)


def _completion_logits(talker: Any, batch: TalkerBatch) -> tuple[torch.Tensor, TalkerBatch]:
    """Logits (N, V) that predict the N completion ids, row by row; and the batch on the model's device."""
    inner = unwrap_talker(talker)
    batch = batch.to(inner.codec_head.weight.device)
    with _summed_inside(inner, batch):
        logits_NV, _ = forced(talker, batch.thinker_LE[None], batch.position_ids_3L, batch.packing,
                              batch.predictor_BT[batch.completion_mask_BT])
    return logits_NV, batch


@contextmanager
def _summed_inside(inner: Any, batch: TalkerBatch) -> Iterator[None]:
    """Add the codec's embeddings to the inputs within the model's forward: where its weights lie in parts (FSDP), they
    are together only there."""
    def add(_module: Any, _args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (talker_inputs(inner, batch),)

    handle = inner.thinker_to_talker_proj.register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()
