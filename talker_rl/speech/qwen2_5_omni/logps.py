"""Token log-probs of the Talker, teacher-forced. They equal the raw ones that rollouts record, within float error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from talker_rl.speech.packing import use_packed_attention
from talker_rl.speech.qwen2_5_omni.layout import TalkerBatch, stop_ids, talker_inputs, unwrap_talker

_ROWS = 64
"""Rows at a time on a CPU: their logits (64 x 8448 floats, 2 MB) stay in its cache."""


class _SelectiveLogps(torch.autograd.Function):
    """log softmax(logits)[ids]; keeps the logits and one number a row, and writes one array in the backward pass.

    Composed of torch's own operations the same takes four (N, V) arrays, and moving them was a sixth of a training
    step's time.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
        rows = _ROWS if logits_NV.device.type == "cpu" else max(1, len(logits_NV))
        lse_N = torch.cat([part.float().logsumexp(-1) for part in logits_NV.split(rows)])
        ctx.save_for_backward(logits_NV, ids_N, lse_N)
        ctx.rows = rows
        return logits_NV.gather(-1, ids_N[:, None])[:, 0].float() - lse_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits_NV, ids_N, lse_N = ctx.saved_tensors
        grad_N = grads[0][:, None]
        out = torch.empty_like(logits_NV)
        parts = zip(*(x.split(ctx.rows) for x in (out, logits_NV, ids_N, lse_N[:, None], grad_N)), strict=True)
        for target, logits, ids, lse, grad in parts:
            # d logp / d logits = onehot(id) - softmax
            values = (logits.float() - lse).exp_().mul_(-grad)
            target.copy_(values.scatter_add_(-1, ids[:, None], grad))
        return out, None


def selective_logps(logits_NV: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
    """log softmax(logits)[ids] in float32, without the (N, V) array of log-probs. The same code serves rollouts."""
    return _SelectiveLogps.apply(logits_NV, ids_N)  # type: ignore[no-untyped-call]


def token_logps(talker: Any, batch: TalkerBatch) -> torch.Tensor:
    """Raw natural log-probs (B, T) float32 of the batch's ids; 0 at padding.

    One forward through the model as it is given (DDP and PEFT wrappers included, so their hooks run); gradients
    flow. The head runs on the completion's positions only: it is 8448 wide, and the prefix needs none.
    Positions are explicit because ``forward`` without them changes its inputs in place.
    """
    logits_NV, batch = _completion_logits(talker, batch)
    mask = batch.completion_mask_BT
    logps_N = selective_logps(logits_NV, batch.codes_BT[mask])
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, logps_N)


def token_and_stop_logps(talker: Any, batch: TalkerBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """``token_logps``, and the raw log-prob of stopping (by either stop id) at each position; (B, T), 0 at padding."""
    logits_NV, batch = _completion_logits(talker, batch)
    logits_NV, mask = logits_NV.float(), batch.completion_mask_BT
    token_N = selective_logps(logits_NV, batch.codes_BT[mask])
    stop_N = logits_NV[:, stop_ids(talker)].logsumexp(-1) - logits_NV.logsumexp(-1)
    zeros = torch.zeros(mask.shape, device=mask.device)
    return zeros.masked_scatter(mask, token_N), zeros.masked_scatter(mask, stop_N)


def _completion_logits(talker: Any, batch: TalkerBatch) -> tuple[torch.Tensor, TalkerBatch]:
    """Logits (N, V) that predict the N completion ids, row by row; and the batch on the model's device."""
    inner = unwrap_talker(talker)
    use_packed_attention(inner)
    batch = batch.to(inner.codec_head.weight.device)
    with _head_only_at(inner, batch.predictor_BT[batch.completion_mask_BT]):
        out = talker(
            inputs_embeds=talker_inputs(inner, batch),
            attention_mask=None,
            position_ids=batch.position_ids_3L[:, None],
            use_cache=False,
            packing=batch.packing,
        )
    return out.logits, batch


@contextmanager
def _head_only_at(inner: Any, positions_N: torch.Tensor) -> Iterator[None]:
    """Give the codec head the hidden states (N, H) at these positions of the packed row instead of all (1, L, H)."""

    def select(_module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (args[0][0, positions_N],)

    handle = inner.codec_head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
