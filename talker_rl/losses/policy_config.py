"""Configurations of policy-gradient losses: what becomes of samples and their advantages. TRL's names (``GRPOConfig``).

This module does not import torch.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from talker_rl.losses.config import Finite, LossConfig, MixLossConfig, SFTLossConfig, parts_of, register


class PolicyLossConfig(LossConfig):
    """A loss of a policy's own samples, each step of which has an advantage."""

    implementation = "talker_rl.losses.policy_gradient:policy_gradient_loss"
    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = False

    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = Field(
        "dapo", description="What a step's loss is divided by. dapo: the steps of all sequences of an optimizer step. "
        "grpo: its sequence's steps, then by the sequences (long sequences count less a step). bnpo: the steps of the "
        "batch of a forward, so that the figure hangs on its size. dr_grpo: a constant, max_completion_length times "
        "the sequences (nothing hangs on lengths)."
    )
    max_completion_length: int | None = Field(
        None, ge=1, description="Of dr_grpo: steps. null: rollouts.sampling.max_new_tokens."
    )
    epsilon: float = Field(0.2, ge=0, lt=1, description="Clip: below 1 - epsilon a step whose advantage is negative is "
                           "pushed down no further.")
    epsilon_high: float | None = Field(None, ge=0, description="Clip above 1 + epsilon_high; null: epsilon.")
    delta: float | None = Field(
        None, gt=1, description="Dual clip: no ratio above this counts where the advantage is negative; null is off."
    )
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="Ratios of single steps, or of whole sequences, their geometric mean a step (GSPO)."
    )
    beta: float = Field(0.0, ge=0, allow_inf_nan=False, description="Coefficient of the KL to the reference, k3 a "
                        "step.")
    stop: Literal["as_sequence", "drop"] = Field(
        "as_sequence", description="The stop has its sequence's advantage, or none: a length preference of the reward "
        "is learned first on it."
    )

    @model_validator(mode="after")
    def _sound(self) -> PolicyLossConfig:
        if self.epsilon_high is not None and self.epsilon_high < self.epsilon:
            raise ValueError(f"epsilon_high {self.epsilon_high:g} is below epsilon {self.epsilon:g}: it is there to "
                             "clip later above 1")
        if self.delta is not None and self.delta <= 1 + self.high:
            raise ValueError(f"delta {self.delta:g} lies within the clip, 1 + {self.high:g}: give more")
        return self

    @property
    def high(self) -> float:
        """The upper clip."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


@register
class GRPOLossConfig(PolicyLossConfig):
    """GRPO (Shao et al. 2024, eq. 3), averaged over steps unless said otherwise."""

    type: Literal["grpo"] = "grpo"


@register
class GSPOLossConfig(PolicyLossConfig):
    """GSPO (Zheng et al. 2025, eq. 5): ratios and clips of whole sequences, each sequence counting alike."""

    type: Literal["gspo"] = "gspo"
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "grpo"
    importance_sampling_level: Literal["token", "sequence"] = "sequence"
    epsilon: float = Field(3e-4, ge=0, lt=1)
    epsilon_high: float | None = Field(4e-4, ge=0)


@register
class DAPOLossConfig(PolicyLossConfig):
    """DAPO (Yu et al. 2025, eq. 8): the mean over all steps, and a higher upper clip. Groups without spread are sampled
    again where ``online.refill`` says so."""

    type: Literal["dapo"] = "dapo"
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    epsilon_high: float | None = Field(0.28, ge=0)


@register
class ReinforceLossConfig(LossConfig):
    """REINFORCE (Williams 1992): -A log pi, no ratio and no clip; the sum over all steps of an optimizer step,
    divided by their number, so that its scale is a step's. Its baseline is the advantages': with ``leave_one_out`` it
    is RLOO (Ahmadian et al. 2024)."""

    aliases = ("rloo",)
    implementation = "talker_rl.losses.policy_gradient:reinforce_loss"
    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = False
    type: Literal["reinforce"] = "reinforce"
    beta: Finite = Field(0.0, ge=0, description="Coefficient of the KL to the reference, k3 a step.")
    stop: Literal["as_sequence", "drop"] = Field("as_sequence", description="As of grpo.")


def learned_from(loss: LossConfig) -> Literal["samples", "pairs", "completions"]:
    """What a loss is given: samples with an advantage for each step, pairs, or completions to imitate.

    Raises:
        ValueError: a mixture of a policy gradient and a loss of pairs.
    """
    parts = [part for part in parts_of(loss) if not isinstance(part, MixLossConfig)]
    if any(isinstance(part, PolicyLossConfig | ReinforceLossConfig) for part in parts):
        strangers = [part.type for part in parts if not isinstance(part, PolicyLossConfig | ReinforceLossConfig |
                                                                   SFTLossConfig)]
        if strangers:
            raise ValueError(f"{strangers[0]} is no loss of samples: beside a policy gradient only sft can be mixed, "
                             "which then imitates the best candidate of each group")
        return "samples"
    return "pairs" if any(part.needs_rejected for part in parts) else "completions"
