"""What an online training made of a candidate's score."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Valued:
    """The reward and the advantages that a candidate was trained with."""

    prompt_id: str
    candidate_id: str
    reward: float
    """After the rules for what was cut, failed or is out of proportion: then it is its group's worst."""
    advantage: float
    """Of the sequence, before it is spread."""
    steps: list[float]
    """Advantage of each step, the stop last; 0 where no credit falls."""
