"""Preference training in right-padded rows: the forward under TRL's trainer, and a plain loop that stands in for TRL.

The loop does what TRL's DPOTrainer does by default: one forward per batch over chosen and rejected, each row with its
own prefix, the head over every completion position, the reference by a second forward with the adapter off; AdamW, a
linear schedule, gradients clipped to 1. It has none of the Trainer's logging, so it is no slower than TRL. It exists
because a machine that has a GPU need not have TRL.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutputWithPast

from talker_rl.records.pair import Pair
from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning


class PaddedTalker(nn.Module):
    """(B, 1 + T) rows ``[index of conditioning, codes...]`` -> hidden states (B, 1 + T, H), the one at t predicting
    id t + 1; padding holds anything."""

    def __init__(self, talker: Any, conditionings: Sequence[Conditioning]) -> None:
        super().__init__()
        weight = talker.codec_head.weight
        self.talker = talker
        self.conditionings = [
            replace(c, prefix=c.prefix.to(weight), reply_stream=c.reply_stream.to(weight)) for c in conditionings
        ]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False) -> BaseModelOutputWithPast:
        out, columns = self.everywhere(input_ids, attention_mask)
        rows = torch.arange(len(out), device=out.device)[:, None]
        return BaseModelOutputWithPast(last_hidden_state=out[rows, columns])

    def everywhere(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, W + T, H) hidden states of the whole padded rows, prefixes of at most W positions included, and which
        columns (B, 1 + T) of them `forward` gives."""
        talker, device = self.talker, input_ids.device
        spoken = [self.conditionings[index] for index in input_ids[:, 0].tolist()]
        widths, steps = [len(c.prefix) for c in spoken], attention_mask.sum(dim=1) - 1
        sums = spoken[0].prefix.new_zeros(len(spoken), max(widths) + int(steps.max()), spoken[0].prefix.shape[1])
        ends = torch.tensor([talker.codec_pad_token, talker.codec_bos_token], device=device)
        special, embedded = (talker.get_input_embeddings()(ids) for ids in (ends, input_ids[:, 1:]))
        for row, c, n, codes in zip(sums, spoken, steps.tolist(), embedded, strict=True):
            width, stream = len(c.prefix), torch.arange(n, device=device).clamp(max=len(c.reply_stream) - 1)
            row[:width] = c.prefix
            row[width - 2 : width] += special
            row[width : width + n] = codes[:n] + c.reply_stream[stream]
        positions = torch.arange(sums.shape[1], device=device).expand(3, len(spoken), -1)
        inputs = talker.thinker_to_talker_proj(sums)
        out = talker.model(inputs_embeds=inputs, position_ids=positions, use_cache=False).last_hidden_state
        # The last prefix position predicts the first code: it stands where TRL has the last prompt token.
        columns = torch.tensor(widths, device=device)[:, None] - 1 + torch.arange(input_ids.shape[1], device=device)
        return out, columns.clamp(max=out.shape[1] - 1)


def train(
    model: Any, talker: Any, conditionings: Sequence[Conditioning], pairs: Sequence[Pair], *, epochs: int, batch: int,
    learning_rate: float, beta: float, bf16: bool, precompute: bool,
) -> Tensor:
    """Train the adapter of a ``peft.PeftModel`` around the talker by DPO, pairs in their order.

    Args:
        bf16: under autocast.
        precompute: the reference once before training, not with every batch.

    Returns: the loss of every step.
    """
    device = talker.codec_head.weight.device
    padded = PaddedTalker(talker, conditionings)
    index = {c.prompt_id: i for i, c in enumerate(conditionings)}
    batches = [pairs[i : i + batch] for i in range(0, len(pairs), batch)]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0, fused=device.type == "cuda")
    total = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))

    def sums(chosen_first: Sequence[Pair], reference: bool) -> Tensor:
        """(2, N) summed log-probs of chosen and rejected."""
        sides = [[p.chosen.ids for p in chosen_first], [p.rejected.ids for p in chosen_first]]
        ids = [torch.tensor([index[p.prompt_id], *codes])
               for side in sides for p, codes in zip(chosen_first, side, strict=True)]
        mask = pad_sequence([torch.ones_like(x) for x in ids], batch_first=True).to(device)
        rows = pad_sequence(ids, batch_first=True).to(device)
        off = model.disable_adapter() if reference else nullcontext()
        with torch.set_grad_enabled(not reference), torch.autocast(device.type, torch.bfloat16, enabled=bf16), off:
            hidden = padded(rows, mask).last_hidden_state[:, :-1]
            logits = talker.codec_head(hidden).float()
        logps = logits.gather(-1, rows[:, 1:, None])[..., 0] - logits.logsumexp(-1)
        return logps.masked_fill(mask[:, 1:] == 0, 0.0).sum(dim=1).view(2, -1)

    known = [sums(pairs_b, reference=True) for pairs_b in batches] if precompute else []
    losses = []
    for _ in range(epochs):
        for i, pairs_b in enumerate(batches):
            ratios = sums(pairs_b, reference=False) - (known[i] if known else sums(pairs_b, reference=True))
            loss = -F.logsigmoid(beta * (ratios[0] - ratios[1])).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    return torch.stack(losses).cpu()
