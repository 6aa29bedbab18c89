"""What is learned from: pairs of candidates, and completions to imitate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Pair:
    """Chosen and rejected candidate of one prompt. A completion to imitate has none to beat: its rejected is empty."""

    prompt_id: str
    pair_id: str
    text: str
    speaker: str
    chosen_id: str
    rejected_id: str
    chosen: list[int]
    """Codes with the stop id last if it was sampled: what masks, losses and lengths count."""
    rejected: list[int]
    chosen_reward: float
    rejected_reward: float
    margin: float
    chosen_seconds: float
    rejected_seconds: float


@dataclass
class Completion:
    """Codes to imitate: a row of supervised training (TRL's prompt-completion data)."""

    prompt_id: str
    completion_id: str
    text: str
    speaker: str
    codes: list[int]
    """With the stop id last, always: codes that were cut would teach the Talker not to stop."""
    seconds: float
    """Of speech, the stop not counted."""
    origin: str
    """A candidate's id, or ``<file>:<row>``."""
    reward: float | None = None
    """None where no scorer judged it."""
    rank: int | None = None
    """1 is the best candidate of its prompt; None for given codes."""
    best_of: int | None = None
    """Finished and scored candidates that it was chosen among."""

    def as_pair(self) -> Pair:
        """What the trainer takes: a pair without a rejected."""
        reward = self.reward or 0.0
        return Pair(self.prompt_id, self.completion_id, self.text, self.speaker, self.origin, "", self.codes, [],
                    reward, 0.0, 0.0, self.seconds, 0.0)
