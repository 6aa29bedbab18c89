"""What goes into a loss and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Where the pairs of a :class:`PairBatch` stand in a batch that several processes share. A loss that draws, or
    divides by what the whole batch holds, needs it to give what one process would."""

    first: int
    """Place of the first of these pairs in the whole batch."""
    pairs: int
    """Pairs of the whole batch."""
    chosen_tokens: int
    """Tokens of all its chosen completions, EOS included."""
    longest: int
    """Tokens of its longest completion, EOS included."""


@dataclass
class PairBatch:
    """Per-token log-probabilities (natural log) of B pairs.

    Chosen and rejected may be padded to different widths (T_w, T_l) and on either side. What stands at padding is
    never read (NaN is fine) and gets a gradient of exactly 0. Nothing flows into the reference. Completions without a
    rejected have None in its three places; only a loss that compares nothing (sft) is given them.

    >>> build_loss({"type": "dpo"})(PairBatch(chosen, rejected, ref_chosen, ref_rejected, mask_w, mask_l))
    """

    policy_chosen_logps: Tensor
    """(B, T_w) float."""
    policy_rejected_logps: Tensor | None
    """(B, T_l) float; None where nothing is compared."""
    ref_chosen_logps: Tensor | None
    """(B, T_w) float, or None where the loss needs no reference."""
    ref_rejected_logps: Tensor | None
    """(B, T_l) float, or None where the loss needs no reference, or nothing is compared."""
    chosen_mask: Tensor
    """(B, T_w) bool, True on completion tokens, EOS included."""
    rejected_mask: Tensor | None
    """(B, T_l) bool, True on completion tokens, EOS included; None where nothing is compared."""
    generator: torch.Generator | None = None
    """Source of the draws of SamPO; None takes torch's global CPU generator."""
    share: Share | None = None
    """None: these pairs are the whole batch."""
    chosen_stop: Tensor | None = None
    """(B, T_w) bool, True on the stop, nowhere in a completion that was cut; None: the last completion token is it."""
    rejected_stop: Tensor | None = None
    """(B, T_l) bool, likewise."""
    chosen_classes: Tensor | None = None
    """(B, T_w) int64, places in ``talker_rl.records.token_classes.CLASSES``; needed where a loss has token_weights."""
    rejected_classes: Tensor | None = None
    """(B, T_l) int64, likewise."""

    def __post_init__(self) -> None:
        if (self.policy_rejected_logps is None) != (self.rejected_mask is None):
            raise ValueError("give both policy_rejected_logps and rejected_mask, or neither")
        if self.paired and (self.ref_chosen_logps is None) != (self.ref_rejected_logps is None):
            raise ValueError("give both ref_chosen_logps and ref_rejected_logps, or neither")
        for side in ("chosen", "rejected") if self.paired else ("chosen",):
            mask, policy = getattr(self, f"{side}_mask"), getattr(self, f"policy_{side}_logps")
            if mask.dtype != torch.bool:
                raise TypeError(f"{side}_mask must be bool, not {mask.dtype}: use mask.bool()")
            if mask.ndim != 2 or mask.shape[0] == 0:
                raise ValueError(f"{side}_mask must be (B, T) with B >= 1, not {tuple(mask.shape)}")
            stop = getattr(self, f"{side}_stop")
            if stop is not None and (stop.dtype != torch.bool or stop.shape != mask.shape):
                raise ValueError(f"{side}_stop must be bool and {tuple(mask.shape)}, as {side}_mask")
            if stop is not None and bool(((stop & ~mask) | (stop.cumsum(dim=1) > 1)).any()):
                raise ValueError(f"{side}_stop is True at padding, or on more than one token of a completion")
            for name in (f"policy_{side}_logps", f"ref_{side}_logps"):
                logps = getattr(self, name)
                if logps is None:
                    continue
                if logps.shape != mask.shape:
                    raise ValueError(f"{name} is {tuple(logps.shape)}, but {side}_mask is {tuple(mask.shape)}")
                if not logps.is_floating_point():
                    raise TypeError(f"{name} must be floating point, not {logps.dtype}")
            if policy.shape[0] != self.chosen_mask.shape[0]:
                raise ValueError(f"{self.chosen_mask.shape[0]} chosen, but {policy.shape[0]} rejected completions")

    @property
    def paired(self) -> bool:
        """Whether each chosen has a rejected beside it."""
        return self.rejected_mask is not None

    def __len__(self) -> int:
        return self.chosen_mask.shape[0]


@dataclass
class SampleBatch:
    """Per-step log-probabilities (natural log) of S samples of a policy, and what they are worth. All (S, T)."""

    logps: Tensor
    """The policy's, with their graph."""
    mask: Tensor
    """bool, True on steps, the stop included. What stands elsewhere is never read."""
    advantages: Tensor
    """float, a number a step: how much better than expected."""
    group: Tensor
    """(S,) int64 in [0, N): samples of one prompt."""
    old_logps: Tensor | None = None
    """Of the distribution that they were sampled from, as it was recorded. None: the policy is that distribution."""
    ref_logps: Tensor | None = None
    """The reference's, where a loss has a KL to it."""
    weights: Tensor | None = None
    """float, what a step counts for beside its advantage (importance correction, filters); None: 1."""
    stop: Tensor | None = None
    """bool, True on the stop; None: the last step of each is it."""
    mean_steps: float | None = None
    """Mean steps of a sequence over all batches of this optimizer step; None: this batch is all of it."""
    imitate: Tensor | None = None
    """(S,) float, what a sample counts for in a term that imitates (sft), such that the mean over all samples of an
    optimizer step is that over those that are imitated; None: no sample is."""

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool or self.mask.ndim != 2:
            raise TypeError(f"mask must be (S, T) bool, not {tuple(self.mask.shape)} {self.mask.dtype}")
        for name in ("logps", "advantages", "old_logps", "ref_logps", "weights", "stop"):
            value = getattr(self, name)
            if value is not None and value.shape != self.mask.shape:
                raise ValueError(f"{name} is {tuple(value.shape)}, but mask is {tuple(self.mask.shape)}")
        if self.group.shape != self.mask.shape[:1]:
            raise ValueError(f"group is {tuple(self.group.shape)}, but there are {len(self.mask)} samples")


@dataclass
class LossOutput:
    """What a loss returns."""

    loss: Tensor
    """Scalar; the mean of ``per_pair`` over the pairs that count."""
    per_pair: Tensor
    """(B,) loss of each pair."""
    margin: Tensor
    """(B,) argument of the log-sigmoid; for hinge and IPO what the loss compares with its target; 0 for SFT."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars under TRL's names."""
