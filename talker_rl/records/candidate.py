"""Candidates: sampled sequences of codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from talker_rl.records.codec import CODE_RATE_HZ

EndReason = Literal["eos", "max_tokens", "invalid_code", "empty"]


@dataclass
class Candidate:
    """One sampled sequence of codes. Masks and losses include the stop, durations do not."""

    prompt_id: str
    candidate_id: str
    """``<prompt_id>-<k>``."""
    speaker: str
    seed: int
    codes: list[int]
    """Sampled ids < 8194, the stop id excluded (an invalid id that ended the sequence is excluded too)."""
    stop_id: int | None
    """The sampled stop id; None if the sequence was cut."""
    end_reason: EndReason
    token_logps: list[float]
    """Raw natural-log probabilities; len(codes) + 1 entries if stopped, the stop last."""
    processed_logps: list[float] = field(default_factory=list)
    """Log-probs under the processed sampling distribution, same length."""

    @property
    def duration(self) -> float:
        """Seconds of speech."""
        return len(self.codes) / CODE_RATE_HZ

    @property
    def codes_with_stop(self) -> list[int]:
        """Codes with the stop id last if it was sampled: what pairs, masks and losses count."""
        return with_stop(self.codes, self.stop_id)


def with_stop(codes: list[int], stop_id: int | None) -> list[int]:
    """Codes with the stop id last if it was sampled."""
    return codes + ([] if stop_id is None else [stop_id])
