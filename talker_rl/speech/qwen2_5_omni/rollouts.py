"""Rollouts: sampled sequences of codes, batched across prompts with a KV cache.

Departures from ``generate``: codes and log-probs are returned; every candidate draws from its own seed; the codec-bos
and codec-pad embeddings are added here, so padding changes nothing (transformers 5.23 drops them where there is none);
a prompt's prefix is computed once for all its candidates; a candidate that ended leaves its row to the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from talker_rl.records.candidate import Candidate
from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.head import selective_logps
from talker_rl.speech.qwen2_5_omni.codec import CODEC
from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning
from talker_rl.speech.qwen2_5_omni.decoder import Decoder
from talker_rl.speech.qwen2_5_omni.layout import code_ids
from talker_rl.speech.rows import Rows, Sampled, sample_all
from talker_rl.speech.sampling import CodeSampler

STEPS_UNSEEN = 16
"""On an accelerator, steps between two looks at what was said: each look waits for the device. A row that ended goes on
meanwhile, unread. A CPU looks after every step."""


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
    ended: Callable[[list[Candidate]], None] | None = None,
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
        ended: called with candidates as they end.

    Raises:
        DataError: numbers of conditionings and seed lists differ.
        StageError: the Talker gives logits that are not finite.
    """
    def rows_of(inner: Any, queue: list[Sampled], count: int) -> Rows:
        decoder = Decoder(inner, conditionings, count, cuda_graphs=cuda_graphs)
        on_cpu = decoder.device.type == "cpu"
        sampler = CodeSampler(sampling, code_ids(inner), decoder.device, narrow=on_cpu)
        rows = _CodeRows(decoder, sampler, queue, count, sampling.max_new_tokens)
        rows.steps_unseen = steps_unseen or (1 if on_cpu else STEPS_UNSEEN)
        return rows

    return sample_all(talker, conditionings, seeds, batch_size, CODEC, progress, ended, rows_of)


class _CodeRows(Rows):
    """A step is one code."""

    steps_unseen = 1

    def run(self) -> list[Sampled]:
        """Step up to the next look, then let the waiting take the rows of those that ended; returns the
        latter."""
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
        over = [self.here[row] for row in ended]
        chosen = self.pass_on(ended, said[-1][0])
        if self.here:
            self.decoder.feed(chosen)
        self.fill()
        return over

    def _look(self, said: list[tuple[torch.Tensor, ...]]) -> list[int]:
        """Write down what the rows said since the last look; returns the rows that ended."""
        ids, raw, processed = (torch.stack(column, dim=1).tolist() for column in zip(*said, strict=True))
        ended = []
        for row, sequence in enumerate(self.here):
            for code, logp, processed_logp in zip(ids[row], raw[row], processed[row], strict=True):
                sequence.say(logp, processed_logp)
                if code in self.sampler.stop_ids:
                    sequence.stop_id = code
                elif code >= CODEC.sizes[0]:
                    sequence.forget_invalid()
                else:
                    sequence.codes.append(code)
                if sequence.over or len(sequence.raw) == self.max_new_tokens:
                    ended.append(row)
                    break
        return ended
