"""Rollouts: sampled frames, batched across prompts with a KV cache.

Departures from ``generate``: log-probs are returned; every candidate draws from its own seed; a sequence that is cut
keeps its last frame, whose residual codes are drawn too; an immediate stop is a candidate without codes; a row that
stops earlier than its neighbors has the stream that it has alone.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from talker_rl.base.errors import DataError, StageError
from talker_rl.records.candidate import Candidate
from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.head import selective_logps
from talker_rl.speech.qwen3_omni.codec import CODEC
from talker_rl.speech.qwen3_omni.conditioning import Conditioning
from talker_rl.speech.qwen3_omni.config import ResidualSampling
from talker_rl.speech.qwen3_omni.decoder import Decoder, FramePredictor
from talker_rl.speech.qwen3_omni.layout import code_ids
from talker_rl.speech.qwen3_omni.sampling import FrameUniforms, ResidualSampler
from talker_rl.speech.row_cache import moves_of
from talker_rl.speech.sampling import CodeSampler, Histories
from talker_rl.speech.unwrap import unwrap_talker

PREFILL_PROMPTS = 16
"""Prefixes computed in one forward, and about as many are kept."""


@torch.no_grad()
def sample_candidates(
    talker: Any,
    conditionings: Sequence[Conditioning],
    seeds: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    residual: ResidualSampling | None = None,
    *,
    residual_weight: float = 0.0,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[Candidate]:
    """Sample ``len(seeds[i])`` candidates of conditioning i; in order of prompt, then seed.

    Args:
        talker: a Talker, with or without an adapter.
        conditionings: one per prompt.
        seeds: the seeds of each prompt's candidates.
        sampling: options of codebook 0; ``max_new_tokens`` counts frames, the stop included.
        residual: options of the other codebooks.
        residual_weight: of their log-probs in a frame's.
        batch_size: candidates decoded together.
        progress: called with (candidates done, total).

    Raises:
        DataError: numbers of conditionings and seed lists differ.
        StageError: the Talker gives logits that are not finite.
    """
    if len(conditionings) != len(seeds):
        raise DataError(f"{len(conditionings)} conditionings but {len(seeds)} lists of seeds")
    sequences = [_Sequence(i, f"{conditionings[i].prompt_id}-{k}", seed)
                 for i, group in enumerate(seeds) for k, seed in enumerate(group)]
    if not sequences:
        return []
    inner = unwrap_talker(talker)
    was_training = inner.training
    inner.eval()
    try:
        rows = _Rows(inner, conditionings, sequences, sampling, residual or ResidualSampling(),
                     min(batch_size, len(sequences)), residual_weight)
        done = 0
        while done < len(sequences):
            ended = rows.step()
            done += ended
            if progress and ended:
                progress(done, len(sequences))
    finally:
        inner.train(was_training)
    return [s.candidate(conditionings[s.prompt]) for s in sequences]


@dataclass
class _Sequence:
    """Sampled frames of one candidate, with the log-probs of its steps."""

    prompt: int
    """Index of its conditioning."""
    candidate_id: str
    seed: int
    codes: list[int] = field(default_factory=list)
    stop_id: int | None = None
    raw: list[float] = field(default_factory=list)
    processed: list[float] = field(default_factory=list)

    def candidate(self, conditioning: Conditioning) -> Candidate:
        return Candidate(
            prompt_id=conditioning.prompt_id,
            candidate_id=self.candidate_id,
            speaker=conditioning.speaker,
            seed=self.seed,
            codes=self.codes,
            stop_id=self.stop_id,
            end_reason="empty" if not self.codes else "max_tokens" if self.stop_id is None else "eos",
            token_logps=self.raw,
            processed_logps=self.processed,
            codec=CODEC.name,
        )


class _Rows:
    """The batch: sequences that are being sampled, and those that wait for a row."""

    def __init__(
        self, inner: Any, conditionings: Sequence[Conditioning], sequences: Sequence[_Sequence],
        sampling: SamplingConfig, residual: ResidualSampling, rows: int, residual_weight: float,
    ) -> None:
        self.inner, self.decoder = inner, Decoder(inner, conditionings, rows)
        device = self.decoder.device
        self.sampler = CodeSampler(sampling, code_ids(inner), device, narrow=device.type == "cpu")
        self.residual, self.weight = ResidualSampler(residual, sampling.do_sample), residual_weight
        self.max_new_tokens, self.rows = sampling.max_new_tokens, rows
        self.histories = Histories(self.sampler.start_ids, rows, self.max_new_tokens, device)
        self.uniforms = FrameUniforms(rows, self.max_new_tokens, CODEC.groups, device)
        self.waiting = deque(sequences)
        self.here: list[_Sequence] = []
        self._join()

    def step(self) -> int:
        """A frame of every row, then let the waiting take the rows of those that ended; returns how many did."""
        draws_nG = self.uniforms.of(self.histories.steps)
        logits = self.decoder.logits()
        first_n, processed_n = self.sampler.choose(self.histories, logits, self._drawn(draws_nG[:, 0]))
        raw_n = selective_logps(logits, first_n)
        self._say(first_n, raw_n, processed_n)
        stopped = [row for row, sequence in enumerate(self.here) if sequence.stop_id is not None]
        self.histories.append(first_n)
        frames_nG = first_n[:, None]
        if len(stopped) < len(self.here):  # rows that stopped draw in vain: their first code is no frame's
            frames_nG = self._frames(first_n.masked_fill(first_n >= CODEC.sizes[0], 0), draws_nG)
        ended = [row for row, s in enumerate(self.here)
                 if s.stop_id is not None or len(s.raw) == self.max_new_tokens]
        moves, left = moves_of(ended, len(self.here))
        if ended:
            self.decoder.leave(moves, left)
            self.histories.leave(moves, left)
            self.uniforms.leave(moves)
            for a, b in moves:
                self.here[b], frames_nG[b] = self.here[a], frames_nG[a]
            self.here, frames_nG = self.here[:left], frames_nG[:left]
        if self.here:
            self.decoder.feed(frames_nG)
        self._join()
        return len(ended)

    def _drawn(self, uniforms_n: torch.Tensor) -> torch.Tensor | None:
        return uniforms_n if self.sampler.do_sample else None

    def _say(self, first_n: torch.Tensor, raw_n: torch.Tensor, processed_n: torch.Tensor) -> None:
        """Write down codebook 0."""
        for sequence, code, raw, processed in zip(self.here, first_n.tolist(), raw_n.tolist(), processed_n.tolist(),
                                                  strict=True):
            if not math.isfinite(raw):
                raise StageError(
                    "the Talker's logits are not finite",
                    where=f"candidate {sequence.candidate_id}, step {len(sequence.raw)}",
                    fix="check the checkpoint (a diverged training?) and the precision (float16 overflows)",
                )
            sequence.raw.append(raw)
            sequence.processed.append(processed)
            if code in self.sampler.stop_ids:
                sequence.stop_id = code

    def _frames(self, first_n: torch.Tensor, draws_nG: torch.Tensor) -> torch.Tensor:
        """Draw the residual codes and write the frames down; (n, G)."""
        predictor, codes = FramePredictor(self.inner, self.decoder.hidden, first_n), [first_n]
        raw = torch.zeros(len(first_n), device=first_n.device)
        processed = raw.double()
        for k in range(1, CODEC.groups):
            logits = predictor.logits()
            code_n, processed_n = self.residual.choose(logits, self._drawn(draws_nG[:, k]))
            raw, processed = raw + selective_logps(logits, code_n), processed + processed_n
            codes.append(code_n)
            if k < CODEC.groups - 1:
                predictor.feed(code_n)
        frames = torch.stack(codes, dim=1)
        for sequence, frame, more, more_processed in zip(self.here, frames.tolist(), raw.tolist(), processed.tolist(),
                                                         strict=True):
            if sequence.stop_id is None:
                sequence.codes += frame
                sequence.raw[-1] += self.weight * more
                sequence.processed[-1] += self.weight * more_processed
        return frames

    def _join(self) -> None:
        """Fill free rows from the queue. It is in order of prompts: a group of prefixes is used up, then the next."""
        prefixes = self.decoder.prefixes
        while self.waiting and len(self.here) < self.rows:
            if self.waiting[0].prompt not in prefixes:
                self.decoder.prefill(list(itertools.islice(dict.fromkeys(s.prompt for s in self.waiting),
                                                           PREFILL_PROMPTS)))
            new: list[_Sequence] = []
            while self.waiting and len(self.here) + len(new) < self.rows and self.waiting[0].prompt in prefixes:
                new.append(self.waiting.popleft())
            self.decoder.join([s.prompt for s in new])
            self.histories.join([s.seed for s in new])
            self.uniforms.join(len(self.here), [s.seed for s in new])
            self.here += new
