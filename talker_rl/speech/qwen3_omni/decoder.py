"""The Talker's decoder for rollouts: rows at different positions over a cache that is written in place, and the code
predictor's sixteen positions of a frame, which begin anew with every frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from talker_rl.speech.packing import refuse_sliding_window
from talker_rl.speech.qwen3_omni.conditioning import EOS, PAD, Conditioning
from talker_rl.speech.qwen3_omni.experts import Recorder
from talker_rl.speech.qwen3_omni.layout import (
    Specials,
    code_embeddings,
    heard_rows,
    prefix_codec,
    prefix_text,
    projected,
    stream_text,
    text_rows,
)
from talker_rl.speech.row_cache import RowCache


@dataclass
class _Prefix:
    """What a prompt's prefix leaves: computed once, copied to each of its candidates."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    """Keys and values (K, P, D) of each layer."""
    hidden: torch.Tensor
    """(H,) last hidden state at the last position, which predicts the first code."""
    length: int
    ahead: float
    """Position of the first frame, less ``length``: with images positions are fewer than rows."""
    stream: torch.Tensor
    """(R, H) projected rows of the reply from its second token on, then tts_eos, then tts_pad, which repeats."""
    experts: bytes = b""
    """What the routers chose, where that is written down."""


class Decoder:
    """Rows 0 .. n-1 are sequences; they join and leave between frames.

    Args:
        inner: the transformers Talker (LoRA layers may be in it).
        conditionings: of all prompts; rows name them by index.
        rows: most rows at a time.
        recorder: of what the routers choose.
    """

    def __init__(
        self, inner: Any, conditionings: Sequence[Conditioning], rows: int, recorder: Recorder | None = None
    ) -> None:
        refuse_sliding_window(inner)
        self.inner, self.conditionings, self.specials = inner, conditionings, Specials.of(inner)
        weight = inner.codec_head.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.cache = RowCache(rows)
        self.prefixes: dict[int, _Prefix] = {}
        longest = max(len(c.reply) for c in conditionings) + 1
        self.stream = torch.zeros(rows, longest, weight.shape[1], dtype=self.dtype, device=self.device)
        self.stream_last = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.steps = torch.zeros(rows, dtype=torch.long, device=self.device)  # frames fed
        self.slots = torch.zeros(rows, dtype=torch.long, device=self.device)  # of the next input
        self.ahead = torch.zeros(rows, device=self.device)  # of positions before slots
        self.lengths: list[int] = []  # the same of the rows that are there, known without asking the device
        self.hidden = weight.new_zeros(0, weight.shape[1])
        self.recorder = recorder
        self.experts: Sequence[np.ndarray] = ()  # (layers, k) of each row's last frame

    def logits(self) -> torch.Tensor:
        """(n, V) float32 of each row's next first code."""
        logits: torch.Tensor = self.inner.codec_head(self.hidden).float()
        return logits

    def prefill(self, prompts: Sequence[int]) -> None:
        """Compute prefixes in one forward, in the place of those that there were.

        Right-padded, so causal attention needs no mask.
        """
        self.prefixes.clear()
        inputs, streams = [], []
        for i in prompts:
            spoken = self.conditionings[i]
            text_RH = projected(self.inner, text_rows(spoken), None if spoken.heard is None else heard_rows(spoken))
            codec = prefix_codec(spoken, self.specials).to(self.device)
            inputs.append(code_embeddings(self.inner, codec[:, None]) + text_RH[prefix_text(spoken)])
            streams.append(text_RH[stream_text(spoken, len(spoken.reply) + 1)])
            assert PAD != EOS  # the stream's last row is the pad that repeats
        padded = pad_sequence(inputs, batch_first=True)
        positions = torch.arange(padded.shape[1], device=self.device).repeat(3, len(inputs), 1)
        if any(self.conditionings[i].position_ids is not None for i in prompts):
            positions = positions.float()
            for row, i in enumerate(prompts):
                if (placed := self.conditionings[i].position_ids) is not None:
                    positions[:, row, : placed.shape[1]] = placed.to(self.device)
        cache = DynamicCache()
        hidden = self.inner.model(inputs_embeds=padded, attention_mask=None, position_ids=positions,
                                  past_key_values=cache, use_cache=True).last_hidden_state
        chosen = self.recorder.taken().reshape(len(inputs), padded.shape[1], -1) if self.recorder else None
        for row, (i, prefix, stream) in enumerate(zip(prompts, inputs, streams, strict=True)):
            length = len(prefix)
            layers = [(layer.keys[row, :, :length], layer.values[row, :, :length]) for layer in cache.layers]
            self.prefixes[i] = _Prefix(layers, hidden[row, length - 1], length,
                                       self.conditionings[i].next_position - length, stream,
                                       b"" if chosen is None else chosen[row, :length].tobytes())

    def join(self, prompts: Sequence[int]) -> None:
        """Append a row for each of these prompts (prefilled before), at its first frame."""
        first = len(self.lengths)
        for i in dict.fromkeys(prompts):
            prefix = self.prefixes[i]
            rows = [first + k for k, prompt in enumerate(prompts) if prompt == i]
            index = torch.tensor(rows, device=self.device)
            self.cache.fill(rows, prefix.layers)
            self.stream[index, : len(prefix.stream)] = prefix.stream
            self.stream_last[index], self.steps[index] = len(prefix.stream) - 1, 0
            self.slots[index], self.ahead[index] = prefix.length, prefix.ahead
        self.lengths += [self.prefixes[i].length for i in prompts]
        self.hidden = torch.cat([self.hidden, *(self.prefixes[i].hidden[None] for i in prompts)])

    def feed(self, frames_nG: torch.Tensor) -> None:
        """Append a frame to every row, with its row of the stream."""
        n = len(self.lengths)
        self.lengths = [length + 1 for length in self.lengths]
        length = max(self.lengths)
        self.cache.reserve(length)
        at, rows = self.slots[:n], torch.arange(n, device=self.device)
        self.cache.place(at, length)
        inputs = code_embeddings(self.inner, frames_nG)
        inputs = inputs + self.stream[rows, torch.minimum(self.steps[:n], self.stream_last[:n])]
        unseen = torch.arange(length, device=self.device) > at[:, None]
        mask = torch.zeros(unseen.shape, dtype=self.dtype, device=self.device)
        mask = mask.masked_fill_(unseen, torch.finfo(self.dtype).min)[:, None, None]  # added to the scores
        positions = (at + self.ahead[:n])[:, None].expand(3, n, 1)
        self.hidden = self.inner.model(
            inputs_embeds=inputs[:, None], attention_mask=mask, position_ids=positions,
            past_key_values=self.cache, use_cache=True,
        ).last_hidden_state[:, -1]
        self.experts = list(self.recorder.taken()) if self.recorder else ()
        self.steps[:n] += 1
        self.slots[:n] += 1

    def leave(self, moves: Sequence[tuple[int, int]], left: int) -> None:
        """Copy rows over others (from, to), then keep the first ``left``."""
        if moves:
            source, target = (torch.tensor(x, device=self.device) for x in zip(*moves, strict=True))
            self.cache.move(source, target, max(self.lengths))
            for tensor in (self.stream, self.stream_last, self.steps, self.slots, self.ahead, self.hidden):
                tensor[target] = tensor[source]
        for a, b in moves:
            self.lengths[b] = self.lengths[a]
        self.lengths, self.hidden = self.lengths[:left], self.hidden[:left]


class FramePredictor:
    """The code predictor, one residual code of all rows after the other.

    Args:
        inner: the transformers Talker.
        hidden_nH: the states that predicted the frames' first codes.
        first_n: those codes.
    """

    def __init__(self, inner: Any, hidden_nH: torch.Tensor, first_n: torch.Tensor) -> None:
        self.predictor, self.cache, self.at = inner.code_predictor, DynamicCache(), 0
        self._read(torch.stack([hidden_nH, inner.model.codec_embedding(first_n)], dim=1))

    def logits(self) -> torch.Tensor:
        """(n, C) float32 of the next residual code."""
        logits: torch.Tensor = self.predictor.lm_head[self.at](self.hidden).float()
        return logits

    def feed(self, codes_n: torch.Tensor) -> None:
        """Append a residual code to every row."""
        self._read(self.predictor.model.codec_embedding[self.at](codes_n)[:, None])
        self.at += 1

    def _read(self, inputs_nLH: torch.Tensor) -> None:
        start = 0 if not self.at and not self.cache.layers else self.at + 2
        positions = torch.arange(start, start + inputs_nLH.shape[1], device=inputs_nLH.device)[None]
        self.hidden = self.predictor.model(inputs_embeds=inputs_nLH, position_ids=positions, use_cache=True,
                                           past_key_values=self.cache).last_hidden_state[:, -1]
