"""The codec head, and log-probs of ids from its logits: families' teacher forcing and rollouts share them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from talker_rl.speech.packing import Packing, use_packed_attention
from talker_rl.speech.unwrap import unwrap_talker

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


@torch.no_grad()
def kl_divergence(logits_NV: torch.Tensor, ref_logits_NV: torch.Tensor) -> torch.Tensor:
    """KL(softmax(logits) || softmax(ref_logits)) (N,) float32, nats: the sum over the vocabulary and no estimate of it.

    An id that the logits rule out (-inf) adds nothing.
    """
    rows = _ROWS if logits_NV.device.type == "cpu" else max(1, len(logits_NV))
    found = []
    for mine, other in zip(logits_NV.split(rows), ref_logits_NV.split(rows), strict=True):
        logps, refs = mine.float().log_softmax(-1), other.float().log_softmax(-1)
        found.append(torch.where(logps.isneginf(), 0.0, logps.exp() * (logps - refs)).sum(-1))
    return torch.cat(found) if found else logits_NV.new_zeros(0).float()


@contextmanager
def head_only_at(inner: Any, positions_N: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Give the codec head the hidden states (N, H) at these positions of the packed row instead of all (1, L, H).

    Yields a list that holds those states after a forward.
    """
    seen: list[torch.Tensor] = []

    def select(_module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        seen[:] = [args[0][0, positions_N]]
        return (seen[0],)

    handle = inner.codec_head.register_forward_pre_hook(select)
    try:
        yield seen
    finally:
        handle.remove()


def forced(
    talker: Any, inputs_1LE: torch.Tensor, position_ids_3L: torch.Tensor, packing: Packing, predictor_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, V) at N positions of a packed row, and the hidden states (N, H) that gave them.

    One forward through the model as it is given (DDP and PEFT wrappers included, so their hooks run); gradients flow.
    The head runs on the asked positions only: it is wide, and the prefix needs none. Positions are explicit, because
    ``forward`` without them changes its inputs in place or keeps some of its own.
    """
    inner = unwrap_talker(talker)
    use_packed_attention(inner)
    with head_only_at(inner, predictor_N) as hidden:
        out = talker(inputs_embeds=inputs_1LE, attention_mask=None, position_ids=position_ids_3L[:, None],
                     use_cache=False, packing=packing)
    return out.logits, hidden[0]
