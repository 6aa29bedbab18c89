"""The Talker's decoder for rollouts: rows at different positions over a cache that is written in place.

Attention, projections and adapters are the model's own: they get the cache as ``past_key_values`` and the rows' lengths
as an attention mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from talker_rl.speech.packing import refuse_sliding_window
from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning
from talker_rl.speech.qwen2_5_omni.graph import GraphedStep
from talker_rl.speech.qwen2_5_omni.layout import prefix_inputs, prefix_positions
from talker_rl.speech.row_cache import RowCache


@dataclass
class _Prefix:
    """What a prompt's prefix leaves: computed once, copied to each of its candidates."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    """Keys and values (H, P, D) of each layer."""
    hidden: torch.Tensor
    """(H,) last hidden state at the last position, which predicts the first code."""
    length: int
    shift: int
    """Rotary position less slot of what follows: not 0 behind images and video."""


class Decoder:
    """Rows 0 .. n-1 are sequences; they join and leave between steps.

    Args:
        inner: the transformers Talker (LoRA layers may be in it).
        conditionings: of all prompts; rows name them by index.
        rows: most rows at a time.
        cuda_graphs: on a GPU, replay steps as CUDA graphs (sdpa and eager attention).
    """

    def __init__(
        self, inner: Any, conditionings: Sequence[Conditioning], rows: int, *, cuda_graphs: bool = True
    ) -> None:
        refuse_sliding_window(inner)
        self.inner, self.conditionings = inner, conditionings
        weight = inner.codec_head.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.cache = RowCache(rows)
        self.prefixes: dict[int, _Prefix] = {}
        replies = (max(len(c.reply_stream) for c in conditionings), conditionings[0].reply_stream.shape[-1])
        self.reply = torch.zeros(rows, *replies, dtype=self.dtype, device=self.device)
        self.reply_last = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.steps = torch.zeros(rows, dtype=torch.long, device=self.device)  # codes fed
        self.slots = torch.zeros(rows, dtype=torch.long, device=self.device)  # of the next input
        self.shifts = torch.zeros(rows, dtype=torch.long, device=self.device)  # from its slot to its position
        self.lengths: list[int] = []  # the same of the rows that are there, known without asking the device
        self.hidden = weight.new_zeros(0, weight.shape[1])
        flash = "flash" in inner.model.config._attn_implementation  # which counts its keys on the host
        self.graphs = GraphedStep(rows) if cuda_graphs and self.device.type == "cuda" and not flash else None

    def logits(self) -> torch.Tensor:
        """(n, V) float32 of each row's next code."""
        return self.inner.codec_head(self.hidden).float()

    def prefill(self, prompts: Sequence[int]) -> None:
        """Compute prefixes in one forward, in the place of those that there were.

        Right-padded, so causal attention needs no mask.
        """
        self.prefixes.clear()
        given = [self.conditionings[i].prefix.to(self.device, self.dtype) for i in prompts]
        prefixes = [prefix_inputs(self.inner, prefix) for prefix in given]
        inputs = torch.nn.utils.rnn.pad_sequence(prefixes, batch_first=True)
        positions = torch.arange(inputs.shape[1]).repeat(3, len(prefixes), 1)
        for row, i in enumerate(prompts):
            positions[:, row, : len(prefixes[row])] = prefix_positions(self.conditionings[i])
        cache = DynamicCache()
        hidden = self.inner.model(
            inputs_embeds=self.inner.thinker_to_talker_proj(inputs),
            attention_mask=None,
            position_ids=positions.to(self.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        for row, (i, prefix) in enumerate(zip(prompts, prefixes, strict=True)):
            length = len(prefix)
            layers = [(layer.keys[row, :, :length], layer.values[row, :, :length]) for layer in cache.layers]
            shift = self.conditionings[i].next_position - length
            self.prefixes[i] = _Prefix(layers, hidden[row, length - 1], length, shift)

    def join(self, prompts: Sequence[int]) -> None:
        """Append a row for each of these prompts (prefilled before), at its first code."""
        first = len(self.lengths)
        for i in dict.fromkeys(prompts):
            prefix, stream = self.prefixes[i], self.conditionings[i].reply_stream
            rows = [first + k for k, prompt in enumerate(prompts) if prompt == i]
            index = torch.tensor(rows, device=self.device)
            self.cache.fill(rows, prefix.layers)
            self.reply[index, : len(stream)] = stream.to(self.device, self.dtype)
            self.reply_last[index], self.steps[index] = len(stream) - 1, 0
            self.slots[index], self.shifts[index] = prefix.length, prefix.shift
        self.lengths += [self.prefixes[i].length for i in prompts]
        self.hidden = torch.cat([self.hidden, *(self.prefixes[i].hidden[None] for i in prompts)])

    def feed(self, codes_n: torch.Tensor) -> None:
        """Append a code to every row, with its row of the reply stream."""
        n = len(self.lengths)
        self.lengths = [length + 1 for length in self.lengths]
        length, hidden = max(self.lengths), None
        self.cache.reserve(length)
        if self.graphs and self.graphs.working:
            hidden = self.graphs(self._step, codes_n, self.cache.capacity)
        if hidden is None:
            hidden = self._step(codes_n, length, masked=min(self.lengths) < length)
        self.hidden = hidden
        self.steps[:n] += 1
        self.slots[:n] += 1

    def _step(self, codes_N: torch.Tensor, slots: int, masked: bool = True) -> torch.Tensor:
        """Hidden states (N, H) of the first N rows after these codes; a row sees itself and what came before of the
        cache's first ``slots``, or all of them if not ``masked``."""
        n = len(codes_N)
        rows = torch.arange(n, device=self.device)
        stream = self.reply[rows, torch.minimum(self.steps[:n], self.reply_last[:n])]
        inputs = self.inner.get_input_embeddings()(codes_N) + stream
        at = self.slots[:n].clamp(max=slots - 1)  # of rows that are gone, the last may be past the end
        self.cache.place(at, slots)
        hidden: torch.Tensor = self.inner.model(
            inputs_embeds=self.inner.thinker_to_talker_proj(inputs[:, None]),
            attention_mask={"full_attention": self._mask(at, slots) if masked else None},  # once for all layers
            position_ids=(at + self.shifts[:n])[:, None].expand(3, n, 1),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return hidden

    def _mask(self, at_n: torch.Tensor, slots: int) -> torch.Tensor:
        """What each row may see, as the model's attention wants it."""
        seen = torch.arange(slots, device=self.device) <= at_n[:, None]
        if "flash" in self.inner.model.config._attn_implementation:
            return seen
        # Added to the scores. No torch.where: a number among its arguments is copied to the device and waited for.
        zeros = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
        return zeros.masked_fill_(~seen, torch.finfo(self.dtype).min)[:, None, None]

    def leave(self, moves: Sequence[tuple[int, int]], left: int) -> None:
        """Copy rows over others (from, to), then keep the first ``left``."""
        if moves:
            source, target = (torch.tensor(x, device=self.device) for x in zip(*moves, strict=True))
            self.cache.move(source, target, max(self.lengths))
            for tensor in (self.reply, self.reply_last, self.steps, self.slots, self.shifts, self.hidden):
                tensor[target] = tensor[source]
        for a, b in moves:
            self.lengths[b] = self.lengths[a]
        self.lengths, self.hidden = self.lengths[:left], self.hidden[:left]
