"""Sweep: a grid of losses x seeds on the same samples, as ordinary run folders, and one table of what came out.

    <folder>/sweep.json        resolved configuration
    <folder>/shared/           a run: prompts, conditioning, rollouts, scores and eval/base, made once
    <folder>/arms/<arm>/       a run each: those stages by hard links, its own pairs, trainings and evaluations
    <folder>/ablation.json     the tables; ablation.csv has the first
    <folder>/curves.parquet    every utterance of every checkpoint, where run.eval.checkpoints is `all`
    <folder>/report/           the pages

Every part is finished by an ordinary stage, so the same command goes on where it stopped, and every verb works on an
arm's folder. Trainings of all arms are one queue over the workers.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talker_rl.base.disk import atomic_write, write_json
from talker_rl.base.errors import StageError, TalkerRLError
from talker_rl.base.processes import WorkerPool
from talker_rl.base.seals import seal
from talker_rl.config import RunConfig
from talker_rl.diagnostics import prediction
from talker_rl.diagnostics.anatomy import anatomy
from talker_rl.evaluation import ablation, equal_drift
from talker_rl.evaluation.curves import CurveRow, curve_rows
from talker_rl.records.rows import to_row
from talker_rl.rounds import Round, train_stage
from talker_rl.stages import (
    choice,
    completions,
    conditioning,
    curve,
    diagnose,
    evaluate,
    pairs,
    pipeline,
    prompts,
    scores,
    train,
)
from talker_rl.stages.anatomy import PAIRS_ASKED, is_own, read_pairs
from talker_rl.stages.context import Context
from talker_rl.stages.plan import describe_sweep
from talker_rl.store.run_dir import MANIFEST, RunDir, read_manifest
from talker_rl.store.shards import parquet_bytes, schema_of, table_of
from talker_rl.sweep_config import SweepConfig, cell, trainings

SHARED = ("prompts", "conditioning", "rollouts", "scores", "eval/base")
"""Stages that no arm changes, in order."""


@dataclass
class Sweep:
    """One invocation on one sweep folder."""

    config: SweepConfig
    path: Path
    pool: WorkerPool
    argv: list[str]
    device: str
    force: Sequence[str] = ()
    quiet: bool = False

    def run(self) -> dict[str, Any]:
        """All of it; returns what ``ablation.json`` holds.

        Raises:
            StageError: finished work was done with another configuration (says what differs), or a stage failed.
        """
        self._check_force()
        with self._describing(), ExitStack() as open_runs:
            # every folder is locked before hours of work begin in one of them
            shared = open_runs.enter_context(self._open("shared", self.config.run))
            arms = {name: open_runs.enter_context(self._open(f"arms/{name}", self.config.arm_run(name)))
                    for name in self.config.arms}
            for ctx in arms.values():
                train.check_arguments(ctx)
                pipeline.check_start(ctx)
            if not self.quiet:
                print(describe_sweep(self.config), flush=True)
            self._share(shared)
            for name, ctx in arms.items():
                ctx.run.manifest["trainings"] = trainings(self.config.cells(name))
                self._record(ctx)
                ctx.run.adopt(shared.run.path, SHARED)
                pairs.make(ctx, Round(1))
                completions.make(ctx, Round(1))
            train.train_all(self.pool, [train.Training(ctx, name, Round(1), *choice.start_of(ctx, Round(1), name))
                                        for ctx in arms.values() for name in ctx.config.variants])
            for ctx in arms.values():
                choice.make(ctx, Round(1))
                evaluate.make(ctx)
                curve.make(ctx)
            found = self._table(arms)
            _pages(self.path, list(arms.values()))
        return found

    def _at_equal_drift(self, arms: dict[str, Context]) -> dict[str, Any]:
        """Write ``curves.parquet``; the table and the frontiers that follow from it."""
        rows = [row for name, ctx in arms.items() for row in self._curve_rows(name, ctx)]
        atomic_write(self.path / "curves.parquet", parquet_bytes(table_of([to_row(r) for r in rows],
                                                                          schema_of(CurveRow))))
        seal(self.path, ["curves.parquet"])
        found = equal_drift.curves(rows, self.config.drift)
        return {"axis": self.config.drift, "frontiers": equal_drift.frontiers(found), "equal_kl": equal_drift.table(
            found, self.config.baseline, at_kl=self.config.at_kl or (),
            resamples=self.config.run.eval.bootstrap_samples)}

    def _curve_rows(self, arm: str, ctx: Context) -> Iterator[CurveRow]:
        base = evaluate.eval_rows(ctx, "base")
        ids = {(row["prompt_id"], row["seed"]): row["candidate_id"] for row in base}
        yield from curve_rows(arm, "base", -1, 0, base, (), ids)
        for variant, seed in self.config.cells(arm):
            moved = curve.drift_rows(ctx, cell(variant, seed))
            for step, rows in curve.curve_rows(ctx, cell(variant, seed)).items():
                yield from curve_rows(arm, variant, seed, step, rows, [r for r in moved if r["step"] == step], ids)

    @contextlib.contextmanager
    def _open(self, folder: str, config: RunConfig) -> Iterator[Context]:
        path = self.path / folder
        force = [name for name in self.force if name in _stages(path)]
        with RunDir(path, force=force) as run:
            yield _Labeled(config, run, self.pool, quiet=self.quiet, label=path.name)

    def _record(self, ctx: Context) -> None:
        """Note what is started, as soon as a folder's own work begins: its manifest describes what was done there."""
        ctx.run.record_command(ctx.config.resolved(), self.argv, self.device)

    def _check_force(self) -> None:
        """Raise where a stage to force is in none of the folders."""
        folders = [self.path / "shared", *(self.path / "arms" / name for name in self.config.arms)]
        known = sorted({name for folder in folders for name in _stages(folder)})
        for name in self.force:
            if name not in known:
                raise StageError(f"There is no stage {name!r} to force in this sweep", where=str(self.path),
                                 fix=f"one of: {', '.join(known) or '(none has begun)'}")

    @contextlib.contextmanager
    def _describing(self) -> Iterator[None]:
        """Write ``sweep.json``; it describes what was done, so what is refused leaves it as it was, or no folder."""
        file = self.path / "sweep.json"
        before = file.read_bytes() if file.exists() else None
        write_json(file, self.config.resolved())
        try:
            yield
        except TalkerRLError:
            if before is not None:
                atomic_write(file, before)
            elif not any(self.path.glob("*/manifest.json")) and not any(self.path.glob("arms/*/manifest.json")):
                file.unlink()
                for folder in (self.path / "arms", self.path):
                    with contextlib.suppress(OSError):  # something else is in it
                        folder.rmdir()
            raise

    def _share(self, ctx: Context) -> None:
        """What all arms have in common."""
        self._record(ctx)
        prompts.make(ctx)
        pipeline.check_prompts(ctx)
        conditioning.make(ctx)
        scores.run_with_rollouts(ctx, Round(1))
        evaluate.run_base(ctx)

    def _table(self, arms: dict[str, Context]) -> dict[str, Any]:
        """Write ``ablation.json`` and ``ablation.csv``."""
        rows: list[dict[str, Any]] = []
        for name, ctx in arms.items():
            trained = [_trained(ctx, variant, seed) for variant, seed in self.config.cells(name)]
            rows += ablation.arm_table(name, evaluate.eval_rows(ctx, "base"), trained, self.config.baseline,
                                       resamples=self.config.run.eval.bootstrap_samples)
        claims = ablation.claims(rows, self.config.baseline)
        found = {"baseline": self.config.baseline, "rows": rows, "claims": claims, "pareto": ablation.pareto(rows),
                 "notes": ablation.notes(rows, claims, self.config.baseline)}
        found["prediction"] = {name: self._prediction(name, ctx, rows) for name, ctx in arms.items()}
        found["notes"] += prediction.told(found["prediction"])
        if self.config.run.eval.checkpoints == "all":
            found |= self._at_equal_drift(arms)
        write_json(self.path / "ablation.json", found)
        atomic_write(self.path / "ablation.csv", table_csv(rows))
        return found

    def _prediction(self, arm: str, ctx: Context, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What an arm's losses push on in its pairs before training, against the durations that came of it; a note in
        its place where nothing can be told of the pairs."""
        measured = {row["variant"]: row["duration_ratio"] for row in rows if row["arm"] == arm and row["seed"] is None}
        losses = {variant: cfg.loss for variant in self.config.arms[arm].variants
                  if (cfg := self.config.variants[variant]).data is None and not is_own(cfg.loss)}
        try:
            sides = [both for _, both in read_pairs(ctx.run.path, ctx.config, PAIRS_ASKED)[0]] if losses else []
        except StageError as error:
            return {"variants": [], "note": error.what}
        pushes = {variant: anatomy(loss, sides) for variant, loss in losses.items()}
        return prediction.prediction(
            [{"variant": variant, "stop": one.stop, "stop_seconds": one.stop_seconds,
              "duration_ratio": measured[variant]} for variant, one in pushes.items()],
            resamples=self.config.run.eval.bootstrap_samples) | {"pairs": len(sides)}


@dataclass
class _Labeled(Context):
    """A context whose lines begin with the name of its run, since several report to one terminal."""

    label: str = ""

    def say(self, message: str) -> None:
        super().say(f"{self.label}: {message}")


def _stages(path: Path) -> dict[str, Any]:
    """Stages of a run folder, {} where there is none yet."""
    return read_manifest(path)["stages"] if (path / MANIFEST).exists() else {}


def _trained(ctx: Context, variant: str, seed: int) -> ablation.Trained:
    name = cell(variant, seed)
    entry = ctx.run.stages[train_stage(name, 1)]
    return ablation.Trained(variant, seed, evaluate.eval_rows(ctx, name), entry["counts"]["steps"],
                            ctx.config.variants[name].loss, entry["seconds"])


def _pages(folder: Path, arms: Sequence[Context]) -> None:
    """Diagnostics of every arm, then the pages that show them and the table."""
    from talker_rl.report.dashboards import write_dashboards

    for ctx in arms:
        if any(cfg.data is None for cfg in ctx.config.variants.values()):
            diagnose.make(ctx)
    for page in write_dashboards(folder):
        print(f"page: {page}", file=sys.stderr)


def table_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV: an interval is two columns, ``_low`` and ``_high``; the loss is JSON."""
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
            out[name] = json.dumps(value) if name == "loss" and value is not None else value
    return out
