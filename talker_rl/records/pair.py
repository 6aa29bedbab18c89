"""What is learned from: pairs of candidates, and completions to imitate.

In a table a ``Speech`` is its ids, the stop last if it was said, beside the name of the codec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from talker_rl.base.ids import stable_hash
from talker_rl.records.speech import Speech


def pair_id_of(prompt_id: str, chosen: Sequence[int], rejected: Sequence[int]) -> str:
    """Id of a pair from its content."""
    return stable_hash("pair", prompt_id, list(chosen), list(rejected))[:16]


@dataclass
class Pair:
    """Chosen and rejected candidate of one prompt."""

    prompt_id: str
    pair_id: str
    text: str
    speaker: str
    chosen_id: str
    rejected_id: str
    chosen: Speech
    rejected: Speech
    chosen_reward: float
    rejected_reward: float
    margin: float
    chosen_classes: list[int] | None = None
    """What each step says, as a place in ``token_classes.CLASSES``; None where no loss asks for it."""
    rejected_classes: list[int] | None = None

    COLUMNS: ClassVar = {"chosen_seconds": float, "rejected_seconds": float}
    """What a table holds beside the fields."""

    @property
    def sides(self) -> tuple[Speech, ...]:
        """What was said: the chosen, then the rejected."""
        return self.chosen, self.rejected

    @property
    def chosen_seconds(self) -> float:
        """Duration of the chosen."""
        return self.chosen.seconds

    @property
    def rejected_seconds(self) -> float:
        """Duration of the rejected."""
        return self.rejected.seconds


@dataclass
class Completion:
    """Speech to imitate: a row of supervised training (TRL's prompt-completion data)."""

    prompt_id: str
    completion_id: str
    text: str
    speaker: str
    speech: Speech = field(metadata={"column": "codes"})
    """Always with its stop: codes that were cut would teach the Talker not to stop."""
    origin: str
    """A candidate's id, or ``<file>:<row>``."""
    reward: float | None = None
    """None where no scorer judged it."""
    rank: int | None = None
    """1 is the best candidate of its prompt; None for given codes."""
    best_of: int | None = None
    """Finished and scored candidates that it was chosen among."""

    COLUMNS: ClassVar = {"seconds": float}

    @property
    def pair_id(self) -> str:
        """Its id, under the name by which the trainer speaks of a record."""
        return self.completion_id

    @property
    def sides(self) -> tuple[Speech, ...]:
        """What was said: there is no rejected."""
        return (self.speech,)

    @property
    def seconds(self) -> float:
        """Duration of the speech."""
        return self.speech.seconds
