"""Advantages of a group: how much better each of a prompt's candidates is than expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from talker_rl.base.settings import Settings

_EPS = 1e-4
"""Added to a standard deviation, as TRL does."""
SPREAD = 1e-6
"""A group whose rewards differ by no more says nothing."""


class AdvantageConfig(Settings):
    """From the rewards of a group to the advantages of its candidates."""

    baseline: Literal["mean", "leave_one_out", "running"] = Field(
        "mean", description="What a reward is measured against: the group's mean; the mean of the others (RLOO); a "
        "running mean over steps (REINFORCE)."
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="Divide by the standard deviation of the group's rewards, of those of the whole step, or "
        "not (Dr. GRPO: dividing weighs easy and hard prompts up)."
    )
    rewards: dict[str, float] = Field(
        default_factory=dict, description="Empty: the combined reward. Else names of score components to weights "
        "(minus: less is better): each is normalized within the group by itself, then summed (GDPO), so that one "
        "with a wide spread does not drown the others."
    )
    credit: Literal["sequence", "what_differs", "words"] = Field(
        "sequence", description="On which steps an advantage falls. sequence: on all. what_differs: on words and "
        "pauses that went wrong here, or went right here and wrong in others of the group. words: each word has an "
        "advantage of its own. The latter two need a recognizer that gives times."
    )
    sequence_share: float = Field(
        0.0, ge=0, description="With credit words: so much of the sequence's advantage on all steps besides."
    )

    @model_validator(mode="after")
    def _sound(self) -> AdvantageConfig:
        if self.baseline == "running" and self.scale_rewards == "group":
            raise ValueError("baseline: running measures groups against what came before, and scale_rewards: group "
                             "divides by their own spread, which is 0 where all is right: set scale_rewards: none, or "
                             "batch")
        if self.baseline == "running" and self.rewards:
            raise ValueError("baseline: running is of the combined reward, and rewards normalizes each by itself: "
                             "leave one of both out")
        return self


def advantages(
    groups: Sequence[Sequence[float]], cfg: AdvantageConfig, running: float | None = None
) -> list[np.ndarray]:
    """Advantage of each candidate of each group, float64.

    Args:
        groups: rewards of the candidates of each prompt of a step; of the worst where a candidate has none.
        running: mean reward of the steps before, where that is the baseline; None at the first.

    GRPO: Shao et al. 2024, eq. of 4.1.2; RLOO: Ahmadian et al. 2024, eq. 6.
    """
    centred = []
    for rewards in groups:
        r = np.asarray(rewards, dtype=np.float64)
        if cfg.baseline == "running":
            centred.append(r - (r.mean() if running is None else running))
        else:
            alone = len(r) / max(1, len(r) - 1) if cfg.baseline == "leave_one_out" else 1.0
            centred.append((r - r.mean()) * alone)
    if cfg.scale_rewards == "none":
        return centred
    if cfg.scale_rewards == "batch":
        sd = _sd(np.concatenate([np.asarray(r, dtype=np.float64) for r in groups]))
        return [values / (sd + _EPS) for values in centred]
    return [values / (_sd(np.asarray(r, dtype=np.float64)) + _EPS) for values, r in zip(centred, groups, strict=True)]


def decoupled(
    groups: Sequence[Sequence[Mapping[str, float]]], cfg: AdvantageConfig
) -> list[np.ndarray]:
    """Each reward normalized within its group by itself, then their weighted sum (GDPO).

    Args:
        groups: the components of each candidate, by name.
    """
    found = [np.zeros(len(group)) for group in groups]
    for name, weight in cfg.rewards.items():
        parts = advantages([[one[name] for one in group] for group in groups], cfg)
        found = [total + weight * part for total, part in zip(found, parts, strict=True)]
    return found


def says_something(rewards: Sequence[float]) -> bool:
    """Whether the rewards of a group differ."""
    return float(np.ptp(np.asarray(rewards, dtype=np.float64))) > SPREAD


def _sd(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
