"""Typed records that diagnostics are computed from: what ``pairs.parquet`` and ``samples.parquet`` hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PairRecord:
    """A pair under the policy of one training step. Log-probs are sums over a completion, its stop included."""

    step: int
    """0 is the reference."""
    pair_id: str
    prompt_id: str
    held_out: bool
    """Not trained on."""
    chosen_codes: int
    """The stop not counted, as in seconds."""
    rejected_codes: int
    chosen_seconds: float
    rejected_seconds: float
    chosen_reward: float
    rejected_reward: float
    policy_chosen_logp: float
    policy_rejected_logp: float
    ref_chosen_logp: float
    ref_rejected_logp: float
    margin_raw: float
    """Log-ratio of chosen minus log-ratio of rejected, without beta."""
    margin_common: float
    """The same over the common length: a fixed draw of the longer side's tokens, the same at every step."""


@dataclass
class ForcedPair(PairRecord):
    """A pair as ``parts/`` keeps it: with the log-prob of each token, the stop included, where what the loss pushes on
    is told at that step; elsewhere the lists are empty."""

    policy_chosen_logps: list[float]
    policy_rejected_logps: list[float]
    ref_chosen_logps: list[float]
    ref_rejected_logps: list[float]


@dataclass
class SampleRecord:
    """A fresh sample of the chosen policy: what it said in the evaluation."""

    prompt_id: str
    candidate_id: str
    step: int
    seconds: float
    codes: int
    units: int
    """Words (Chinese: characters) of the text."""
    end_reason: str
    policy_logp: float | None
    """None where nothing was sampled that has a log-prob."""
    ref_logp: float | None
    reward: float | None
    wer: float | None
    p_eos_last: list[float]
    """Probability of stopping at the last 10 positions; where the sample stopped, its stop's own is the last."""
    p_eos_early: float | None
    """Largest probability of stopping in the first half; None for fewer than two positions."""
