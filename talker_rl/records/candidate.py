"""Candidates: sampled sequences of codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from talker_rl.records.codec import FIRST, codec_named
from talker_rl.records.speech import Speech

EndReason = Literal["eos", "max_tokens", "invalid_code", "empty"]


@dataclass
class Candidate:
    """One sampled sequence of codes. Masks and losses include the stop, durations do not.

    >>> candidate.speech.seconds, candidate.token_logps[-1]    # the stop's log-prob
    """

    prompt_id: str
    candidate_id: str
    """``<prompt_id>-<k>``."""
    speaker: str
    seed: int
    codes: list[int]
    """Ids that are sound (an invalid id that ended the sequence is left out, like the stop)."""
    stop_id: int | None
    """The sampled stop id; None if the sequence was cut."""
    end_reason: EndReason
    token_logps: list[float]
    """Raw natural-log probabilities, one a frame; one more if stopped, the stop's last."""
    processed_logps: list[float] = field(default_factory=list)
    """Log-probs under the processed sampling distribution, same length."""
    codec: str = FIRST
    """Name of the codec that the ids are of."""
    experts: bytes | None = field(default=None, repr=False)
    """See :class:`talker_rl.records.speech.Speech`."""

    @property
    def speech(self) -> Speech:
        """What was said."""
        return Speech(self.codes, self.stop_id, codec_named(self.codec), self.experts)

    @property
    def duration(self) -> float:
        """Seconds of speech."""
        return self.speech.seconds
