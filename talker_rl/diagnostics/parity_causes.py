"""What log-probs that differ look like: likely mistakes, named as far as the figures allow. Pure functions of arrays.

Two kinds of evidence. **Views** are other scorings of the same sequences, each what a known mistake computes: where one
of them equals the recorded numbers, the mistake is found. **Patterns** are in the numbers themselves: a shift, only the
last step, another unit, no correlation, noise without a side. An exact finding silences what is merely alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from talker_rl.diagnostics.parity import Bound, Logps, _flat, compare, pearson

EXACT = 0.02
"""A view explains the differences where no more than this share of them is left."""

VIEWS = {
    "processed": "processed log-probs, not raw ones: they are equal under the sampling settings ({detail}). Record the "
                 "log-softmax of the logits as the model gives them, before penalties, temperature, top-k and top-p",
    "reference": "adapter on and off are mixed up: the numbers are those of the base, without the adapter",
    "adapter": "adapter on and off are mixed up: the numbers are those of the adapter, and the base is scored",
    "merged": "the numbers are those of merged weights: merging rounds the update to the weights' precision",
    "first codebook": "the residual codebooks are left out: the numbers are those of each frame's first code alone",
    "all codebooks": "the residual codebooks are counted: the numbers are sums over all codes of a frame, the policy "
                     "counts the first",
    "not shifted": "labels are not shifted: each code is scored by the output that has read it already",
    "shifted twice": "labels are shifted twice: each code is scored by the output one step too early",
    "another prompt": "prompts are mixed up: the numbers are those under another prompt's conditioning",
}
"""Name of a view -> what it means that the numbers are equal to it."""


@dataclass(frozen=True)
class Cause:
    """A likely mistake."""

    name: str
    text: str
    """What is wrong, and by what it is told."""


def diagnose(
    recorded: Sequence[Logps], scored: Sequence[Logps], bound: Bound,
    views: Mapping[str, Sequence[Logps]] | None = None, *, stopped: Sequence[bool] | None = None,
    details: Mapping[str, str] | None = None,
) -> list[Cause]:
    """Likely causes, the surest first; none where the numbers keep the bound.

    Args:
        recorded: as the sampler or another engine wrote them; lengths may differ from those that are scored.
        scored: by teacher forcing, each sequence alone.
        views: other scorings by name (:data:`VIEWS`); NaN where a view has no number.
        stopped: which sequences end with a stop's log-prob; None: all.
        details: of views, for their text.
    """
    stopped = stopped if stopped is not None else [True] * len(scored)
    uneven = any(len(a) != len(b) for a, b in zip(recorded, scored, strict=True))
    if not uneven and compare(recorded, scored, bound).keep(bound):
        return []
    found = list(_by_views(recorded, scored, bound, views or {}, details or {}))
    found += _by_unit(recorded, scored, bound)
    if not found:
        found = list(_by_place(recorded, scored, bound, stopped))
    if not found and any(a.ndim == 2 for a in recorded):
        found = list(_by_codebook(recorded, scored, bound))
    return found or list(_alike(recorded, scored, bound))


def diagnose_shapes(kept: Mapping[str, bool]) -> list[Cause]:
    """What it means that sequences are right alone and not in a batch.

    Args:
        kept: batch shape (``one by one``, ``packed``, ``behind another``) -> whether it keeps the bound.
    """
    if not kept["one by one"]:
        return []
    if not kept["packed"]:
        return [Cause("neighbors are seen", "alone right, packed beside others of its prompt wrong: sequences see "
                      "each other (the packed row's mask is not obeyed), or positions run on from one to the next")]
    if not kept["behind another"]:
        return [Cause("the prefix before is seen", "alone and packed right, behind another prompt wrong: what stands "
                      "before leaks into a sequence, or its positions go on from there")]
    return []


def _equal(recorded: Sequence[Logps], other: Sequence[Logps], off: float, bound: Bound) -> bool:
    """Whether a scoring explains nearly all of a mean difference of ``off`` nats."""
    a, b = _flat(recorded, other)
    if len(a) < 2 or not np.isfinite(a).all() or not np.isfinite(b).all():
        return False
    left = float(np.abs(a - b).mean())
    share = EXACT * off if np.isfinite(off) else 0.0  # (of infinity every share is)
    return left <= max(share, 2 * bound.mean if off > 10 * bound.mean else 0.0)


def _by_views(
    recorded: Sequence[Logps], scored: Sequence[Logps], bound: Bound, views: Mapping[str, Sequence[Logps]],
    details: Mapping[str, str],
) -> Iterator[Cause]:
    for name, view in views.items():
        has = [~np.isnan(v) for v in view]
        said, right, wrong = (_only(rows, has) for rows in (recorded, scored, view))
        off = compare(said, right, bound)  # over the same steps
        if off.steps and _equal(said, wrong, off.mean, bound):
            yield Cause(name, VIEWS[name].format(detail=details.get(name, "")))


def _only(rows: Sequence[Logps], has: Sequence[NDArray[np.bool_]]) -> list[Logps]:
    """The steps for which a view has a number."""
    return [row[: len(h)][h[: len(row)]] for row, h in zip(rows, has, strict=True)]


def _by_place(
    recorded: Sequence[Logps], scored: Sequence[Logps], bound: Bound, stopped: Sequence[bool]
) -> Iterator[Cause]:
    """Where they differ: by a step, only in the last or the first one, from the second on."""
    off = compare(recorded, scored, bound).mean
    pairs = [(a, b) for a, b in zip(recorded, scored, strict=True) if len(a) > 2 and len(b) > 2]
    if not pairs:
        return
    missing = [len(b) - len(a) for a, b in zip(recorded, scored, strict=True)]
    if any(missing) and all(m == (1 if stop else 0) for m, stop in zip(missing, stopped, strict=True)):
        if compare(recorded, scored, bound).keep(bound):
            yield Cause("stop left out", "the stop's log-prob is left out: each sequence that stopped has one number "
                        "less, and the others are equal. The length's part of the log-prob is lost")
            return
    elif any(missing):
        yield Cause("other lengths", "there are not as many numbers as steps (frames, and the stop if there was one)")
    for by, text in ((1, "the step after"), (-1, "the step before")):
        moved = [(a[:-1], b[1:]) if by == 1 else (a[1:], b[:-1]) for a, b in pairs]
        moved = [(a[: len(b)], b[: len(a)]) for a, b in moved]
        if _equal([a for a, _ in moved], [b for _, b in moved], off, bound):
            yield Cause("shifted", f"the numbers are shifted by one: at each step stands that of {text}. A mask or the "
                        "labels were shifted on one side only")
            return
    if any(missing):
        return
    wrong = [~(np.abs(a - b).reshape(len(a), -1).max(1) <= bound.step) for a, b in pairs]
    ends = [w[-1] for w, (_, stop) in zip(wrong, _with(pairs, recorded, scored, stopped), strict=True) if stop]
    if ends and np.mean(ends) > 0.5 and not any(w[:-1].any() for w in wrong):
        zero = all(float(np.abs(a[-1]).max()) == 0 for (a, _), w in zip(pairs, wrong, strict=True) if w[-1])
        yield Cause("only the stop", "only the last step differs, where the stop is" + (
            ": its number is zero, so it was masked. The mask ends a step too early: it was not shifted with the "
            "labels, or the stop counts as padding" if zero else ": another stop id is scored, or a suppressed one"))
    elif np.mean([w[0] for w in wrong]) > 0.5 and not any(w[1:].any() for w in wrong):
        yield Cause("only the first step", "only the first step differs, which the prefix's last row predicts: the "
                    "mask begins a step too late, or that row is another")
    elif not any(w[0] for w in wrong) and np.mean([w[1:].mean() for w in wrong]) > 0.5:
        yield Cause("from the second step on", "the first step is equal and what follows differs: the prefix is right, "
                    "the inputs behind it are not. Look at the positions of the completion (do they restart?), the "
                    "row of the reply's stream at each step, and the codes that are fed back")


def _with(
    pairs: Sequence[tuple[Logps, Logps]], recorded: Sequence[Logps], scored: Sequence[Logps], stopped: Sequence[bool]
) -> Iterator[tuple[Logps, bool]]:
    """The kept pairs' own ``stopped``."""
    for a, b, stop in zip(recorded, scored, stopped, strict=True):
        if len(a) > 2 and len(b) > 2:
            yield a, stop


def _by_unit(recorded: Sequence[Logps], scored: Sequence[Logps], bound: Bound) -> Iterator[Cause]:
    """The same numbers, written otherwise."""
    off = compare(recorded, scored, bound).mean
    units = {
        "log10": ("log-probs to base 10", [b / np.log(10) for b in scored]),
        "log2": ("log-probs to base 2 (bits)", [b / np.log(2) for b in scored]),
        "negative": ("negative log-probs (a loss)", [-b for b in scored]),
        "probabilities": ("probabilities", [np.exp(b) for b in scored]),
        "running sums": ("running sums of log-probs", [np.cumsum(b, axis=0) for b in scored]),
        "means": ("each sequence's mean log-prob at every step", [np.full_like(b, b.mean()) for b in scored]),
    }
    for name, (what, other) in units.items():
        if _equal(recorded, other, off, bound):
            yield Cause(f"unit: {name}", f"the numbers are {what}; natural log-probs of each step are asked for")


def _by_codebook(recorded: Sequence[Logps], scored: Sequence[Logps], bound: Bound) -> Iterator[Cause]:
    """Numbers by code: the Talker's own agree, the code predictor's do not."""
    first = compare([a[:, :1] for a in recorded], [b[:, :1] for b in scored], bound)
    rest = compare([a[:, 1:] for a in recorded], [b[:, 1:] for b in scored], bound)
    if not first.keep(bound) or rest.keep(bound):
        return
    off = rest.mean
    for by in (1, -1):
        moved = [(a[:, 1:-1], b[:, 2:]) if by == 1 else (a[:, 2:], b[:, 1:-1])
                 for a, b in zip(recorded, scored, strict=True)]
        if _equal([a for a, _ in moved], [b for _, b in moved], off, bound):
            yield Cause("residual numbers shifted", "codebook 0 is equal, the residual numbers are shifted by one "
                        "codebook")
            return
    later = compare([a[:, 2:] for a in recorded], [b[:, 2:] for b in scored], bound)
    second = compare([a[:, 1:2] for a in recorded], [b[:, 1:2] for b in scored], bound)
    if second.keep(bound) and not later.keep(bound):
        yield Cause("residual codes fed wrong", "codebooks 0 and 1 are equal, the later ones are not: the code "
                    "predictor reads the Talker's state rightly, then other codes or tables than the frame's")
        return
    yield Cause("residual codebooks", "codebook 0 is equal, the residual ones are not: their labels or heads are "
                "shifted by a codebook, or the code predictor reads another state than the one that predicted the "
                "frame's first code (the state that has read the frame comes a step later)")


def _alike(recorded: Sequence[Logps], scored: Sequence[Logps], bound: Bound) -> Iterator[Cause]:
    """What is left: how the numbers go together."""
    a, b = _flat(recorded, scored)
    if not len(a) or not np.isfinite(a).all() or not np.isfinite(b).all():
        yield Cause("not finite", "a number is missing or not finite: an id that the other side cannot say, or logits "
                    "that overflow")
        return
    figures, r = compare(recorded, scored, bound), pearson(a, b)
    spread = float(np.hypot(a.std(), b.std()))
    if r is not None and r > 0.99 and figures.mean < 0.1 * max(1.0, spread) and abs(figures.bias) <= figures.mean / 2:
        yield Cause("rounding", "small differences to both sides, strongly correlated: rounding. Another precision, "
                    "weights merged into half precision, a norm that casts before or after its weight, another "
                    "attention kernel, or experts that rounding chose otherwise")
    elif r is not None and r > 0.9:
        slope = float(np.polyfit(b, a, 1)[0])
        yield Cause("scaled", f"strongly correlated, slope {slope:.2f}: " + (
            "a temperature or another processed distribution whose settings were not tried" if abs(slope - 1) > 0.05
            else "nearly the same weights: another checkpoint of a training, or an adapter of another scale"))
    elif r is None or r < 0.3:
        apart = float(np.median(a) - np.median(b))  # a stop that was forced is an outlier
        if abs(apart) <= 0.25 * spread:
            yield Cause("an independent sample", "no correlation, and yet as likely on average: the numbers are of "
                        "another sample (drawn a second time, or in another order) than the codes")
        else:
            better = "recorded" if apart > 0 else "scored"
            yield Cause("other inputs", f"little correlation, and the {better} ones are likelier: what the Talker read "
                        "is not what it reads here. Look at the conditioning (a projection that is missing, another "
                        "reply, speaker or system prompt), at which prompt is whose, and at labels against outputs")
    else:
        yield Cause("other weights or inputs", f"partly correlated ({r:.2f}): other weights, positions that are off, "
                    "or a part of the inputs that is missing")
