"""Sweep: a grid of losses x seeds on the same samples, as ordinary run folders, and one table of what came out.

    <folder>/sweep.json        resolved configuration
    <folder>/shared/           a run: prompts, conditioning, rollouts, scores and eval/base, made once
    <folder>/tuning/<arm>/     a run each, where settings are tried: its own pairs and trainings, spoken on dev
    <folder>/arms/<arm>/       a run each: those stages by hard links, its own pairs, trainings and evaluations
    <folder>/ablation.json     the tables; ablation.csv has the first
    <folder>/curves.parquet    every utterance of every checkpoint, where run.eval.checkpoints is `all`
    <folder>/report/           the pages

Every part is finished by an ordinary stage, so the same command goes on where it stopped, and every verb works on an
arm's folder. Trainings of all arms are one queue over the workers.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talker_rl.base.disk import atomic_write, write_json
from talker_rl.base.errors import StageError, TalkerRLError
from talker_rl.base.processes import WorkerPool
from talker_rl.config import RunConfig
from talker_rl.rounds import Round
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
    sweep_tables,
    train,
    tune,
)
from talker_rl.stages.context import Context
from talker_rl.stages.plan import describe_sweep
from talker_rl.store.run_dir import MANIFEST, RunDir, read_manifest
from talker_rl.sweep_config import SweepConfig, trainings

SHARED = ("prompts", "conditioning", "rollouts", "scores", "eval/base")
"""Stages that no arm changes, in order; candidates and scores only where a training learns from them."""


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
    tuned: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict, init=False)
    """Arm -> variant -> the settings that tuning chose."""

    def run(self) -> dict[str, Any]:
        """All of it; returns what ``ablation.json`` holds.

        Raises:
            StageError: finished work was done with another configuration (says what differs), or a stage failed.
        """
        self._check_force()
        with self._describing(), ExitStack() as open_runs:
            # every folder is locked before hours of work begin in one of them
            shared = open_runs.enter_context(self._open("shared", self._shared_run()))
            arms = {name: open_runs.enter_context(self._open(f"arms/{name}", self.config.arm_run(name)))
                    for name in self.config.arms}
            tries = {name: open_runs.enter_context(self._open(f"tuning/{name}", self.config.tuning_run(name)))
                     for name in self.config.arms if self.config.tuning is not None}
            for ctx in (*arms.values(), *tries.values()):
                train.check_arguments(ctx)
                pipeline.check_start(ctx)
            if not self.quiet:
                print(describe_sweep(self.config, self.path), flush=True)
            self._share(shared)
            self._tune(shared, tries, arms)
            for name, ctx in arms.items():
                ctx.run.manifest["trainings"] = trainings(self._cells(name))
                self._record(ctx)
                ctx.run.adopt(shared.run.path, _shared_stages(shared))
                pairs.make(ctx, Round(1))
                completions.make(ctx, Round(1))
            train.train_all(self.pool, [train.Training(ctx, name, Round(1), *choice.start_of(ctx, Round(1), name))
                                        for ctx in arms.values() for name in ctx.config.variants])
            for ctx in arms.values():
                choice.make(ctx, Round(1))
                evaluate.make(ctx)
                curve.make(ctx)
            found = sweep_tables.write(self.config, self.path, arms, self._cells)
            _pages(self.path, list(arms.values()))
        return found

    def _tune(self, shared: Context, tries: dict[str, Context], arms: dict[str, Context]) -> None:
        """Choose settings on dev where tuning is asked for, write ``tuning.json``, and give each arm the variants with
        what was chosen."""
        found = {name: tune.make(ctx, shared, _shared_stages(shared), self.config, name) for name, ctx in tries.items()}
        if found:
            write_json(self.path / "tuning.json", found)
        self.tuned = {name: tune.chosen(one) for name, one in found.items()}
        for name, settings in self.tuned.items():
            arms[name].config = self.config.arm_run(name, settings)
            train.check_arguments(arms[name])

    def _shared_run(self) -> RunConfig:
        """Of what is shared: candidates are sampled where any arm learns from stored ones."""
        arms, run = [self.config.arm_run(name) for name in self.config.arms], self.config.run
        wanted = any(map(Round(1).samples, arms))
        if Round(1).samples(run) == wanted:
            return run
        return run.model_copy(update={"variants": next(a for a in arms if Round(1).samples(a) == wanted).variants})

    def _cells(self, arm: str) -> list[tuple[str, int]]:
        """(variant, seed) of every training of an arm, the tuned ones last."""
        return self.config.cells(arm, self.tuned.get(arm, ()))

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
        folders = [self.path / "shared", *(self.path / kind / name for kind in ("tuning", "arms")
                                           for name in self.config.arms)]
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


@dataclass
class _Labeled(Context):
    """A context whose lines begin with the name of its run, since several report to one terminal."""

    label: str = ""

    def say(self, message: str) -> None:
        super().say(f"{self.label}: {message}")


def _shared_stages(shared: Context) -> tuple[str, ...]:
    return SHARED if Round(1).samples(shared.config) else tuple(s for s in SHARED if s not in ("rollouts", "scores"))


def _stages(path: Path) -> dict[str, Any]:
    """Stages of a run folder, {} where there is none yet."""
    return read_manifest(path)["stages"] if (path / MANIFEST).exists() else {}


def _pages(folder: Path, arms: Sequence[Context]) -> None:
    """Diagnostics of every arm, then the pages that show them and the table."""
    from talker_rl.report.dashboards import write_dashboards

    for ctx in arms:
        if any(cfg.data in (None, "online") for cfg in ctx.config.variants.values()):
            diagnose.make(ctx)
    for page in write_dashboards(folder):
        print(f"page: {page}", file=sys.stderr)
