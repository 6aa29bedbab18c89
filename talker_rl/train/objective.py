"""What training makes smaller: objectives over :class:`~talker_rl.train.rows.Rows`; each says what it needs."""

from __future__ import annotations

from typing import Protocol

from talker_rl.losses.build import Loss
from talker_rl.losses.ops import last_tokens
from talker_rl.losses.types import LossOutput, PairBatch
from talker_rl.train.rows import CHOSEN, REJECTED, Rows


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
