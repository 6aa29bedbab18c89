"""What training makes smaller: objectives over :class:`~talker_rl.train.rows.Rows`; each says what it needs."""

from __future__ import annotations

from typing import Protocol

import torch

from talker_rl.base.errors import TrainingError
from talker_rl.losses.build import Loss
from talker_rl.losses.config import parts_of
from talker_rl.losses.ops import last_tokens
from talker_rl.losses.types import LossOutput, PairBatch, SampleBatch
from talker_rl.train.rows import CHOSEN, REJECTED, Rows

ON_POLICY = 1e-4
"""Difference of a step's log-prob between sampling and training, in float32, from which something is wrong: rounding
leaves some 1e-5."""


class Objective(Protocol):
    """A loss of rows. ``LossOutput.per_pair`` and ``margin`` are (N,), one a group."""

    beta: float
    """Scale of the logged ``rewards/*``."""
    needs_reference: bool
    needs_behaviour: bool

    def __call__(self, rows: Rows) -> LossOutput: ...


class PairObjective:
    """A preference loss as an objective: a group is a pair, or for a loss that compares nothing a completion.

    Args:
        loss: what :func:`talker_rl.losses.build_loss` gave.
    """

    needs_behaviour = False

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.beta = float(getattr(loss.config, "beta", 1.0))
        self.needs_reference = loss.needs_reference

    def __call__(self, rows: Rows) -> LossOutput:
        chosen, rejected = rows.of(CHOSEN), rows.of(REJECTED)
        paired, ref = len(rejected) > 0, rows.ref_logps_ST
        stop_ST = None if rows.stopped_S is None else last_tokens(rows.mask_ST) & rows.stopped_S[:, None]
        return self.loss(PairBatch(
            policy_chosen_logps=rows.logps_ST[chosen],
            policy_rejected_logps=rows.logps_ST[rejected] if paired else None,
            ref_chosen_logps=None if ref is None else ref[chosen],
            ref_rejected_logps=ref[rejected] if paired and ref is not None else None,
            chosen_mask=rows.mask_ST[chosen],
            rejected_mask=rows.mask_ST[rejected] if paired else None,
            generator=rows.generator,
            share=rows.share,
            chosen_classes=None if rows.class_ST is None else rows.class_ST[chosen],
            rejected_classes=rows.class_ST[rejected] if paired and rows.class_ST is not None else None,
            chosen_stop=None if stop_ST is None else stop_ST[chosen],
            rejected_stop=stop_ST[rejected] if paired and stop_ST is not None else None,
        ))


class PolicyObjective:
    """A policy gradient as an objective: every sample is a group of its own.

    Args:
        loss: what :func:`talker_rl.losses.build_loss` gave.
    """

    beta = 1.0
    needs_behaviour = True

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.needs_reference = any(getattr(part, "beta", 0.0) for part in parts_of(loss.config))

    def __call__(self, rows: Rows) -> LossOutput:
        assert rows.behaviour_logps_ST is not None and rows.advantage_ST is not None
        stop_ST = None if rows.stopped_S is None else last_tokens(rows.mask_ST) & rows.stopped_S[:, None]
        return self.loss(SampleBatch(
            logps=rows.logps_ST, mask=rows.mask_ST, advantages=rows.advantage_ST, group=rows.group_S,
            old_logps=rows.behaviour_logps_ST, ref_logps=rows.ref_logps_ST, weights=rows.weight_ST, stop=stop_ST,
            mean_steps=rows.mean_steps, imitate=rows.imitate_S))


class OnPolicy:
    """An objective of samples that says, at staleness 0, how far log-probs of training are from those of sampling.

    Args:
        objective: what is made smaller.
        exact: whether the policy computes in float32, so that the two have to be equal while the policy is the one that
            was sampled from.
    """

    needs_behaviour = True

    def __init__(self, objective: Objective, *, exact: bool) -> None:
        self.objective, self.exact = objective, exact
        self.beta, self.needs_reference = objective.beta, objective.needs_reference

    def __call__(self, rows: Rows) -> LossOutput:
        """
        Raises:
            TrainingError: they differ though no step was taken between them.
        """
        out = self.objective(rows)
        if rows.fresh and rows.behaviour_logps_ST is not None:
            with torch.no_grad():
                apart = (rows.logps_ST - rows.behaviour_logps_ST).abs()[rows.mask_ST]
            out.metrics["sampling/logp_difference/mean"] = apart.mean()
            out.metrics["sampling/logp_difference/max"] = apart.max()
            if self.exact and float(apart.max()) > ON_POLICY:
                raise TrainingError(
                    f"log-probs of sampling and training differ by {float(apart.max()):.2g} on the same policy "
                    f"(mean {float(apart.mean()):.2g}): every ratio would be wrong", where="the first step after "
                    "sampling",
                    fix="talker-rl parity names the cause: another precision, attention or dropout in training")
        return out
