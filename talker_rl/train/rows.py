"""What an objective is given: numbers of S sequences, one a step (a frame, or the stop), and who belongs together.

    S  sequences        T  steps of the longest
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from talker_rl.losses.types import Share

CHOSEN, REJECTED = 0, 1
"""Values of ``side_S``. A completion is chosen and has no rejected beside it."""


@dataclass
class Rows:
    """S sequences of one batch, chosen first. Log-probs are natural, float32, and 0 at padding."""

    logps_ST: Tensor
    """(S, T) the policy's, with their graph."""
    mask_ST: Tensor
    """(S, T) bool: True on steps, the stop included."""
    ref_logps_ST: Tensor | None
    """(S, T) the reference's, without a graph; None where the objective needs none and none were given."""
    behaviour_logps_ST: Tensor | None
    """(S, T) of the distribution that was really sampled from, as it was recorded; None where that is not known."""
    group_S: Tensor
    """(S,) int64 in [0, N): sequences of one group are compared: a pair, or a prompt's candidates."""
    side_S: Tensor
    """(S,) int64: CHOSEN or REJECTED."""
    stopped_S: Tensor | None = None
    """(S,) bool: the last step is the stop (False: the sequence was cut); None: all were."""
    class_ST: Tensor | None = None
    """(S, T) int64: what a step says, as a place in ``token_classes.CLASSES``; None where it is not known."""
    advantage_ST: Tensor | None = None
    """(S, T) float32, one number a step (a number a sequence is repeated); None where none was computed."""
    weight_ST: Tensor | None = None
    """(S, T) float32, what a step counts for; None is 1 everywhere."""
    imitate_S: Tensor | None = None
    """(S,) float32: what a sequence counts for where samples are imitated."""
    mean_steps: float | None = None
    """Mean steps of a sequence over all batches of this optimizer step; None: this batch is all of it."""
    fresh: bool = False
    """Whether the policy is the one that these were sampled from."""
    generator: torch.Generator | None = None
    """Source of draws, seeded by the step and the groups of the whole batch: a resumed training draws alike."""
    share: Share | None = None
    """Where these groups stand in a batch that several processes share; None: this is all of it."""

    def of(self, side: int) -> Tensor:
        """(n,) places of a side's sequences, in order."""
        return torch.nonzero(self.side_S == side)[:, 0]
