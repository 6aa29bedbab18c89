"""Losses compared where they have moved as far from the base, and not where they have taken as many steps.

Of each training there are points: the base (KL 0), and the checkpoints that spoke the same texts. Between two of them
figures are interpolated in the square root of KL, in which a policy moves about evenly (Gao et al. 2023, "Scaling laws
for reward model overoptimization", eq. 1). The whole of it, KL included, is computed anew in each resample of texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from talker_rl.evaluation.curves import CurveRow
from talker_rl.evaluation.nested import Estimate, Statistic, holm, interval, measure, spreads
from talker_rl.evaluation.summary import HEARD

Row = dict[str, Any]
Axis = Literal["code", "utterance", "code_on_base"]
"""Nats a token of what the policy said itself; an utterance of that; a token of what the base said."""

METRICS = ("wer", "duration_ratio", "reward", "pause_error")
NULL = {"duration_ratio": 1.0}
COMPARED = ("wer", "drift", "reward", "pause_error")
"""What differs from the baseline's: ``drift`` is |duration ratio - 1|."""
_LOST = 0.02
"""Share of the resamples without a figure from which it is told: what is left out is not just any."""
_BEYOND = 1.5
"""In a resample whose KL falls short of the target, the last piece of a curve is made so much longer at most."""


@dataclass(frozen=True)
class Curve:
    """A training: P points from the base on, T texts."""

    steps: np.ndarray
    """(P,) of training."""
    kl: tuple[np.ndarray, np.ndarray]
    """Two of (P, T): nats, and what they are shared over."""
    metrics: dict[str, tuple[np.ndarray, np.ndarray]]
    """Name -> two of (P, T), whose sums over texts have the metric as their ratio."""

    def moved(self, counts: np.ndarray) -> np.ndarray:
        """(B, P) KL of each point in each resample of texts, ``counts`` (B, T)."""
        return _ratio(counts, *self.kl)

    def at(self, metric: str, kl: float, counts: np.ndarray) -> np.ndarray:
        """(B,) a metric where this training has moved so far; nan where it never did."""
        return _interpolated(np.sqrt(np.maximum(self.moved(counts), 0)), self.values(metric, counts), kl**0.5)

    def values(self, metric: str, counts: np.ndarray) -> np.ndarray:
        """(B, P) a metric at each point."""
        if metric == "step":
            return np.broadcast_to(self.steps, (len(counts), len(self.steps)))
        if metric == "drift":
            return np.abs(_ratio(counts, *self.metrics["duration_ratio"]) - 1)
        return _ratio(counts, *self.metrics[metric])

    @property
    def furthest(self) -> float:
        """The largest KL of its points."""
        return float(self.moved(np.ones((1, self.kl[0].shape[1]))).max())


def _ratio(counts: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    over, under = counts @ top.T, counts @ bottom.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(under > 0, over / under, np.nan)


def _interpolated(x: np.ndarray, y: np.ndarray, at: float) -> np.ndarray:
    """(B,) y (B, P) where x (B, P) first reaches a value; beyond its furthest point by a little, where it does not."""
    reached = x[:, 1:] >= at - 1e-12
    first = np.where(reached, np.inf, x[:, 1:]).argmax(1)
    rows = np.arange(len(x))
    x0, x1, y0, y1 = x[rows, first], x[rows, first + 1], y[rows, first], y[rows, first + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(x1 > x0, (at - x0) / (x1 - x0), np.where(x0 >= at, 0.0, np.inf))
        return np.where(share <= _BEYOND, y0 + share * (y1 - y0), np.nan)


Points = dict[int, list[CurveRow]]
"""Of a training: step -> what its checkpoint said."""


def curves(rows: Iterable[CurveRow], axis: Axis = "code") -> dict[str, dict[tuple[str, int], Curve]]:
    """Arm -> (variant, training seed) -> curve, of the utterances that the base and all trainings of the arm have; but
    for trainings that cannot be compared (:func:`left_out`).
    """
    found: dict[str, dict[tuple[str, int], Curve]] = {}
    for arm, (base, trainings) in _by_arm(rows).items():
        known = {name: points for name, points in trainings.items() if _unfit(points, base) is None}
        keys = {(row.prompt_id, row.seed) for row in base}
        for points in known.values():
            for point in points.values():
                keys &= {(row.prompt_id, row.seed) for row in point}
        found[arm] = {name: _curve({0: base, **dict(sorted(points.items()))}, keys, axis)
                      for name, points in known.items()} if keys else {}
    return found


def left_out(rows: Iterable[CurveRow], found: Mapping[str, Mapping[tuple[str, int], Curve]],
             made: Sequence[Row], at_kl: Sequence[float] = ()) -> list[str]:
    """What the comparison leaves out, a line for each: trainings, texts, targets that were not reached.

    Args:
        found: of :func:`curves`.
        made: of :func:`table`.
    """
    out = []
    for arm, (base, trainings) in _by_arm(rows).items():
        told = f"{arm}: at equal drift"
        out += [f"{told} {variant}, seed {seed}, is left out: {why}" for (variant, seed), points in trainings.items()
                if (why := _unfit(points, base)) is not None]
        texts = len({(row.lang, row.text) for row in base})
        kept = next((curve.kl[0].shape[1] for curve in found[arm].values()), 0)
        if kept < texts and any(_unfit(points, base) is None for points in trainings.values()):
            out.append(f"{told} {kept} of {texts} texts count, those that every checkpoint has said")
        own = dict.fromkeys(row["kl"] for row in made if (row["arm"], row["target"]) == (arm, "arm"))
        for kl in at_kl or own:
            there = {row["variant"] for row in made if (row["arm"], row["target"], row["kl"]) == (arm, "arm", kl)}
            if far := sorted({variant for variant, _ in found[arm]} - there):
                out.append(f"{told} of {kl:g} nats {', '.join(far)} cannot be compared: not every training of it and "
                           "of the baseline came so far")
        if lost := {f"{row['variant']} {row['lost']:.0%}": None for row in made
                    if row["arm"] == arm and row["lost"] > _LOST}:
            out.append(f"{told} a resample of texts in which a policy has not come so far has no figure, and the "
                       f"intervals are of the others: {', '.join(lost)} have none")
    return out


def _by_arm(rows: Iterable[CurveRow]) -> dict[str, tuple[list[CurveRow], dict[tuple[str, int], Points]]]:
    """Arm -> the base's rows, and the trainings' by (variant, training seed)."""
    by_arm: dict[str, dict[tuple[str, int], Points]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        by_arm[row.arm][row.variant, row.train_seed][row.step].append(row)
    return {arm: (trainings.pop(("base", -1))[0], trainings) for arm, trainings in by_arm.items()}


def _unfit(points: Points, base: Sequence[CurveRow]) -> str | None:
    """Why a training cannot be compared; None where it can."""
    if any(row.kl is None for point in points.values() for row in point):
        return "its KL is not known (full weights)"
    if not any(row.kl for point in points.values() for row in point):
        return "it has not moved"
    step, fewest = min(((step, len(point)) for step, point in points.items()), key=lambda one: one[1])
    if fewest < HEARD * len(base):  # all are compared on what all have said: it would take the others' texts away
        return f"of step {step} only {fewest} of {len(base)} utterances were scored"
    return None


def _curve(points: dict[int, list[CurveRow]], keys: set[tuple[str, int]], axis: Axis) -> Curve:
    kept = [sorted((r for r in point if (r.prompt_id, r.seed) in keys), key=lambda r: (r.prompt_id, r.seed))
            for point in points.values()]
    base = kept[0]
    texts = {text: i for i, text in enumerate(dict.fromkeys((r.lang, r.text) for r in base))}

    def sums(value: Callable[[CurveRow, CurveRow], float | None]) -> np.ndarray:
        out = np.zeros((len(kept), len(texts)))
        for p, point in enumerate(kept):
            for row, beside in zip(point, base, strict=True):
                out[p, texts[row.lang, row.text]] += value(row, beside) or 0.0
        return out

    def mean(name: str) -> tuple[np.ndarray, np.ndarray]:
        return sums(lambda r, _: getattr(r, name)), sums(lambda r, _: getattr(r, name) is not None)

    nats = sums(lambda r, _: r.kl_on_base if axis == "code_on_base" else r.kl)
    shared = {"code": lambda r, _: r.tokens, "utterance": lambda r, _: 1.0,
              "code_on_base": lambda r, _: r.base_tokens}[axis]
    return Curve(
        np.array(list(points), dtype=float), (nats, sums(shared) + (np.arange(len(kept)) == 0)[:, None]),
        {"wer": (sums(lambda r, _: r.errors), sums(lambda r, _: r.ref_words)),
         "duration_ratio": (sums(lambda r, _: r.duration), sums(lambda _, b: b.duration)),
         "reward": mean("reward"), "pause_error": mean("pause_error")})


def furthest(trainings: Iterable[Curve]) -> float:
    """The KL that all of them reached."""
    return min(curve.furthest for curve in trainings)


def table(
    found: dict[str, dict[tuple[str, int], Curve]], baseline: str, *, at_kl: Sequence[float] = (),
    resamples: int = 10_000,
) -> list[Row]:
    """Every variant where it, and the baseline's trainings, have moved as far.

    Args:
        found: of :func:`curves`.
        at_kl: where to compare, nats; a variant one of whose trainings (or of the baseline's) has not come so far is
            left out there. Empty: as far as four in five of the arm's variants came, so that one loss that hardly moves
            does not hold back the others, but no further than the baseline.

    Returns: rows by arm and variant with ``kl, target`` (``arm``: the same for all variants; ``pair``: as far as this
        variant and the baseline both came), ``seeds, texts, step`` (mean), the figures ``wer, duration_ratio, reward,
        pause_error`` with ``_ci95``; ``wer_diff_base`` and ``<name>_diff_baseline`` of :data:`COMPARED` with ``_ci95``
        and ``_p``; ``lost``, the share of the resamples that did not come so far, at most, of its intervals.
    """
    rows: list[Row] = []
    for arm, trainings in found.items():
        variants = list(dict.fromkeys(variant for variant, _ in trainings))
        if baseline not in variants:
            continue
        pairs = {v: furthest(c for (name, _), c in trainings.items() if name in (v, baseline)) for v in variants}
        common = list(at_kl) or [min(_most(trainings), pairs[baseline])]
        for target, kls in [*(("arm", dict.fromkeys(variants, kl)) for kl in common), ("pair", pairs)]:
            rows += _rows(arm, trainings, kls, baseline, target, resamples)
    return rows


def _most(trainings: dict[tuple[str, int], Curve]) -> float:
    came = sorted(furthest(c for (name, _), c in trainings.items() if name == variant)
                  for variant in dict.fromkeys(variant for variant, _ in trainings))
    return came[(len(came) - 1) // 5]


def corrected(rows: Sequence[Row]) -> list[Row]:
    """The rows with ``_p_holm``: corrected for all comparisons of their kind and target in the table."""
    found = [dict(row) for row in rows]
    for target in ("arm", "pair"):
        mine = [row for row in found if row["target"] == target]
        for kind in ("wer_diff_base", *(f"{name}_diff_baseline" for name in COMPARED)):
            for row, p in zip(mine, holm([row[f"{kind}_p"] for row in mine]), strict=True):
                row[f"{kind}_p_holm"] = p
    return found


def _rows(
    arm: str, trainings: dict[tuple[str, int], Curve], kls: dict[str, float], baseline: str, target: str,
    resamples: int,
) -> list[Row]:
    """One row a variant at its KL; those of a table steady each other's spread over training seeds."""
    made: dict[str, Row] = {}
    wanted: dict[str, dict[str, tuple[Statistic, float]]] = defaultdict(dict)
    for variant, kl in kls.items():
        seeds = [s for v, s in trainings if v == variant and (baseline, s) in trainings]
        mine, other = ([trainings[v, s] for s in seeds] for v in (variant, baseline))
        if not seeds or min(c.furthest for c in (*mine, *other)) < kl - 1e-12 or (target == "pair"
                                                                                 and variant == baseline):
            continue
        texts = mine[0].kl[0].shape[1]
        made[variant] = {"arm": arm, "variant": variant, "target": target, "kl": kl, "seeds": len(seeds),
                         "texts": texts, "lost": 0.0,
                         "step": float(np.mean([c.at("step", kl, np.ones((1, texts)))[0] for c in mine]))}
        for metric in METRICS:
            wanted[metric][variant] = _at(mine, metric, kl), NULL.get(metric, 0.0)
        wanted["wer_diff_base"][variant] = _from_base(mine, "wer", kl), 0.0
        for metric in COMPARED if variant != baseline else ():
            wanted[f"{metric}_diff_baseline"][variant] = _between(mine, other, metric, kl), 0.0
    for name, statistics in wanted.items():
        estimates = _estimates(statistics, {v: row["texts"] for v, row in made.items()}, resamples)
        for variant, one in estimates.items():
            row = made[variant]
            row |= {name: _known(one.value), f"{name}_ci95": one.ci95, f"{name}_p": one.p}
            if row[name] is not None:
                row["lost"] = max(row["lost"], one.lost)
    blank = {f"{metric}_diff_baseline{end}": None for metric in COMPARED for end in ("", "_ci95", "_p")}
    return [{**blank, **row} for row in made.values()]


def _estimates(
    statistics: dict[str, tuple[Statistic, float]], texts: dict[str, int], resamples: int
) -> dict[str, Estimate]:
    found = {v: measure(one, texts[v], resamples=resamples) for v, (one, _) in statistics.items()}
    by_seeds: dict[int, list[str]] = defaultdict(list)
    for variant, one in found.items():
        by_seeds[len(one.seeds)].append(variant)
    return {variant: interval(found[variant], spread, null=statistics[variant][1])
            for names in by_seeds.values()
            for variant, spread in zip(names, spreads([found[v] for v in names]), strict=True)}


def _at(mine: Sequence[Curve], metric: str, kl: float) -> Statistic:
    return lambda counts: np.stack([curve.at(metric, kl, counts) for curve in mine], axis=1)


def _from_base(mine: Sequence[Curve], metric: str, kl: float) -> Statistic:
    return lambda counts: np.stack([curve.at(metric, kl, counts) - curve.at(metric, 0.0, counts) for curve in mine],
                                   axis=1)


def _between(mine: Sequence[Curve], other: Sequence[Curve], metric: str, kl: float) -> Statistic:
    return lambda counts: np.stack([a.at(metric, kl, counts) - b.at(metric, kl, counts)
                                    for a, b in zip(mine, other, strict=True)], axis=1)


def _known(value: float) -> float | None:
    """None for nan: a figure that no text has, as the pause error of texts without a boundary."""
    return None if np.isnan(value) else value


def frontiers(
    found: dict[str, dict[tuple[str, int], Curve]], *, points: int = 9, resamples: int = 1000
) -> list[Row]:
    """Each variant's figures against KL, with bands over texts and training seeds.

    Returns: one a variant and arm: ``kl`` (evenly spaced in its square root, as far as all seeds came; the first is the
        base), of each metric ``value, low, high`` by KL, and ``checkpoints``: ``seed, step, kl`` and the metrics of
        every point that was measured.
    """
    out = []
    for arm, trainings in found.items():
        for variant in dict.fromkeys(variant for variant, _ in trainings):
            mine = {seed: curve for (v, seed), curve in trainings.items() if v == variant}
            texts = next(iter(mine.values())).kl[0].shape[1]
            grid = [(i / (points - 1) * furthest(mine.values())**0.5)**2 for i in range(points)]
            row: Row = {"arm": arm, "variant": variant, "kl": grid, "seeds": len(mine), "texts": texts}
            for metric in METRICS:
                estimates = [interval(measure(_at(list(mine.values()), metric, kl), texts, resamples=resamples))
                             for kl in grid]
                row[metric] = {"value": [_known(one.value) for one in estimates], "low": [one.low for one in estimates],
                               "high": [one.high for one in estimates]}
            every = np.ones((1, texts))
            row["checkpoints"] = [
                {"seed": seed, "step": int(step), "kl": float(kl),
                 **{metric: _known(float(curve.values(metric, every)[0, i])) for metric in METRICS}}
                for seed, curve in mine.items()
                for i, (step, kl) in enumerate(zip(curve.steps, curve.moved(every)[0], strict=True)) if i]
            out.append(row)
    return out
