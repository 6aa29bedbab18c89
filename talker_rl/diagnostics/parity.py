"""Log-probs as they were recorded against log-probs as they are scored: how far apart, and where first. Pure functions
of arrays.

A sequence is an array (T,) of its steps' log-probs, or (T, G) of its codes'; a list of sequences has no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logps = NDArray[np.float64]
"""(T,) steps or (T, G) codes of one sequence; what is not a number differs from everything."""


@dataclass(frozen=True)
class Bound:
    """What may differ."""

    step: float
    """Nats that a step may differ by; steps beyond it are counted."""
    mean: float
    """Nats that steps may differ by on average."""
    every: bool = True
    """Whether steps must keep ``step``, or the mean alone is held."""
    share: float = 0.0
    """Of the steps, so many may be off by up to ``TAIL`` times ``step``: of tens of thousands the largest rounding is
    twice that of a thousand, while a mistake moves more of them, or further."""

    def times(self, factor: float) -> Bound:
        """A wider one."""
        return replace(self, step=self.step * factor, mean=self.mean * factor)

    def __str__(self) -> str:
        if not self.every:
            return f"{self.mean:g} on average"
        return f"{self.step:g} per step" + (f", {self.share:.1%} of them up to {TAIL} times that" if self.share else "")


TAIL, SHARE = 10, 1e-3
_BOUNDS = {"float32": (1e-5, 1e-5), "float16": (3e-2, 5e-3), "bfloat16": (1.5e-1, 2e-2)}
"""dtype -> nats a step, and on average; measured on the tiny and the micro models, with room."""
SPARSE_MEAN = 5e-2
"""On average, in half precision, of a Talker whose router chooses experts: rounding chooses others now and then, and
such a step is off by tenths of a nat."""


MERGED = 3
"""So many times as much: merged weights are others, since the update is rounded once more."""


def bound_of(dtype: str, *, sparse: bool = False, terms: int = 1) -> Bound:
    """The bound of a precision.

    Args:
        sparse: a router chooses experts.
        terms: log-probs that a step's is the sum of.
    """
    step, mean = _BOUNDS[dtype]
    if sparse and dtype != "float32":
        return Bound(step * terms, SPARSE_MEAN * terms, every=False)
    return Bound(step * terms, mean * terms, share=SHARE)


@dataclass(frozen=True)
class Figures:
    """How far apart two scorings are, over all steps."""

    steps: int
    largest: float
    mean: float
    """Of absolute differences."""
    bias: float
    """Mean of scored less recorded: not zero where one side is better than the other."""
    pearson: float | None
    """Correlation of the two; None where one of them does not vary."""
    k3: float
    """exp(d) - 1 - d on average, d = scored - recorded: an estimate of KL(recorded || scored), never negative."""
    beyond: float
    """Share of steps that differ by more than the bound."""

    def keep(self, bound: Bound) -> bool:
        """Whether the figures keep a bound; not where a number is missing or infinite."""
        if not (self.steps > 0 and self.mean <= bound.mean):
            return False
        few = self.beyond <= bound.share and self.largest <= TAIL * bound.step
        return self.largest <= bound.step or few or (not bound.every and self.largest < np.inf)

    def as_data(self) -> dict[str, float | int | None]:
        """For JSON."""
        return _finite(self)


def _finite(figures: Any) -> dict[str, Any]:
    """For JSON, which has no NaN and no infinity: None in their place."""
    return {k: v if v is None or np.isfinite(v) else None for k, v in asdict(figures).items()}


def compare(recorded: Sequence[Logps], scored: Sequence[Logps], bound: Bound) -> Figures:
    """Figures over the steps that both have; a step where a side is not a number is off by infinity."""
    a, b = _flat(recorded, scored)
    if not len(a):
        return Figures(0, np.nan, np.nan, np.nan, None, np.nan, np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        d = b - a
        size = np.where(np.isnan(d), np.inf, np.abs(d))
        k3 = float(np.mean(np.expm1(d) - d))
        return Figures(len(a), float(size.max()), float(size.mean()), float(d.mean()), pearson(a, b), k3,
                       float(np.mean(~(size <= bound.step))))


def pearson(a: Logps, b: Logps) -> float | None:
    """Correlation; None where one side does not vary or is not finite."""
    if len(a) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()) or min(a.std(), b.std()) < 1e-12:
        return None
    return float(np.corrcoef(a, b)[0, 1])


@dataclass(frozen=True)
class Place:
    """A step that differs."""

    sequence: int
    step: int
    group: int
    """Codebook, where log-probs are given by code; 0 otherwise."""
    recorded: float
    scored: float

    @property
    def difference(self) -> float:
        """Scored less recorded, nats."""
        return self.scored - self.recorded

    def as_data(self) -> dict[str, float | int | None]:
        """For JSON."""
        return _finite(self)


def first_beyond(recorded: Sequence[Logps], scored: Sequence[Logps], bound: Bound) -> Place | None:
    """The first step of the first sequence that differs by more than the bound allows a step, or is not a number."""
    for s, (a, b) in enumerate(zip(recorded, scored, strict=True)):
        steps = min(len(a), len(b))
        x, y = a[:steps].reshape(steps, -1), b[:steps].reshape(steps, -1)
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(x - y) <= bound.step)
        if wrong.any():
            step, group = (int(i) for i in np.argwhere(wrong)[0])
            return Place(s, step, group, float(x[step, group]), float(y[step, group]))
    return None


def _flat(recorded: Sequence[Logps], scored: Sequence[Logps]) -> tuple[Logps, Logps]:
    """All steps that both have, as two flat arrays."""
    pairs = [(a[: len(b)].ravel(), b[: len(a)].ravel()) for a, b in zip(recorded, scored, strict=True)]
    if not pairs:
        return np.zeros(0), np.zeros(0)
    a, b = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
    return a, b
