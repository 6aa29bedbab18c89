"""Rollouts: sampled sequences of codes, batched across prompts with a KV cache.

Departures from ``generate``: codes and log-probs are returned; every candidate draws from its own seed; the codec-bos
and codec-pad embeddings are added here, so padding changes nothing (transformers 5.23 drops them where there is none);
rows that ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from talker_rl.data.records import NUM_CODES, Candidate, EndReason
from talker_rl.errors import DataError, StageError
from talker_rl.omni.conditioning import Conditioning
from talker_rl.omni.config import SamplingConfig
from talker_rl.omni.layout import prefix_inputs, unwrap_talker
from talker_rl.omni.logps import selective_logps
from talker_rl.omni.sampling import CodeSampler, Uniforms

COMPACT_SHARE = 0.1
"""Rows that ended are dropped once they are this share of the batch: dropping copies the cache, keeping computes."""


@torch.no_grad()
def sample_candidates(
    talker: Any,
    conditionings: Sequence[Conditioning],
    seeds: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[Candidate]:
    """Sample ``len(seeds[i])`` candidates of conditioning i; in order of prompt, then seed.

    Args:
        talker: a Talker, with or without an adapter.
        conditionings: one a prompt.
        seeds: the seeds of each prompt's candidates.
        sampling: options.
        batch_size: candidates decoded together.
        progress: called with (candidates done, total).

    Raises:
        DataError: numbers of conditionings and seed lists differ.
        StageError: the Talker gives logits that are not finite.
    """
    if len(conditionings) != len(seeds):
        raise DataError(f"{len(conditionings)} conditionings but {len(seeds)} lists of seeds")
    inner = unwrap_talker(talker)
    was_training = inner.training
    inner.eval()
    rows = [(i, k, seed) for i, group in enumerate(seeds) for k, seed in enumerate(group)]
    out: list[Candidate] = []
    try:
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            sequences = _sample_batch(inner, conditionings, chunk, sampling)
            for (i, k, seed), sequence in zip(chunk, sequences, strict=True):
                c = conditionings[i]
                out.append(sequence.candidate(c.prompt_id, f"{c.prompt_id}-{k}", c.speaker, seed))
            if progress:
                progress(len(out), len(rows))
    finally:
        inner.train(was_training)
    return out


class _Sequence:
    """Sampled ids of one candidate with their log-probs, the last one a stop or an invalid id unless it was cut."""

    def __init__(self, ids: list[int], raw: list[float], processed: list[float], stop_ids: tuple[int, ...]) -> None:
        self.ids, self.raw, self.processed, self.stop_ids = ids, raw, processed, stop_ids

    def candidate(self, prompt_id: str, candidate_id: str, speaker: str, seed: int) -> Candidate:
        last, keep = self.ids[-1], len(self.ids)
        stop_id: int | None = None
        reason: EndReason = "max_tokens"
        codes = self.ids
        if last in self.stop_ids:
            stop_id, codes, reason = last, self.ids[:-1], "eos"
        elif last >= NUM_CODES:
            codes, keep, reason = self.ids[:-1], keep - 1, "invalid_code"
        return Candidate(
            prompt_id=prompt_id,
            candidate_id=candidate_id,
            speaker=speaker,
            seed=seed,
            codes=codes,
            stop_id=stop_id,
            end_reason=reason if codes else "empty",
            token_logps=self.raw[:keep],
            processed_logps=self.processed[:keep],
        )


def _sample_batch(
    inner: Any, conditionings: Sequence[Conditioning], rows: list[tuple[int, int, int]], sampling: SamplingConfig
) -> list[_Sequence]:
    device = inner.codec_head.weight.device
    prompts = list(dict.fromkeys(i for i, _, _ in rows))
    decoder = _Decoder(inner, [conditionings[i] for i in prompts], device)
    decoder.select(torch.tensor([prompts.index(i) for i, _, _ in rows], device=device))
    sampler = CodeSampler(sampling, inner, device)
    uniforms = Uniforms([seed for _, _, seed in rows]) if sampling.do_sample else None
    stop = torch.tensor(sampler.stop_ids, device=device)

    alive = torch.arange(len(rows), device=device)  # which candidate each row of the decoder is
    done = torch.zeros(len(rows), dtype=torch.bool, device=device)  # by row of the decoder
    ids = sampler.start(len(rows), device)
    steps: list[tuple[torch.Tensor, ...]] = []
    for step in range(sampling.max_new_tokens):
        logits = decoder.logits()
        draws = uniforms.at(step, alive.cpu()).to(device) if uniforms else None
        chosen, processed = sampler.choose(ids, logits, draws)
        raw = selective_logps(logits, chosen)
        if not bool(torch.isfinite(raw[~done]).all()):
            raise StageError(
                "the Talker's logits are not finite",
                where=f"step {step}",
                fix="check the checkpoint (a diverged training?) and the precision (float16 overflows)",
            )
        steps.append((alive, chosen, raw, processed, done.clone()))
        done |= (chosen.unsqueeze(-1) == stop).any(-1) | (chosen >= NUM_CODES)
        if bool(done.all()) or step + 1 == sampling.max_new_tokens:
            break
        ids = torch.cat([ids, chosen.unsqueeze(-1)], dim=-1)
        if int(done.sum()) >= max(1, COMPACT_SHARE * len(done)):
            keep = (~done).nonzero().squeeze(-1)
            decoder.select(keep)
            ids, alive, done, chosen = ids[keep], alive[keep], done[keep], chosen[keep]
        # a row that ended and still is in the batch goes on with any code; nobody reads what follows
        decoder.feed(torch.where(done, 0, chosen))
    return _gather(steps, len(rows), sampler.stop_ids)


def _gather(steps: list[tuple[torch.Tensor, ...]], count: int, stop_ids: tuple[int, ...]) -> list[_Sequence]:
    out = [_Sequence([], [], [], stop_ids) for _ in range(count)]
    for alive, chosen, raw, processed, done in steps:
        columns = zip(alive.tolist(), chosen.tolist(), raw.tolist(), processed.tolist(), done.tolist(), strict=True)
        for row, code, logp, processed_logp, ended in columns:
            if not ended:
                out[row].ids.append(code)
                out[row].raw.append(logp)
                out[row].processed.append(processed_logp)
    return out


class _Decoder:
    """The Talker's decoder with its cache: one row a sequence, left-padded prefixes, explicit positions."""

    def __init__(self, inner: Any, conditionings: list[Conditioning], device: torch.device) -> None:
        self.inner = inner
        dtype = inner.codec_head.weight.dtype
        prefixes = [prefix_inputs(inner, c.prefix.to(device, dtype)) for c in conditionings]
        width = max(len(p) for p in prefixes)
        inputs = prefixes[0].new_zeros(len(prefixes), width, prefixes[0].shape[-1])
        mask = torch.zeros(len(prefixes), width, dtype=torch.long, device=device)
        for i, prefix in enumerate(prefixes):
            inputs[i, width - len(prefix) :], mask[i, width - len(prefix) :] = prefix, 1
        self.lengths = mask.sum(-1)  # position of the next input
        self.mask: torch.Tensor | None = mask if int(self.lengths.min()) < width else None
        self.reply_lengths = torch.tensor([len(c.reply_stream) for c in conditionings], device=device)
        self.reply = torch.nn.utils.rnn.pad_sequence(
            [c.reply_stream.to(device, dtype) for c in conditionings], batch_first=True
        )
        self.step = 0
        self.cache = DynamicCache(config=inner.model.config)
        self._forward(inputs, (mask.cumsum(-1) - 1).clamp(min=0))

    def _forward(self, inputs_BLE: torch.Tensor, positions_BL: torch.Tensor) -> None:
        self.hidden = self.inner.model(
            inputs_embeds=self.inner.thinker_to_talker_proj(inputs_BLE),
            attention_mask=self.mask,
            position_ids=positions_BL.expand(3, *positions_BL.shape),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

    def logits(self) -> torch.Tensor:
        """(B, V) float32 of the next code."""
        return self.inner.codec_head(self.hidden).float()

    def feed(self, codes_B: torch.Tensor) -> None:
        """Append the codes with their rows of the reply stream."""
        stream_row = torch.clamp(self.reply_lengths - 1, max=self.step)
        stream = self.reply[torch.arange(len(codes_B), device=codes_B.device), stream_row]
        inputs = self.inner.get_input_embeddings()(codes_B) + stream
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=-1)
        self._forward(inputs[:, None], self.lengths[:, None])
        self.lengths = self.lengths + 1
        self.step += 1

    def select(self, rows: torch.Tensor) -> None:
        """Keep (or repeat) these rows."""
        self.cache.batch_select_indices(rows)
        self.hidden, self.lengths = self.hidden[rows], self.lengths[rows]
        self.reply, self.reply_lengths = self.reply[rows], self.reply_lengths[rows]
        if self.mask is not None:
            self.mask = self.mask[rows]
