"""The tables of a sweep: at equal steps, and where its losses have moved as far.

    <folder>/ablation.json, ablation.csv   (the latter has the first table)
    <folder>/curves.parquet                every utterance of every checkpoint, where run.eval.checkpoints is `all`
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from talker_rl.base.disk import atomic_write, read_json, write_json
from talker_rl.base.errors import StageError
from talker_rl.base.seals import seal
from talker_rl.diagnostics import prediction
from talker_rl.diagnostics.anatomy import anatomy
from talker_rl.evaluation import ablation, equal_drift
from talker_rl.evaluation.curves import CurveRow, curve_rows
from talker_rl.records.rows import to_row
from talker_rl.rounds import train_stage
from talker_rl.stages import curve, evaluate
from talker_rl.stages.anatomy import PAIRS_ASKED, is_own, read_pairs
from talker_rl.stages.context import Context
from talker_rl.store.shards import parquet_bytes, schema_of, table_of
from talker_rl.sweep_config import SweepConfig, cell
from talker_rl.tuning import TUNED, with_settings

Cells = Callable[[str], Sequence[tuple[str, int]]]
"""Arm -> (variant, training seed) of its trainings."""


def write(config: SweepConfig, folder: Path, arms: Mapping[str, Context], cells: Cells) -> dict[str, Any]:
    """Make the tables of finished arms; returns what ``ablation.json`` holds."""
    resamples, baselines = config.run.eval.bootstrap_samples, _baselines(config)
    rows: list[dict[str, Any]] = []
    for name, ctx in arms.items():
        base = evaluate.eval_rows(ctx, "base")
        for baseline in baselines:
            trained = [_trained(ctx, *one) for one in _measured_against(config, baseline, cells(name))]
            made = ablation.arm_table(name, base, trained, baseline, resamples=resamples)
            rows += made[bool(rows and rows[-1]["arm"] == name):]  # the base stands there once
    rows = ablation.corrected(rows)
    parts = [(baseline, [row for row in rows if row["variant"] == "base" or _own(config, baseline, row["variant"])])
             for baseline in baselines]
    claims = [claim for baseline, mine in parts for claim in ablation.claims(mine, baseline)]
    notes = [note for baseline, mine in parts for note in ablation.notes(mine, claims, baseline)]
    found: dict[str, Any] = {
        "baseline": config.baseline, "rows": rows, "claims": claims, "pareto": ablation.pareto(rows),
        "notes": list(dict.fromkeys(notes))}
    found["prediction"] = {
        name: _prediction(ctx, _measured_against(config, config.baseline, cells(name)),
                          [row for row in rows if row["arm"] == name], resamples) for name, ctx in arms.items()}
    found["notes"] += [*_of_tuning(config, folder), *ablation.of_failures(rows), *ablation.of_trainings(rows),
                       ablation.of_intervals(rows)]
    found["notes"] += prediction.told(found["prediction"])
    if config.run.eval.checkpoints == "all":
        found |= _at_equal_drift(config, folder, arms, cells)
        found["notes"] += found.pop("left_out")
    write_json(folder / "ablation.json", found)
    atomic_write(folder / "ablation.csv", table_csv(rows))
    return found


def _baselines(config: SweepConfig) -> list[str]:
    """What is as published is measured against the baseline as published, what is tuned against it tuned."""
    return [config.baseline] + [f"{config.baseline}{TUNED}"] * (config.tuning is not None)


def _own(config: SweepConfig, baseline: str, variant: str) -> bool:
    return config.tuning is None or variant.endswith(TUNED) == baseline.endswith(TUNED)


def _measured_against(
    config: SweepConfig, baseline: str, cells: Sequence[tuple[str, int]]
) -> list[tuple[str, int]]:
    return [(variant, seed) for variant, seed in cells if _own(config, baseline, variant)]


def _of_tuning(config: SweepConfig, folder: Path) -> list[str]:
    """What tuned variants have been measured against, and what was chosen for them."""
    if config.tuning is None:
        return []
    found = read_json(folder / "tuning.json")
    notes = [f"tuned variants are measured against {config.baseline}{TUNED}, and no prediction is made for them"]
    for arm in config.arms:
        told = []
        for variant, one in found[arm].items():
            data = config.variants[variant].model_dump(mode="json")
            same = with_settings(data, one["chosen"]) == data
            settings = ", ".join(f"{key} {value}" for key, value in one["chosen"].items())
            told.append(f"{variant}{TUNED} has {settings or 'nothing'}{' (as published)' if same else ''}")
        notes.append(f"{arm}: {'; '.join(told)}")
    return notes


def _trained(ctx: Context, variant: str, seed: int) -> ablation.Trained:
    name = cell(variant, seed)
    entry = ctx.run.stages[train_stage(name, 1)]
    return ablation.Trained(variant, seed, evaluate.eval_rows(ctx, name), entry["counts"]["steps"],
                            ctx.config.variants[name].loss, entry["seconds"])


def _prediction(
    ctx: Context, cells: Sequence[tuple[str, int]], rows: Sequence[dict[str, Any]], resamples: int
) -> dict[str, Any]:
    """What an arm's losses push on in its pairs before training, against the durations that came of it; a note in its
    place where the pairs do not tell.

    Args:
        cells: as published: what is tuned is no other loss in most cases, and would be counted as one.
    """
    measured = {row["variant"]: row["duration_ratio"] for row in rows if row["seed"] is None}
    settings = {variant: ctx.config.variants[cell(variant, seed)] for variant, seed in cells}
    losses = {variant: cfg.loss for variant, cfg in settings.items() if cfg.data is None and not is_own(cfg.loss)}
    try:
        sides = [both for _, both in read_pairs(ctx.run.path, ctx.config, PAIRS_ASKED)[0]] if losses else []
    except StageError as error:
        return {"variants": [], "note": error.what}
    pushes = {variant: anatomy(loss, sides) for variant, loss in losses.items()}
    found = [{"variant": variant, "stop": one.stop_share, "stop_seconds": one.stop_seconds_share,
              "duration_ratio": measured[variant]} for variant, one in pushes.items()]
    return prediction.prediction(found, resamples=resamples) | {"pairs": len(sides)}


# -- at equal drift -------------------------------------------------------------------------------------------------


def _at_equal_drift(
    config: SweepConfig, folder: Path, arms: Mapping[str, Context], cells: Cells
) -> dict[str, Any]:
    """Write ``curves.parquet``; the table and the frontiers that follow from it."""
    rows = [row for name, ctx in arms.items() for row in _curve_rows(name, ctx, cells(name))]
    atomic_write(folder / "curves.parquet", parquet_bytes(table_of([to_row(r) for r in rows], schema_of(CurveRow))))
    seal(folder, ["curves.parquet"])
    found = equal_drift.curves(rows, config.drift)
    table: list[dict[str, Any]] = []
    left_out: list[str] = []
    for baseline in _baselines(config):
        mine = {arm: {name: one for name, one in trainings.items() if _own(config, baseline, name[0])}
                for arm, trainings in found.items()}
        made = equal_drift.table(mine, baseline, at_kl=config.at_kl or (), resamples=config.run.eval.bootstrap_samples)
        own = [row for row in rows if row.variant == "base" or _own(config, baseline, row.variant)]
        left_out += equal_drift.left_out(own, mine, made, config.at_kl or ())
        table += made
    return {"axis": config.drift, "frontiers": equal_drift.frontiers(found), "equal_kl": equal_drift.corrected(table),
            "left_out": list(dict.fromkeys(left_out))}


def _curve_rows(arm: str, ctx: Context, cells: Sequence[tuple[str, int]]) -> Iterator[CurveRow]:
    base = evaluate.eval_rows(ctx, "base")
    ids = {(row["prompt_id"], row["seed"]): row["candidate_id"] for row in base}
    yield from curve_rows(arm, "base", -1, 0, base, (), ids)
    for variant, seed in cells:
        moved = curve.drift_rows(ctx, cell(variant, seed))
        for step, rows in curve.curve_rows(ctx, cell(variant, seed)).items():
            yield from curve_rows(arm, variant, seed, step, rows, [r for r in moved if r["step"] == step], ids)


# -- as CSV ---------------------------------------------------------------------------------------------------------


def table_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV: an interval is two columns, ``_low`` and ``_high``; what is a mapping is JSON."""
    sink = io.StringIO()
    flat = [_flat(row) for row in rows]
    writer = csv.DictWriter(sink, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return sink.getvalue()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in row.items():
        if name.endswith("_ci95"):
            out[f"{name}_low"], out[f"{name}_high"] = value or (None, None)
        else:
            out[name] = json.dumps(value) if isinstance(value, dict) else value
    return out
