"""Rollouts: sampled frames, batched across prompts with a KV cache.

Departures from ``generate``: log-probs are returned; every candidate draws from its own seed; a sequence that is cut
keeps its last frame, whose residual codes are drawn too; an immediate stop is a candidate without codes; a row that
stops earlier than its neighbors has the stream that it has alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from talker_rl.records.candidate import Candidate
from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.head import selective_logps
from talker_rl.speech.qwen3_omni.conditioning import Conditioning
from talker_rl.speech.qwen3_omni.config import ResidualSampling
from talker_rl.speech.qwen3_omni.decoder import Decoder, FramePredictor
from talker_rl.speech.qwen3_omni.experts import recording, replay
from talker_rl.speech.qwen3_omni.layout import code_ids, codec_of
from talker_rl.speech.qwen3_omni.sampling import FrameUniforms, ResidualSampler
from talker_rl.speech.rows import Rows, Sampled, sample_all
from talker_rl.speech.sampling import CodeSampler
from talker_rl.speech.unwrap import unwrap_talker


def sample_candidates(
    talker: Any,
    conditionings: Sequence[Conditioning],
    seeds: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    residual: ResidualSampling | None = None,
    *,
    residual_weight: float = 0.0,
    record_experts: bool = False,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
    ended: Callable[[list[Candidate]], None] | None = None,
) -> list[Candidate]:
    """Sample ``len(seeds[i])`` candidates of conditioning i; in order of prompt, then seed.

    Args:
        talker: a Talker, with or without an adapter.
        conditionings: one per prompt.
        seeds: the seeds of each prompt's candidates.
        sampling: options of codebook 0; ``max_new_tokens`` counts frames, the stop included.
        residual: options of the other codebooks.
        residual_weight: of their log-probs in a frame's.
        record_experts: write down in each candidate which experts it went through (:mod:`.experts`).
        batch_size: candidates decoded together.
        progress: called with (candidates done, total).
        ended: called with candidates as they end.

    Raises:
        DataError: numbers of conditionings and seed lists differ.
        StageError: the Talker gives logits that are not finite.
    """
    bare = unwrap_talker(talker)
    replay(bare, None)
    with recording(bare) if record_experts else nullcontext() as recorder:

        def rows_of(inner: Any, queue: list[Sampled], count: int) -> Rows:
            return _FrameRows(inner, Decoder(inner, conditionings, count, recorder), queue, sampling,
                              residual or ResidualSampling(), count, residual_weight)

        return sample_all(talker, conditionings, seeds, batch_size, codec_of(talker), progress, ended, rows_of)


class _FrameRows(Rows):
    """A step is a frame: codebook 0 by the Talker, the others by its code predictor."""

    def __init__(
        self, inner: Any, decoder: Decoder, queue: Sequence[Sampled], sampling: SamplingConfig,
        residual: ResidualSampling, rows: int, residual_weight: float,
    ) -> None:
        device, steps = decoder.device, sampling.max_new_tokens
        sampler = CodeSampler(sampling, code_ids(inner), device, narrow=device.type == "cpu")
        super().__init__(decoder, sampler, queue, rows, steps)
        self.inner, self.weight, self.codec = inner, residual_weight, codec_of(inner)
        self.residual = ResidualSampler(residual, sampling.do_sample)
        self.uniforms = FrameUniforms(rows, steps, self.codec.groups, device)

    def begin(self, new: Sequence[Sampled]) -> None:
        super().begin(new)
        self.uniforms.join(len(self.here), [s.seed for s in new])
        for sequence in new:
            sequence.experts = [self.decoder.prefixes[sequence.prompt].experts]

    def move(self, moves: Sequence[tuple[int, int]], left: int) -> None:
        super().move(moves, left)
        self.uniforms.leave(moves)

    def run(self) -> list[Sampled]:
        """A frame of every row, then let the waiting take the rows of those that ended; returns the
        latter."""
        draws_nG = self.uniforms.of(self.histories.steps)
        logits = self.decoder.logits()
        first_n, processed_n = self.sampler.choose(self.histories, logits, self._drawn(draws_nG[:, 0]))
        said = (first_n, selective_logps(logits, first_n), processed_n)
        for sequence, code, raw, processed in zip(self.here, *(x.tolist() for x in said), strict=True):
            sequence.say(raw, processed)
            if code in self.sampler.stop_ids:
                sequence.stop_id = code
        self.histories.append(first_n)
        frames_nG = first_n[:, None]
        if not all(sequence.over for sequence in self.here):
            # rows that stopped draw in vain: their first code is no frame's
            frames_nG = self._frames(first_n.masked_fill(first_n >= self.codec.sizes[0], 0), draws_nG)
        ended = [row for row, s in enumerate(self.here) if s.over or len(s.raw) == self.max_new_tokens]
        over = [self.here[row] for row in ended]
        frames_nG = self.pass_on(ended, frames_nG)
        if self.here:
            self.decoder.feed(frames_nG)
            for sequence, chosen in zip(self.here, self.decoder.experts, strict=False):
                sequence.experts.append(chosen.tobytes())
        self.fill()
        return over

    def _drawn(self, uniforms_n: torch.Tensor) -> torch.Tensor | None:
        return uniforms_n if self.sampler.do_sample else None

    def _frames(self, first_n: torch.Tensor, draws_nG: torch.Tensor) -> torch.Tensor:
        """Draw the residual codes and write the frames down; (n, G)."""
        predictor, codes = FramePredictor(self.inner, self.decoder.hidden, first_n), [first_n]
        raw = torch.zeros(len(first_n), device=first_n.device)
        processed = raw.double()
        for k in range(1, self.codec.groups):
            logits = predictor.logits()
            code_n, processed_n = self.residual.choose(logits, self._drawn(draws_nG[:, k]))
            raw, processed = raw + selective_logps(logits, code_n), processed + processed_n
            codes.append(code_n)
            if k < self.codec.groups - 1:
                predictor.feed(code_n)
        frames = torch.stack(codes, dim=1)
        for sequence, frame, more, more_processed in zip(self.here, frames.tolist(), raw.tolist(), processed.tolist(),
                                                         strict=True):
            if sequence.stop_id is None:
                sequence.codes += frame
                sequence.raw[-1] += self.weight * more
                sequence.processed[-1] += self.weight * more_processed
        return frames
