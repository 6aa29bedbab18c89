"""Anatomy of a loss: what it pushes on. The exact gradient of a pair loss by every token, summed by the token's class.

A push is minus the derivative of the loss by a token's log-prob: positive makes the token likelier. Nothing is trained,
and before training no model is needed: policy and reference are one, so that only masks and lengths, and of some losses
the sampled log-probs, decide.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from talker_rl.base.ids import derive_seed
from talker_rl.losses import LossConfig, PairBatch, build_loss, parse_loss
from talker_rl.losses.config import MixLossConfig, filled
from talker_rl.records.token_classes import CLASSES, TokenClass

SIDES = ("chosen", "rejected")
_EPS = 1e-9


@dataclass(frozen=True)
class Side:
    """One side of a pair: a number and a class for each step, the stop last where it was said."""

    logps: Sequence[float]
    classes: Sequence[TokenClass]
    ref_logps: Sequence[float] | None = None
    """None: those of the policy, as before training."""
    seconds: float = 0.0

    @property
    def stopped(self) -> bool:
        return bool(self.classes) and self.classes[-1] == "stop"

    @property
    def frames(self) -> int:
        return len(self.logps) - self.stopped


@dataclass
class Anatomy:
    """Means over pairs of what a loss pushes on, in units of the push that DPO with the same beta gives each token of a
    pair that it has not learned (beta / 2, in a mixture times its weight): plain DPO before training gives +1, -1."""

    pairs: int
    push: dict[str, dict[str, float]]
    """Side -> class -> sum over its tokens."""
    tokens: dict[str, dict[str, float]]
    """Side -> class -> tokens."""
    stop: float
    """Net push on the stop: both sides' together."""
    stop_down: int
    """Pairs in which it is pushed down on balance."""
    stop_seconds: float
    """First moment of the stop's push, seconds: the pushes times where they stand. Where the sum is 0 it still moves
    stops, from the rejected's end to the chosen's."""
    past_common: dict[str, float] = field(default_factory=dict)
    """Side -> push on the tokens past the length that both sides have in common."""
    per_token: float = 1.0
    """Mean size of the push on a token, of both sides."""

    @property
    def stop_share(self) -> float:
        """Net push on the stop in units of this loss's own mean push on a token. An optimizer that divides by the size
        of gradients (Adam) makes that of it, so it compares losses of any scale; 0 where nothing is pushed."""
        return self.stop / self.per_token if self.per_token > _EPS**2 else 0.0

    @property
    def stop_seconds_share(self) -> float:
        """``stop_seconds`` likewise."""
        return self.stop_seconds / self.per_token if self.per_token > _EPS**2 else 0.0

    def net(self, *classes: TokenClass) -> float:
        """Push on classes, of both sides."""
        return math.fsum(self.push[side].get(name, 0.0) for side in SIDES for name in classes)


def _beta(loss: LossConfig) -> float | None:
    """Beta of a loss, of a mixture the first one in it that compares two sides, times its weight."""
    if isinstance(loss, MixLossConfig):
        found = [(term.weight, _beta(term.loss)) for term in loss.terms if term.loss.needs_rejected]
        return next((weight * beta for weight, beta in found if weight and beta), None)
    return getattr(loss, "beta", None)


def anatomy(loss: dict[str, Any], pairs: Sequence[tuple[Side, Side]]) -> Anatomy:
    """What a loss pushes on in these pairs.

    Args:
        loss: its configuration, e.g. ``{"type": "ld_dpo", "alpha": 0.0}``.
        pairs: (chosen, rejected). Each is a batch of its own, so that none hangs on its neighbors; a draw (SamPO's) is
            fixed by the pair's number.

    Raises:
        ConfigError: no such loss, or it needs what pairs do not give.
    """
    import torch

    rate = next((side.frames / side.seconds for both in pairs for side in both if side.seconds), None)
    built = build_loss(filled(parse_loss(loss), code_rate=rate))
    unit = (_beta(built.config) or 1.0) / 2
    push: dict[str, dict[str, float]] = {side: defaultdict(float) for side in SIDES}
    tokens: dict[str, dict[str, float]] = {side: defaultdict(float) for side in SIDES}
    past, stop, moment, down = dict.fromkeys(SIDES, 0.0), 0.0, 0.0, 0
    size, counted = 0.0, 0
    for number, both in enumerate(pairs):
        policy = [torch.tensor([side.logps], dtype=torch.float64, requires_grad=True) for side in both]
        reference = [torch.tensor([side.logps if side.ref_logps is None else side.ref_logps], dtype=torch.float64)
                     for side in both]
        masks = [torch.ones_like(logps, dtype=torch.bool) for logps in reference]
        stops = [torch.zeros_like(mask) for mask in masks]
        for side, where in zip(both, stops, strict=True):
            where[0, -1] = side.stopped
        kinds = [torch.tensor([[CLASSES.index(kind) for kind in side.classes]]) for side in both]
        out = built(PairBatch(
            policy[0], policy[1], reference[0], reference[1], masks[0], masks[1],
            generator=torch.Generator().manual_seed(derive_seed("anatomy", number)), chosen_stop=stops[0],
            rejected_stop=stops[1], chosen_classes=kinds[0], rejected_classes=kinds[1]))
        grads = torch.autograd.grad(out.loss, policy, allow_unused=True)
        of_stop, common = 0.0, min(len(side.logps) for side in both)
        for name, side, grad in zip(SIDES, both, grads, strict=True):
            values = [0.0] * len(side.logps) if grad is None else (-grad[0] / unit).tolist()
            for value, kind in zip(values, side.classes, strict=True):
                push[name][kind] += value
                tokens[name][kind] += 1
            past[name] += math.fsum(values[common:])
            size, counted = size + math.fsum(map(abs, values)), counted + len(values)
            if side.stopped:
                of_stop += values[-1]
                moment += values[-1] * side.seconds
        stop += of_stop
        down += of_stop < -_EPS
    n = max(1, len(pairs))

    def mean(sums: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        return {side: {kind: sums[side][kind] / n for kind in CLASSES if kind in sums[side]} for side in SIDES}

    return Anatomy(len(pairs), mean(push), mean(tokens), stop / n, down, moment / n,
                   {side: past[side] / n for side in SIDES}, size / max(1, counted))
