"""What the dashboards show, gathered from run folders and sweep folders: reads files, computes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from talker_rl.base.errors import DataError, StageError
from talker_rl.base.lazy import Lazy
from talker_rl.base.places import nearest_run
from talker_rl.base.seals import verified
from talker_rl.evaluation.ablation import read_table
from talker_rl.older_keys import recorded
from talker_rl.records.candidate import Candidate
from talker_rl.records.pair import Pair
from talker_rl.records.rows import to_row
from talker_rl.records.score import ScoreRow
from talker_rl.rounds import choice_stage, rounds_of
from talker_rl.store.run_dir import read_manifest, stage_json
from talker_rl.store.shards import ShardFolder
from talker_rl.sweep_config import stored_sweep, trainings

Rows = list[dict[str, Any]]

_ANEW = "delete its folder and run talker-rl diagnose again"


@dataclass
class Trained:
    """One variant of a run, with one training seed; parts that the folder lacks are empty."""

    arm: str
    name: str
    """Of its folders: the variant's, which in a sweep has the seed in it too."""
    variant: str
    """Without the seed."""
    seed: int | None = None
    """Training seed, in a sweep."""
    curve: Rows = field(default_factory=list)
    """A row per checkpoint spoken on dev: ``step, wer, pause_error, duration_mean, duration_ratio, ...``."""
    rows: Rows = field(default_factory=list)
    """Evaluation rows, one per utterance."""
    summary: dict[str, Any] | None = None
    """``eval/<name>/summary.json``."""
    diagnostics: dict[str, Any] | None = None
    """``diagnostics/<name>/summary.json``."""
    pair_points: Rows = field(default_factory=list)
    """``diagnostics/<name>/pairs.parquet``: a row per (step, pair)."""
    samples: Rows = field(default_factory=list)
    """``diagnostics/<name>/samples.parquet``: a row a fresh sample."""


@dataclass
class PairToHear:
    """A pair with what the recognizer heard of both sides."""

    pair: Pair
    scores: dict[str, ScoreRow]
    """Candidate id -> score; a candidate without one is missing."""
    candidates: dict[str, dict[str, Any]]
    """Candidate id -> candidate row, codes included."""
    stage: str = ""
    """Prefix of its round's folders: empty in round 1, then ``round2/<variant>/``."""


@dataclass
class Run:
    """One run folder, or one arm of a sweep."""

    arm: str
    path: Path
    config: dict[str, Any]
    base: Rows = field(default_factory=list)
    """Evaluation rows of the model before training."""
    trained: list[Trained] = field(default_factory=list)
    pairs: Sequence[PairOf] = ()
    """Of all rounds, each read when it is looked at."""

    def heard(self, pairs: Iterable[PairOf]) -> list[PairToHear]:
        """Some of its pairs with what was heard; only their candidates and scores are read."""
        by_prefix: dict[str, list[Pair]] = {}
        for pair, prefix in pairs:
            by_prefix.setdefault(prefix, []).append(pair)
        found: list[PairToHear] = []
        for prefix, mine in by_prefix.items():
            wanted = {candidate for pair in mine for candidate in (pair.chosen_id, pair.rejected_id)}
            scores = {row.candidate_id: row for row in ShardFolder(self.path / f"{prefix}scores").where(
                "candidate_id", wanted, ScoreRow)}
            candidates = {row.candidate_id: to_row(row) for row in ShardFolder(self.path / f"{prefix}rollouts").where(
                "candidate_id", wanted, Candidate)}
            for pair in mine:
                both = (pair.chosen_id, pair.rejected_id)
                found.append(PairToHear(pair, {key: scores[key] for key in both if key in scores},
                                        {key: candidates[key] for key in both if key in candidates}, prefix))
        return found


PairOf = tuple[Pair, str]
"""A pair, and the prefix of its round's folders."""


@dataclass
class Study:
    """Everything a dashboard may show."""

    title: str
    runs: list[Run]
    ablation: dict[str, Any] | None = None
    """``ablation.json`` of a sweep."""

    @property
    def trained(self) -> list[Trained]:
        """The variants of all runs."""
        return [trained for run in self.runs for trained in run.trained]

    @property
    def variants(self) -> list[str]:
        """Names of variants without seeds, in order of first appearance."""
        return list(dict.fromkeys(trained.variant for trained in self.trained))


def collect(folders: Sequence[Path]) -> Study:
    """Read run folders and sweep folders.

    Raises:
        StageError: a folder is neither.
        DataError: a file in one is damaged.
    """
    runs: list[Run] = []
    ablation: dict[str, Any] | None = None
    for folder in folders:
        if (folder / "sweep.json").is_file() or (folder / "arms").is_dir():
            runs += [_run(arm, arm.name) for arm in sorted((folder / "arms").glob("*")) if arm.is_dir()]
            table = folder / "ablation.json"
            if table.is_file():
                if ablation is not None:
                    raise StageError("Two sweeps cannot share a table", where=str(folder),
                                     fix="make a page for each sweep")
                ablation = read_table(table)
        elif (folder / "manifest.json").is_file():
            runs.append(_run(folder, folder.name))
        else:
            near = nearest_run(folder) or nearest_run(folder, sweeps=True)
            raise StageError("This is no run folder and no sweep folder", where=str(folder),
                             fix=f"did you mean {near}?" if near else
                             "give a folder that talker-rl run or talker-rl sweep wrote (it holds manifest.json or "
                             "sweep.json)")
    names = [run.arm for run in runs]
    for run in runs:  # two runs of one name would be drawn as one
        if names.count(run.arm) > 1:
            run.arm = f"{run.path.resolve().parent.name}/{run.arm}"
            for trained in run.trained:
                trained.arm = run.arm
    return Study(" + ".join(folder.resolve().name for folder in folders), runs, ablation)


def _run(folder: Path, arm: str) -> Run:
    manifest = read_manifest(folder)
    config, of_variants = recorded(manifest.get("config", {}))
    variants, iterations = list(of_variants), config.get("iterations", 1)
    found = {path.name for kind in ("diagnostics", "eval") for path in folder.glob(f"{kind}/*") if path.is_dir()}
    trained = {name: _choice(folder, manifest, name, iterations)
               for name in [*variants, *sorted(found - {"base", *variants})]}
    cells = manifest.get("trainings") or _cells_of_sweep(folder)
    return Run(arm, folder, config, base=_shards(folder / "eval" / "base"), pairs=_pairs(folder, variants, iterations),
               trained=[_trained(folder, manifest, arm, name, choice, **cells.get(name, {"variant": name}))
                        for name, choice in trained.items() if choice or name in found])


def _cells_of_sweep(arm: Path) -> dict[str, dict[str, Any]]:
    """Variant and seed of an arm's trainings, where its manifest is of an earlier version: its sweep's grid says it."""
    grid = stored_sweep(arm.resolve().parent.parent)
    return trainings(itertools.product(grid.get("variants", ()), grid.get("seeds", ())))


def _choice(folder: Path, manifest: dict[str, Any], name: str, iterations: int) -> dict[str, Any] | None:
    """``choice.json`` of a variant's last round that has one."""
    stages = (choice_stage(name, index) for index in range(iterations, 0, -1))
    return next((told for stage in stages if (told := stage_json(folder, manifest, stage, "choice.json"))), None)


def _trained(
    folder: Path, manifest: dict[str, Any], arm: str, name: str, choice: dict[str, Any] | None, variant: str,
    seed: int | None = None,
) -> Trained:
    evaluated, measured = f"eval/{name}", f"diagnostics/{name}"
    found = stage_json(folder, manifest, measured, "summary.json")
    return Trained(
        arm, name, variant, seed,
        curve=choice["checkpoints"] if choice else [],
        rows=_shards(folder / evaluated),
        summary=stage_json(folder, manifest, evaluated, "summary.json"),
        diagnostics=found,
        pair_points=_table(folder / measured / "pairs.parquet") if found else [],
        samples=_table(folder / measured / "samples.parquet") if found else [],
    )


def _pairs(folder: Path, variants: Sequence[str], iterations: int) -> Sequence[PairOf]:
    """Pairs of all rounds; in rounds of their own each variant has its own."""
    found: list[tuple[Sequence[Pair], int, str]] = []
    for round_ in (one for index in range(1, iterations + 1) for one in rounds_of(sorted(variants), index)):
        pairs = ShardFolder(folder / round_.prefix / "pairs").records(Pair)
        found += [(pairs, i, round_.prefix) for i in range(len(pairs))]
    return Lazy(len(found), lambda k: (found[k][0][found[k][1]], found[k][2]))


def _shards(folder: Path) -> Rows:
    return list(ShardFolder(folder).all_rows())


def _table(path: Path) -> Rows:
    verified(path, fix=_ANEW)
    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"A file of the diagnostics is damaged ({error})", where=str(path), fix=_ANEW) from error
