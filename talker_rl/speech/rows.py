"""The batch of rollouts: sequences that are being sampled, those that wait for a row, and how rows pass between them.

A prompt's prefix is computed once for all its candidates, and a candidate that ended leaves its row to the next one.
What a step is, and what is written down of it, is the family's.
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
from talker_rl.records.codec import Codec
from talker_rl.speech.row_cache import moves_of
from talker_rl.speech.sampling import CodeSampler, Histories
from talker_rl.speech.unwrap import unwrap_talker

PREFILL_PROMPTS = 16
"""Prefixes computed in one forward, and about as many are kept."""


@dataclass
class Sampled:
    """One candidate while it is sampled: its codes, and the log-probs of its steps."""

    prompt: int
    """Index of its conditioning."""
    candidate_id: str
    seed: int
    codes: list[int] = field(default_factory=list)
    stop_id: int | None = None
    raw: list[float] = field(default_factory=list)
    processed: list[float] = field(default_factory=list)
    invalid: bool = False
    """Whether an id ended it that is neither a code nor a stop; that one is not written down."""
    experts: list[bytes] = field(default_factory=list)
    """What routers chose, for families that write it down."""

    def say(self, raw: float, processed: float) -> None:
        """Write down the log-probs of a step.

        Raises:
            StageError: they are not finite.
        """
        if not math.isfinite(raw):
            raise StageError(
                "the Talker's logits are not finite",
                where=f"candidate {self.candidate_id}, step {len(self.raw)}",
                fix="check the checkpoint (a diverged training?) and the precision (float16 overflows)",
            )
        self.raw.append(raw)
        self.processed.append(processed)

    def forget_invalid(self) -> None:
        """The last step was neither a code nor a stop: it ends the sequence and is no part of it."""
        self.invalid = True
        self.raw.pop()
        self.processed.pop()

    @property
    def over(self) -> bool:
        """Whether it has ended by itself."""
        return self.stop_id is not None or self.invalid

    def candidate(self, conditioning: Any, codec: Codec) -> Candidate:
        reason: EndReason = "max_tokens" if self.stop_id is None else "eos"
        reason = "empty" if not self.codes else "invalid_code" if self.invalid else reason
        return Candidate(
            prompt_id=conditioning.prompt_id,
            candidate_id=self.candidate_id,
            speaker=conditioning.speaker,
            seed=self.seed,
            codes=self.codes,
            stop_id=self.stop_id,
            end_reason=reason,
            token_logps=self.raw,
            processed_logps=self.processed,
            codec=codec.name,
            experts=b"".join(self.experts) or None,
        )


class Rows:
    """The rows of a batch, and the queue behind them. A family adds what a step is.

    Args:
        decoder: the family's: ``prefixes``, ``prefill``, ``join``, ``leave``.
        queue: in order of prompts.
        rows: most at a time.
        steps: most of a sequence.
    """

    def __init__(
        self, decoder: Any, sampler: CodeSampler, queue: Sequence[Sampled], rows: int, steps: int
    ) -> None:
        self.decoder, self.sampler, self.rows, self.max_new_tokens = decoder, sampler, rows, steps
        self.histories = Histories(sampler.start_ids, rows, steps, decoder.device)
        self.waiting = deque(queue)
        self.here: list[Sampled] = []

    def run(self) -> list[Sampled]:
        """Go on for a step or more, and let those that wait take the rows of those that ended; returns the latter."""
        raise NotImplementedError

    def pass_on(self, ended: Sequence[int], said: torch.Tensor) -> torch.Tensor:
        """Take rows out; returns what the others have said, (left, ...)."""
        if not ended:
            return said
        moves, left = moves_of(ended, len(self.here))
        self.move(moves, left)
        for a, b in moves:
            self.here[b], said[b] = self.here[a], said[a]
        self.here = self.here[:left]
        return said[:left]

    def move(self, moves: Sequence[tuple[int, int]], left: int) -> None:
        """Make moves (from, to) in everything that is kept by row."""
        self.decoder.leave(moves, left)
        self.histories.leave(moves, left)

    def fill(self) -> None:
        """Fill free rows from the queue. It is in order of prompts: a group of prefixes is used up, then the next."""
        prefixes = self.decoder.prefixes
        while self.waiting and len(self.here) < self.rows:
            if self.waiting[0].prompt not in prefixes:
                prompts = itertools.islice(dict.fromkeys(s.prompt for s in self.waiting), PREFILL_PROMPTS)
                self.decoder.prefill(list(prompts))
            new: list[Sampled] = []
            while self.waiting and len(self.here) + len(new) < self.rows and self.waiting[0].prompt in prefixes:
                new.append(self.waiting.popleft())
            self.begin(new)
            self.here += new

    def begin(self, new: Sequence[Sampled]) -> None:
        """Give the new ones what is kept by row."""
        self.decoder.join([s.prompt for s in new])
        self.histories.join([s.seed for s in new])


@torch.no_grad()
def sample_all(
    talker: Any, conditionings: Sequence[Any], seeds: Sequence[Sequence[int]], batch_size: int, codec: Codec,
    progress: Callable[[int, int], None] | None, ended: Callable[[list[Candidate]], None] | None,
    rows_of: Callable[[Any, list[Sampled], int], Rows],
) -> list[Candidate]:
    """A candidate for each seed, in order of prompt, then seed; the Talker is in eval mode meanwhile.

    Args:
        talker: with or without an adapter.
        conditionings: one per prompt.
        seeds: of each prompt's candidates.
        batch_size: candidates decoded together.
        progress: called with (candidates done, total).
        ended: called with candidates as they end.
        rows_of: the family's rows, from the bare Talker, the queue and the most rows at a time.

    Raises:
        DataError: numbers of conditionings and seed lists differ.
        StageError: the Talker gives logits that are not finite.
    """
    if len(conditionings) != len(seeds):
        raise DataError(f"{len(conditionings)} conditionings but {len(seeds)} lists of seeds")
    queue = [
        Sampled(i, f"{conditionings[i].prompt_id}-{k}", seed)
        for i, group in enumerate(seeds)
        for k, seed in enumerate(group)
    ]
    if not queue:
        return []
    inner = unwrap_talker(talker)
    was_training = inner.training
    inner.eval()
    try:
        rows, done = rows_of(inner, queue, min(batch_size, len(queue))), 0
        rows.fill()
        while done < len(queue):
            over = rows.run()
            done += len(over)
            if ended and over:
                ended([s.candidate(conditionings[s.prompt], codec) for s in over])
            if progress and over:
                progress(done, len(queue))
    finally:
        inner.train(was_training)
    return [s.candidate(conditionings[s.prompt], codec) for s in queue]
