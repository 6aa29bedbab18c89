"""The table of an ablation: one row per arm, variant and training seed, with paired-bootstrap intervals over prompts.

All figures are of utterances of the same prompts and sampling seeds. A row with ``seed: None`` pools a variant's
training seeds: a prompt's utterances under all of them are resampled together, since they share their text. A claim
needs every training seed to agree, each with an interval that excludes 0: the pooled row alone never carries one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from talker_rl.base.disk import read_json
from talker_rl.base.figures import relative, span, written
from talker_rl.evaluation.bootstrap import bootstrap_ci, ratio_of_sums
from talker_rl.evaluation.summary import diff_ci, paired, per_prompt, variant_summary, word_errors

Row = dict[str, Any]
Interval = tuple[float, float] | None


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
    """The rows of one arm: base, then each variant's seeds followed by its pooled row.

    Returns:
        Rows with ``wer`` (corpus) and ``wer_diff_base``, ``wer_diff_baseline`` (minus base's, minus the baseline's of
        the same training seed), ``duration_ratio`` (total duration over base's), ``drift`` (that minus 1) and
        ``drift_vs_baseline`` (``|drift|`` minus the baseline's ``|drift|``: below 0 is less drift), each with
        ``_ci95``. None where a row would be compared with itself.

    Raises:
        DataError: nothing was scored for a variant.
    """
    seeds = list(dict.fromkeys(t.seed for t in trained))
    by_cell = {(t.variant, t.seed): t for t in trained}
    rows = [_row(arm, "base", None, base, base, None, resamples)]
    for variant in dict.fromkeys(t.variant for t in trained):
        mine = [by_cell[variant, seed] for seed in seeds]
        against = [by_cell[baseline, seed].rows if variant != baseline else None for seed in seeds]
        for one, other in zip(mine, against, strict=True):
            rows.append(_row(arm, variant, one.seed, base, one.rows, other, resamples) | _facts([one]))
        rows.append(
            _row(arm, variant, None, _pool(base for _ in seeds), _pool(one.rows for one in mine),
                 None if variant == baseline else _pool(by_cell[baseline, seed].rows for seed in seeds), resamples)
            | _facts(mine)
        )
    return rows


def _facts(trained: Sequence[Trained]) -> Row:
    return {"steps": trained[0].steps, "loss": trained[0].loss, "train_seconds": sum(t.train_seconds for t in trained)}


def _pool(sides: Iterable[Sequence[Row]]) -> list[Row]:
    """Rows of several trainings as one: their place in the list becomes part of the seed by which rows are paired."""
    return [{**row, "seed": (i, row["seed"])} for i, rows in enumerate(sides) for row in rows]


def _row(
    arm: str, variant: str, seed: int | None, base: Sequence[Row], rows: Sequence[Row],
    baseline: Sequence[Row] | None, resamples: int,
) -> Row:
    found = variant_summary(rows, resamples=resamples)
    row: Row = {"arm": arm, "variant": variant, "seed": seed}
    row |= {name: found[name] for name in ("n", "prompts", "wer", "wer_ci95")}
    itself = rows is base
    row["wer_diff_base"], row["wer_diff_base_ci95"] = (None, None) if itself else _wer_diff(base, rows, resamples)
    row["wer_diff_baseline"], row["wer_diff_baseline_ci95"] = (
        (None, None) if baseline is None else _wer_diff(baseline, rows, resamples))
    before, after = _durations(base, rows)
    row["duration_ratio"] = float(ratio_of_sums(after, before))
    row["duration_ratio_ci95"] = None if itself else bootstrap_ci((after, before), ratio_of_sums, resamples=resamples)
    row["drift"] = row["duration_ratio"] - 1
    row["drift_vs_baseline"] = row["drift_vs_baseline_ci95"] = None
    if baseline is not None:
        all_three = tuple(_durations(base, rows, baseline))
        row["drift_vs_baseline"] = float(_excess_drift(*all_three))
        row["drift_vs_baseline_ci95"] = bootstrap_ci(all_three, _excess_drift, resamples=resamples)
    return row | {name: found[name] for name in ("pause_error", "cap_hit_rate")} | {
        "steps": None, "loss": None, "train_seconds": None}


def _wer_diff(before: Sequence[Row], after: Sequence[Row], resamples: int) -> tuple[float, Interval]:
    a, b = paired(before, after)
    rates = [sum(map(word_errors, side)) / sum(row["ref_words"] for row in side) for side in (a, b)]
    return rates[1] - rates[0], diff_ci(a, b, word_errors, lambda row: row["ref_words"], resamples, 0)


def _durations(*sides: Sequence[Row]) -> list[Any]:
    """(P,) seconds per prompt, of the utterances that were scored in all sides."""
    sums = [per_prompt(rows, lambda row: (row["duration"],)) for rows in paired(*sides)]
    return [np.array([float(side[prompt][0]) for prompt in sums[0]]) for side in sums]


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


def _below(interval: Interval) -> bool:
    return interval is not None and interval[1] < 0


def _above(interval: Interval) -> bool:
    return interval is not None and interval[0] > 0


def _minus_one(interval: Interval) -> Interval:
    return None if interval is None else (interval[0] - 1, interval[1] - 1)


def claims(rows: Sequence[Row], baseline: str) -> list[Row]:
    """What may be said of each variant: it ``holds`` where every training seed agrees, see :func:`_claim`.

    "wer not worse" is weaker than the others: it holds where no seed's interval lies above 0, and ``why`` says for each
    seed whether the WER is lower or only not shown to be higher.
    """
    found = []
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["seed"] is not None:
            cells.setdefault((row["arm"], row["variant"]), []).append(row)
    for (arm, variant), seeds in cells.items():
        def add(claim: str, key: str, test: Callable[[Interval], bool], arm: str = arm, variant: str = variant,
                seeds: list[Row] = seeds) -> None:
            found.append({"arm": arm, "variant": variant, "claim": claim, **_claim(seeds, key, test)})

        add("lower wer than base", "wer_diff_base_ci95", _below)
        add("speaks longer than base", "duration_ratio_ci95", lambda ci: _above(_minus_one(ci)))
        add("speaks shorter than base", "duration_ratio_ci95", lambda ci: _below(_minus_one(ci)))
        if variant != baseline:
            add(f"drifts less than {baseline}", "drift_vs_baseline_ci95", _below)
            add(f"lower wer than {baseline}", "wer_diff_baseline_ci95", _below)
            add(f"wer not worse than {baseline}", "wer_diff_baseline_ci95",
                lambda ci: ci is not None and not _above(ci))
    return found


def _claim(seeds: Sequence[Row], key: str, test: Callable[[Interval], bool]) -> Row:
    center = 1.0 if key == "duration_ratio_ci95" else 0.0

    def told(row: Row) -> str:
        interval = row[key]
        if interval is None:
            return f"seed {row['seed']}: too few prompts for an interval"
        side = ("below" if interval[1] < center else "above" if interval[0] > center else "includes")
        return (f"seed {row['seed']}: {written(row[key.removesuffix('_ci95')], '{:+.4f}')} "
                f"{span(interval, '{:+.4f}')} "
                f"{side} {center:g}")

    return {"holds": all(test(row[key]) for row in seeds), "seeds": [row["seed"] for row in seeds],
            "why": "; ".join(told(row) for row in seeds)}


def pareto(rows: Sequence[Row]) -> list[Row]:
    """WER against |drift|, both to be small: the pooled rows and base, with ``front`` where no other of the same arm
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
        out.append(f"{arm}: less drift than {baseline} in every seed, WER not shown to be worse: "
                   + (", ".join(v + (" (lower WER)" if (arm, v, f"lower wer than {baseline}") in held else "")
                                for v in cured) or "none"))
    return out
