"""A policy that is being trained speaks, in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.protocol import Ended, Policy, SampleRequest, TalkerSequence

Row = dict[str, Any]


class LiveSampler:
    """
    Args:
        conditionings: by prompt id.
        batch_size: sequences of one forward.
    """

    def __init__(self, conditionings: Mapping[str, Any], batch_size: int) -> None:
        self._conditionings, self._batch_size = conditionings, batch_size

    def said(
        self, policy: Policy, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], maker: str,
        sampling: SamplingConfig, ended: Ended | None = None, first: Sequence[int] | None = None,
    ) -> list[Candidate]:
        """A candidate for each seed of each prompt, called ``<prompt>-<maker><number>``.

        Args:
            ended: called with candidates as they end.
            first: number of each prompt's first candidate; None: 0.
        """
        requests = [SampleRequest(self._conditionings[p.prompt_id], list(s)) for p, s in zip(prompts, seeds,
                                                                                            strict=True)]

        names = {(p.prompt_id, seed): f"{p.prompt_id}-{maker}{at + k}" for p, own, at in zip(
            prompts, seeds, first or [0] * len(prompts), strict=True) for k, seed in enumerate(own)}

        def named(made: Sequence[Candidate]) -> list[Candidate]:
            return [replace(c, candidate_id=names[c.prompt_id, c.seed]) for c in made]

        with self.speaking(policy):
            return named(policy.sample(requests, sampling, batch_size=self._batch_size,
                                       ended=None if ended is None else lambda over: ended(named(over))))

    def sequences(self, candidates: Sequence[Candidate]) -> list[TalkerSequence]:
        """For the policy to collate."""
        return [TalkerSequence(self._conditionings[c.prompt_id], c.speech) for c in candidates]

    def batches(self, candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
        """In parts of one forward."""
        for at in range(0, len(candidates), self._batch_size):
            yield candidates[at : at + self._batch_size]

    @contextmanager
    def speaking(self, policy: Policy) -> Iterator[None]:
        """Without gradient, in evaluation mode; afterwards as before."""
        training = policy.module.training
        policy.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            policy.module.train(training)
