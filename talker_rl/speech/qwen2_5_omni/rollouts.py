"""Rollouts: sampled sequences of codes, batched across prompts with a KV cache.

Departures from ``generate``: codes and log-probs are returned; every candidate draws from its own seed; the codec-bos
and codec-pad embeddings are added here, so padding changes nothing (transformers 5.23 drops them where there is none);
a prompt's prefix is computed once for all its candidates; a candidate that ended leaves its row to the next one.
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
from talker_rl.records.candidate import Candidate, EndReason
from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.head import selective_logps
from talker_rl.speech.qwen2_5_omni.codec import CODEC
from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning
from talker_rl.speech.qwen2_5_omni.decoder import Decoder
from talker_rl.speech.qwen2_5_omni.layout import code_ids, unwrap_talker
from talker_rl.speech.row_cache import moves_of
from talker_rl.speech.sampling import CodeSampler, Histories

PREFILL_PROMPTS = 16
"""Prefixes computed in one forward, and about as many are kept."""
STEPS_UNSEEN = 16
"""On an accelerator, steps between two looks at what was said: each look waits for the device. A row that ended goes on
meanwhile, unread. A CPU looks after every step."""


@torch.no_grad()
def sample_candidates(
    talker: Any,
    conditionings: Sequence[Conditioning],
    seeds: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    batch_size: int = 64,
    steps_unseen: int | None = None,
    cuda_graphs: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Candidate]:
    """Sample ``len(seeds[i])`` candidates of conditioning i; in order of prompt, then seed.

    Args:
        talker: a Talker, with or without an adapter.
        conditionings: one per prompt.
        seeds: the seeds of each prompt's candidates.
        sampling: options.
        batch_size: candidates decoded together.
        steps_unseen: steps between two looks at what was said; None: 1 on a CPU, else ``STEPS_UNSEEN``.
        cuda_graphs: on a GPU, replay the decoder's steps as CUDA graphs.
        progress: called with (candidates done, total).

    Raises:
        DataError: numbers of conditionings and seed lists differ.
        StageError: the Talker gives logits that are not finite.
    """
    if len(conditionings) != len(seeds):
        raise DataError(f"{len(conditionings)} conditionings but {len(seeds)} lists of seeds")
    sequences = [
        _Sequence(i, f"{conditionings[i].prompt_id}-{k}", seed)
        for i, group in enumerate(seeds)
        for k, seed in enumerate(group)
    ]
    if not sequences:
        return []
    inner = unwrap_talker(talker)
    was_training = inner.training
    inner.eval()
    try:
        count = min(batch_size, len(sequences))
        decoder = Decoder(inner, conditionings, count, cuda_graphs=cuda_graphs)
        rows = _Rows(decoder, sequences, sampling, count, steps_unseen)
        done = 0
        while done < len(sequences):
            ended = rows.run()
            done += ended
            if progress and ended:
                progress(done, len(sequences))
    finally:
        inner.train(was_training)
    return [s.candidate(conditionings[s.prompt], rows.sampler.stop_ids) for s in sequences]


@dataclass
class _Sequence:
    """Sampled ids of one candidate with their log-probs, the last one a stop or an invalid id unless it was cut."""

    prompt: int
    """Index of its conditioning."""
    candidate_id: str
    seed: int
    ids: list[int] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    processed: list[float] = field(default_factory=list)

    def candidate(self, conditioning: Conditioning, stop_ids: tuple[int, ...]) -> Candidate:
        last, keep = self.ids[-1], len(self.ids)
        stop_id: int | None = None
        reason: EndReason = "max_tokens"
        codes = self.ids
        if last in stop_ids:
            stop_id, codes, reason = last, self.ids[:-1], "eos"
        elif last >= CODEC.sizes[0]:
            codes, keep, reason = self.ids[:-1], keep - 1, "invalid_code"
        return Candidate(
            prompt_id=conditioning.prompt_id,
            candidate_id=self.candidate_id,
            speaker=conditioning.speaker,
            seed=self.seed,
            codes=codes,
            stop_id=stop_id,
            end_reason=reason if codes else "empty",
            token_logps=self.raw[:keep],
            processed_logps=self.processed[:keep],
            codec=CODEC.name,
        )


class _Rows:
    """The batch: sequences that are being sampled, and those that wait for a row."""

    def __init__(
        self,
        decoder: Decoder,
        sequences: Sequence[_Sequence],
        sampling: SamplingConfig,
        rows: int,
        steps_unseen: int | None,
    ) -> None:
        on_cpu = decoder.device.type == "cpu"
        self.decoder, self.steps_unseen = decoder, steps_unseen or (1 if on_cpu else STEPS_UNSEEN)
        self.sampler = CodeSampler(sampling, code_ids(decoder.inner), decoder.device, narrow=on_cpu)
        self.histories = Histories(self.sampler.start_ids, rows, sampling.max_new_tokens, decoder.device)
        self.max_new_tokens, self.rows = sampling.max_new_tokens, rows
        self.waiting = deque(sequences)
        self.here: list[_Sequence] = []
        self._join()

    def run(self) -> int:
        """Step up to the next look, then let the waiting take the rows of those that ended; returns how many did."""
        said: list[tuple[torch.Tensor, ...]] = []
        for _ in range(min(self.steps_unseen, self.max_new_tokens - max(self.histories.steps))):
            if said:
                self.decoder.feed(said[-1][0])
            logits = self.decoder.logits()
            draws = self.histories.draws() if self.sampler.do_sample else None
            chosen, processed = self.sampler.choose(self.histories, logits, draws)
            said.append((chosen, selective_logps(logits, chosen), processed))
            self.histories.append(chosen)
        ended = self._look(said)
        chosen = said[-1][0]
        if ended:
            moves, left = moves_of(ended, len(self.here))
            self.decoder.leave(moves, left)
            self.histories.leave(moves, left)
            for a, b in moves:
                self.here[b], chosen[b] = self.here[a], chosen[a]
            self.here, chosen = self.here[:left], chosen[:left]
        if self.here:
            self.decoder.feed(chosen)
        self._join()
        return len(ended)

    def _look(self, said: list[tuple[torch.Tensor, ...]]) -> list[int]:
        """Write down what the rows said since the last look; returns the rows that ended."""
        ids, raw, processed = (torch.stack(column, dim=1).tolist() for column in zip(*said, strict=True))
        ended = []
        for row, sequence in enumerate(self.here):
            for code, logp, processed_logp in zip(ids[row], raw[row], processed[row], strict=True):
                if not math.isfinite(logp):
                    raise StageError(
                        "the Talker's logits are not finite",
                        where=f"candidate {sequence.candidate_id}, step {len(sequence.ids)}",
                        fix="check the checkpoint (a diverged training?) and the precision (float16 overflows)",
                    )
                sequence.ids.append(code)
                sequence.raw.append(logp)
                sequence.processed.append(processed_logp)
                stopped = code in self.sampler.stop_ids or code >= CODEC.sizes[0]
                if stopped or len(sequence.ids) == self.max_new_tokens:
                    ended.append(row)
                    break
        return ended

    def _join(self) -> None:
        """Fill free rows from the queue. It is in order of prompts: a group of prefixes is used up, then the next."""
        prefixes = self.decoder.prefixes
        while self.waiting and len(self.here) < self.rows:
            if self.waiting[0].prompt not in prefixes:
                prompts = itertools.islice(dict.fromkeys(s.prompt for s in self.waiting), PREFILL_PROMPTS)
                self.decoder.prefill(list(prompts))
            new: list[_Sequence] = []
            while self.waiting and len(self.here) + len(new) < self.rows and self.waiting[0].prompt in prefixes:
                new.append(self.waiting.popleft())
            self.decoder.join([s.prompt for s in new])
            self.histories.join([s.seed for s in new])
            self.here += new
