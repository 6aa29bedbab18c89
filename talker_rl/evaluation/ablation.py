"""The table of an ablation: one row per arm, variant and training seed, and one per variant over all its seeds.

All figures are of utterances of the same texts and sampling seeds. A row of one training has intervals over texts, as
that training's own summary. A row with ``seed: None`` is of the variant: the mean over its training seeds, with
intervals over texts and training seeds (:mod:`talker_rl.evaluation.nested`) and p-values, corrected for the number of
comparisons of its kind in the table (Holm). Claims are made of these alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from talker_rl.base.disk import read_json
from talker_rl.base.figures import chance, changed, count, longer, relative
from talker_rl.evaluation.bootstrap import bootstrap_ci, ratio_of_sums
from talker_rl.evaluation.nested import Estimate, Measured, Statistic, holm, interval, measure, pooled, spreads
from talker_rl.evaluation.summary import HEARD, corpus_wer, diff_ci, paired, per_text, variant_summary, word_errors

Row = dict[str, Any]
Interval = tuple[float, float] | None

KINDS = ("wer_diff_base", "wer_diff_baseline", "duration_ratio", "drift_vs_baseline")
"""What variants are compared by: each has an interval and p-values, and is corrected by itself."""
_NULL = {"duration_ratio": 1.0}
SURE = 0.05
"""A claim holds below this p-value, after Holm's correction."""


@dataclass(frozen=True)
class Trained:
    """One training of an arm: who it is, and what was heard from it."""

    variant: str
    seed: int
    """Of training."""
    rows: Sequence[Row]
    """As in :mod:`talker_rl.evaluation.summary`."""
    steps: int
    loss: dict[str, Any]
    train_seconds: float


def arm_table(
    arm: str, base: Sequence[Row], trained: Sequence[Trained], baseline: str, *, resamples: int = 10_000
) -> list[Row]:
    """The rows of one arm: base, then each variant's seeds followed by the row of the variant.

    Returns:
        Rows with ``wer`` (corpus) and ``wer_diff_base``, ``wer_diff_baseline`` (minus base's, minus the baseline's of
        the same training seed), ``duration_ratio`` (total duration over base's), ``drift`` (that minus 1) and
        ``drift_vs_baseline`` (``|drift|`` minus the baseline's ``|drift|``: below 0 is less drift), each with
        ``_ci95``; ``intervals`` says what these are over, "texts" or "texts and seeds". A variant's row has the means
        over its seeds, ``_p`` of each kind (two-sided) and ``wer_diff_baseline_sd``: the standard deviations ``text,
        seed, rest`` of the difference, by which the power of a further sweep is told. ``_p_holm`` is None until
        :func:`corrected`. None where a row would be compared with itself.

    Raises:
        DataError: nothing was scored for a variant.
    """
    seeds = list(dict.fromkeys(t.seed for t in trained))
    by_cell = {(t.variant, t.seed): t for t in trained}
    variants = list(dict.fromkeys(t.variant for t in trained))
    others = [variant for variant in variants if variant != baseline]
    cells = {variant: [by_cell[variant, seed].rows for seed in seeds] for variant in variants}
    over_seeds = {
        "wer": _estimates({v: _wer(cells[v]) for v in variants}, resamples),
        "wer_diff_base": _estimates({v: _wer_diff([(base, rows) for rows in cells[v]]) for v in variants}, resamples),
        "wer_diff_baseline": _estimates(
            {v: _wer_diff(list(zip(cells[baseline], cells[v], strict=True))) for v in others}, resamples),
        "duration_ratio": _estimates(
            {v: _duration_ratio([(base, rows) for rows in cells[v]]) for v in variants}, resamples, null=1.0),
        "drift_vs_baseline": _estimates(
            {v: _drifts([(base, *both) for both in zip(cells[v], cells[baseline], strict=True)]) for v in others},
            resamples),
    }
    rows = [_row(arm, "base", None, base, base, None, resamples)]
    for variant in variants:
        mine = [by_cell[variant, seed] for seed in seeds]
        for one, other in zip(mine, cells[baseline], strict=True):
            against = other if variant != baseline else None
            rows.append(_row(arm, variant, one.seed, base, one.rows, against, resamples) | _facts([one]))
        rows.append(_variant_row(arm, variant, _pool(cells[variant]),
                                 {kind: found.get(variant) for kind, found in over_seeds.items()}) | _facts(mine))
    return rows


def corrected(rows: Sequence[Row]) -> list[Row]:
    """The rows of all arms with ``_p_holm``: p-values corrected for all comparisons of their kind in the table."""
    found = [dict(row) for row in rows]
    for kind in KINDS:
        for row, p in zip(found, holm([row[f"{kind}_p"] for row in found]), strict=True):
            row[f"{kind}_p_holm"] = p
    return found


def _facts(trained: Sequence[Trained]) -> Row:
    """``steps`` is None where the trainings did not take as many."""
    steps = {one.steps for one in trained}
    return {"steps": steps.pop() if len(steps) == 1 else None,
            "loss": trained[0].loss, "train_seconds": sum(t.train_seconds for t in trained)}


def _pool(sides: Iterable[Sequence[Row]]) -> list[Row]:
    return [row for rows in sides for row in rows]


# -- over texts and training seeds ----------------------------------------------------------------------------------

Heard = tuple[Statistic, int]
"""A statistic, and how many texts it is of."""


def _estimates(statistics: dict[str, Heard], resamples: int, null: float = 0.0) -> dict[str, Estimate]:
    found: list[Measured] = [measure(statistic, texts, resamples=resamples)
                             for statistic, texts in statistics.values()]
    return {variant: interval(one, spread, null=null)
            for variant, one, spread in zip(statistics, found, spreads(found), strict=True)}


def _by_text(seeds: Sequence[Sequence[Sequence[Row]]], values: Callable[[Row], tuple[float, ...]]) -> list[np.ndarray]:
    """(values, T, S) of each side: sums of each text under each training seed, of what was scored in all sides.

    Args:
        seeds: the sides that are compared, of each training seed.
    """
    found = [[per_text(rows, values) for rows in paired(*sides)] for sides in seeds]
    texts = list(dict.fromkeys(text for sides in found for text in sides[0]))
    nothing = np.zeros(len(next(iter(found[0][0].values()))))
    return [np.array([[sides[i].get(text, nothing) for sides in found] for text in texts]).transpose(2, 0, 1)
            for i in range(len(found[0]))]


def _words(row: Row) -> tuple[float, float]:
    return word_errors(row), row["ref_words"]


def _seconds(row: Row) -> tuple[float]:
    return (row["duration"],)


def _wer(seeds: Sequence[Sequence[Row]]) -> Heard:
    ((errors, words),) = _by_text([[rows] for rows in seeds], _words)
    return partial(pooled, top=errors, bottom=words), len(words)


def _wer_diff(seeds: Sequence[tuple[Sequence[Row], Sequence[Row]]]) -> Heard:
    (errors_a, words_a), (errors_b, words_b) = _by_text(seeds, _words)
    return lambda counts: pooled(counts, errors_b, words_b) - pooled(counts, errors_a, words_a), len(words_a)


def _duration_ratio(seeds: Sequence[tuple[Sequence[Row], Sequence[Row]]]) -> Heard:
    (before,), (after,) = _by_text(seeds, _seconds)
    return partial(pooled, top=after, bottom=before), len(before)


def _drifts(seeds: Sequence[tuple[Sequence[Row], Sequence[Row], Sequence[Row]]]) -> Heard:
    (base,), (mine,), (other,) = _by_text(seeds, _seconds)
    return lambda counts: abs(pooled(counts, mine, base) - 1) - abs(pooled(counts, other, base) - 1), len(base)


def _variant_row(arm: str, variant: str, rows: Sequence[Row], found: dict[str, Estimate | None]) -> Row:
    of_all, wer, baseline = variant_summary(rows, resamples=0), found["wer"], found["wer_diff_baseline"]
    assert wer is not None
    row: Row = {"arm": arm, "variant": variant, "seed": None, "intervals": wer.of, "n": of_all["n"],
                "prompts": of_all["prompts"], "wer": wer.value, "wer_ci95": wer.ci95}
    for kind in KINDS:
        row |= _compared(kind, found[kind])
    row["drift"] = row["duration_ratio"] - 1
    row["wer_diff_baseline_sd"] = baseline and {
        "text": baseline.sd_text, "seed": baseline.sd_seed, "rest": baseline.sd_rest}
    return row | {name: of_all[name] for name in ("pause_error", "cap_hit_rate")}


def _compared(kind: str, found: Estimate | None) -> Row:
    return {kind: found and found.value, f"{kind}_ci95": found and found.ci95, f"{kind}_p": found and found.p,
            f"{kind}_p_holm": None}


# -- one training ---------------------------------------------------------------------------------------------------


def _row(
    arm: str, variant: str, seed: int | None, base: Sequence[Row], rows: Sequence[Row],
    baseline: Sequence[Row] | None, resamples: int,
) -> Row:
    found = variant_summary(rows, resamples=resamples)
    row: Row = {"arm": arm, "variant": variant, "seed": seed, "intervals": "texts"}
    row |= {name: found[name] for name in ("n", "prompts", "wer", "wer_ci95")}
    for kind in KINDS:
        row |= _compared(kind, None)
    row["duration_ratio"], row["drift"], row["wer_diff_baseline_sd"] = 1.0, 0.0, None
    if rows is not base:
        row["wer_diff_base"], row["wer_diff_base_ci95"] = _one_wer_diff(base, rows, resamples)
        before, after = _durations(base, rows)
        row["duration_ratio"] = float(ratio_of_sums(after, before))
        row["duration_ratio_ci95"] = bootstrap_ci((after, before), ratio_of_sums, resamples=resamples)
        row["drift"] = row["duration_ratio"] - 1
    if baseline is not None:
        row["wer_diff_baseline"], row["wer_diff_baseline_ci95"] = _one_wer_diff(baseline, rows, resamples)
        all_three = tuple(_durations(base, rows, baseline))
        row["drift_vs_baseline"] = float(_excess_drift(*all_three))
        row["drift_vs_baseline_ci95"] = bootstrap_ci(all_three, _excess_drift, resamples=resamples)
    return row | {name: found[name] for name in ("pause_error", "cap_hit_rate")} | {
        "steps": None, "loss": None, "train_seconds": None}


def _one_wer_diff(before: Sequence[Row], after: Sequence[Row], resamples: int) -> tuple[float, Interval]:
    a, b = paired(before, after)
    return corpus_wer(b) - corpus_wer(a), diff_ci(a, b, word_errors, lambda row: row["ref_words"], resamples, 0)


def _durations(*sides: Sequence[Row]) -> list[Any]:
    """(T,) seconds per text, of the utterances that were scored in all sides."""
    sums = [per_text(rows, _seconds) for rows in paired(*sides)]
    return [np.array([float(side[text][0]) for text in sums[0]]) for side in sums]


def _excess_drift(base: np.ndarray, mine: np.ndarray, baseline: np.ndarray, axis: int = -1) -> np.ndarray:
    """|drift| of one variant minus |drift| of the baseline, both against base."""
    return np.abs(ratio_of_sums(mine, base, axis) - 1) - np.abs(ratio_of_sums(baseline, base, axis) - 1)


def read_table(file: Path) -> dict[str, Any]:
    """``ablation.json``; what an earlier version measured against any baseline, it called so of ``dpo``.

    Raises:
        DataError: it is damaged.
    """
    earlier = {f"{old}{ci}": f"{new}{ci}" for old, new in (("wer_diff_dpo", "wer_diff_baseline"),
                                                           ("drift_vs_dpo", "drift_vs_baseline"))
               for ci in ("", "_ci95")}
    found: dict[str, Any] = read_json(file)
    return {**found, "rows": [{earlier.get(key, key): value for key, value in row.items()} for row in found["rows"]]}


# -- what follows from the rows -------------------------------------------------------------------------------------


def claims(rows: Sequence[Row], baseline: str) -> list[Row]:
    """What may be said of each variant: of its row over all training seeds, after Holm's correction (``corrected``).

    "wer not worse" is weaker than the others: it holds where the WER is not found to be higher, and ``why`` says how
    far it may be. Nothing holds of a variant, or against a baseline, of which too little was scored (:data:`HEARD`).
    """
    found = []
    unheard = {(row["arm"], row["variant"]) for row, _ in _unheard(rows)}
    for row in rows:
        if row["seed"] is not None or row["variant"] == "base":
            continue
        deaf = not unheard.isdisjoint({(row["arm"], row["variant"]), (row["arm"], baseline)})
        seeds = [r["seed"] for r in rows if (r["arm"], r["variant"]) == (row["arm"], row["variant"])
                 and r["seed"] is not None]

        def add(claim: str, kind: str, sign: int, holds: bool | None = None, row: Row = row,
                seeds: Sequence[int] = seeds, deaf: bool = deaf) -> None:
            why = _why(row, kind, len(seeds)) + (", of too few utterances: no claim" if deaf else "")
            found.append({"arm": row["arm"], "variant": row["variant"], "claim": claim,
                          "holds": not deaf and (_found(row, kind, sign) if holds is None else holds), "seeds": seeds,
                          "why": why})

        add("lower wer than base", "wer_diff_base", -1)
        add("speaks longer than base", "duration_ratio", 1)
        add("speaks shorter than base", "duration_ratio", -1)
        if row["variant"] != baseline:
            add(f"drifts less than {baseline}", "drift_vs_baseline", -1)
            add(f"lower wer than {baseline}", "wer_diff_baseline", -1)
            add(f"wer not worse than {baseline}", "wer_diff_baseline", 1,
                row["wer_diff_baseline_p_holm"] is not None and not _found(row, "wer_diff_baseline", 1))
    return found


def _found(row: Row, kind: str, sign: int) -> bool:
    """Whether it differs in this direction, and not by chance."""
    p = row[f"{kind}_p_holm"]
    return p is not None and p < SURE and (row[kind] - _NULL.get(kind, 0.0)) * sign > 0


def _why(row: Row, kind: str, seeds: int) -> str:
    """``-7.1 points [-9.5, -4.7], p 0.0003, after Holm 0.002, 200 texts x 3 seeds``."""
    ends = row[f"{kind}_ci95"]
    told = longer(row[kind], ends) if kind == "duration_ratio" else changed(row[kind], ends, "{:.1%}")
    texts = count(row["prompts"], "text")
    if ends is None:
        return f"{told}, {texts}: too few for an interval"
    over = f"{texts} x {count(seeds, 'seed')}" + ("" if seeds > 1 else ", which says nothing of other trainings")
    return f"{told}, p {chance(row[f'{kind}_p'])}, after Holm {chance(row[f'{kind}_p_holm'])}, {over}"


def pareto(rows: Sequence[Row]) -> list[Row]:
    """WER against |drift|, both to be small: the variants' rows and base, with ``front`` where no other of the same arm
    is as good in both and better in one."""
    points = [{"arm": r["arm"], "variant": r["variant"], "wer": r["wer"], "drift": r["drift"]}
              for r in rows if r["seed"] is None]

    def beats(a: Row, b: Row) -> bool:
        one, other = ((p["wer"], abs(p["drift"])) for p in (a, b))
        return one != other and one[0] <= other[0] and one[1] <= other[1]

    return [p | {"front": not any(beats(q, p) for q in points if q["arm"] == p["arm"])} for p in points]


def notes(rows: Sequence[Row], found: Sequence[Row], baseline: str) -> list[str]:
    """The answer in words: how far the baseline drifts in each arm, and who drifts less without worse WER."""
    out = []
    held = {(c["arm"], c["variant"], c["claim"]) for c in found if c["holds"]}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        drifts = [f"seed {r['seed']} {relative(r['drift'])}" for r in mine if r["variant"] == baseline
                  and r["seed"] is not None]
        out.append(f"{arm}: {baseline} changes the duration by {', '.join(drifts)}")
        cured = [v for v in dict.fromkeys(row["variant"] for row in mine)
                 if {(arm, v, f"drifts less than {baseline}"), (arm, v, f"wer not worse than {baseline}")} <= held]
        out.append(f"{arm}: less drift than {baseline}, WER not shown to be worse: "
                   + (", ".join(v + (" (lower WER)" if (arm, v, f"lower wer than {baseline}") in held else "")
                                for v in cured) or "none"))
    return out


def _unheard(rows: Sequence[Row]) -> Iterator[tuple[Row, int]]:
    """Trainings of which too little was scored, and how much was of the base."""
    there = {row["arm"]: row["n"] for row in rows if row["variant"] == "base"}
    for row in rows:
        if row["seed"] is not None and row["n"] < HEARD * there[row["arm"]]:
            yield row, there[row["arm"]]


def of_failures(rows: Sequence[Row]) -> list[str]:
    """Of which trainings too little was scored to say anything."""
    return [f"{row['arm']}: of {row['variant']}, seed {row['seed']}, only {row['n']} of {of} utterances were scored; "
            "its figures are of these, and no claim is made of it" for row, of in _unheard(rows)]


def of_trainings(rows: Sequence[Row]) -> list[str]:
    """Where not all trainings of an arm took as many steps, how many each variant's took: then they are not compared
    at equal steps."""
    out = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        taken: dict[str, set[int]] = defaultdict(set)
        for row in rows:
            if row["arm"] == arm and row["seed"] is not None:
                taken[row["variant"]].add(row["steps"])
        if len(set().union(*taken.values())) > 1:
            told = ", ".join(f"{variant} {' or '.join(map(str, sorted(steps)))}" for variant, steps in taken.items())
            out.append(f"{arm}: trainings ended after different numbers of steps ({told}), so that the table is not at "
                       "equal steps")
    return out


def of_intervals(rows: Sequence[Row]) -> str:
    """What the intervals are over, and what p-values were corrected for; of all rows that were corrected together."""
    seeds = len({row["seed"] for row in rows if row["seed"] is not None})
    compared = sum(row["wer_diff_baseline_p"] is not None for row in rows)
    over = (f"over texts and {seeds} training seeds" if seeds > 1
            else "over texts; with one training seed they say nothing of other trainings")
    return (f"intervals of a variant's row: 95 %, {over}; p: after Holm's correction for the "
            f"{count(compared, 'comparison')} of a column; rows of one training: over texts")
