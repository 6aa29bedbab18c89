"""What the dashboards show, gathered from run folders and sweep folders: reads files, computes nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from talker_rl.base.disk import read_json
from talker_rl.base.errors import DataError, StageError
from talker_rl.base.places import nearest_run
from talker_rl.base.seals import verified
from talker_rl.records.pair import Pair
from talker_rl.records.score import ScoreRow
from talker_rl.store.run_dir import read_manifest
from talker_rl.store.shards import ShardFolder

Rows = list[dict[str, Any]]

_SEED = re.compile(r"^(?P<variant>.+)-s(?P<seed>\d+)$")

_ANEW = "delete its folder and run talker-rl diagnose again"


@dataclass
class Trained:
    """One variant of a run, with one training seed; parts that the folder lacks are empty."""

    arm: str
    name: str
    """Folder name: ``<variant>`` or, in a sweep, ``<variant>-s<seed>``."""
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

    @property
    def variant(self) -> str:
        """Name without the seed."""
        found = _SEED.match(self.name)
        return found["variant"] if found else self.name

    @property
    def seed(self) -> int | None:
        """Training seed, where the name gives one."""
        found = _SEED.match(self.name)
        return int(found["seed"]) if found else None


@dataclass
class PairToHear:
    """A pair with what the recognizer heard of both sides."""

    pair: Pair
    scores: dict[str, ScoreRow]
    """Candidate id -> score; a candidate without one is missing."""
    candidates: dict[str, dict[str, Any]]
    """Candidate id -> candidate row, codes included."""
    stage: str = ""
    """Prefix of its round's folders: empty in round 1, then ``round2/<variant>/``. Candidate ids repeat over rounds."""


@dataclass
class Run:
    """One run folder, or one arm of a sweep."""

    arm: str
    path: Path
    config: dict[str, Any]
    base: Rows = field(default_factory=list)
    """Evaluation rows of the model before training."""
    trained: list[Trained] = field(default_factory=list)
    pairs: list[PairToHear] = field(default_factory=list)


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
                ablation = read_json(table)
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
    config = read_manifest(folder).get("config", {})
    names: dict[str, None] = {}
    for pattern in ("round*/choice/*", "diagnostics/*", "eval/*"):
        names |= dict.fromkeys(sorted(path.name for path in folder.glob(pattern) if path.is_dir()))
    order = {name: at for at, name in enumerate(config.get("train", {}))}
    ordered = sorted((name for name in names if name != "base"), key=lambda name: order.get(name, len(order)))
    return Run(arm, folder, config, base=_shards(folder / "eval" / "base"),
               trained=[_trained(folder, arm, name) for name in ordered], pairs=_pairs(folder))


def _trained(folder: Path, arm: str, name: str) -> Trained:
    choices = sorted(folder.glob(f"round*/choice/{name}/choice.json"),
                     key=lambda file: int(file.parts[-4].removeprefix("round")))
    measured = folder / "diagnostics" / name
    return Trained(
        arm, name,
        curve=read_json(choices[-1])["checkpoints"] if choices else [],
        rows=_shards(folder / "eval" / name),
        summary=_optional_json(folder / "eval" / name / "summary.json"),
        diagnostics=_optional_json(measured / "summary.json"),
        pair_points=_table(measured / "pairs.parquet"),
        samples=_table(measured / "samples.parquet"),
    )


def _pairs(folder: Path) -> list[PairToHear]:
    """Pairs of all rounds with scores and codes; in rounds of their own each variant has its own."""
    found = []
    for index in sorted([*folder.glob("pairs/index.json"), *folder.glob("round*/*/pairs/index.json")]):
        stage = index.parent.parent
        pairs = ShardFolder(index.parent).read_all(Pair)
        wanted = {candidate for pair in pairs for candidate in (pair.chosen_id, pair.rejected_id)}
        scores = {row.candidate_id: row for row in ShardFolder(stage / "scores").read_all(ScoreRow)
                  if row.candidate_id in wanted}
        candidates = {row["candidate_id"]: row for row in ShardFolder(stage / "rollouts").all_rows()
                      if row["candidate_id"] in wanted}
        for pair in pairs:
            both = (pair.chosen_id, pair.rejected_id)
            found.append(PairToHear(pair, {key: scores[key] for key in both if key in scores},
                                    {key: candidates[key] for key in both if key in candidates},
                                    "" if stage == folder else f"{stage.relative_to(folder)}/"))
    return found


def _shards(folder: Path) -> Rows:
    return list(ShardFolder(folder).all_rows())


def _optional_json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _table(path: Path) -> Rows:
    if not path.is_file():
        return []
    verified(path, fix=_ANEW)
    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"A file of the diagnostics is damaged ({error})", where=str(path),
                        fix=_ANEW) from error
