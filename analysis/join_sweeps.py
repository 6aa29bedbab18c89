"""One table of several sweeps: what was trained on other machines, or at other times, on the same prompts and samples.

    python analysis/join_sweeps.py A/curves.parquet B/curves.parquet --baseline dpo
    python analysis/join_sweeps.py analysis/data/grid-biased-2026-11-30.parquet --arm biased --json

Each file is a sweep's `curves.parquet` (run.eval.checkpoints: all). Trainings are joined by arm; the base has to have
said the same everywhere. Prints both tables, at equal steps (the last checkpoints) and at equal drift; p-values are
corrected for all comparisons of the joined table, which is what one is for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from talker_rl.base.errors import DataError, TalkerRLError
from talker_rl.base.figures import count
from talker_rl.evaluation import ablation, equal_drift
from talker_rl.evaluation.curves import CurveRow
from talker_rl.records.rows import from_row
from talker_rl.report.sweep_table import text_table


def read(files: list[Path], arms: list[str]) -> list[CurveRow]:
    """The rows of all files, each training once.

    Raises:
        DataError: a file is not there, or none has an arm; two sweeps did not begin with the same base, or the same
            training differs.
    """
    found: dict[tuple[str, str, int], list[CurveRow]] = {}
    for file in files:
        if not file.is_file():
            raise DataError("There is no such file", where=str(file), fix="give the curves.parquet of a sweep that was "
                            "made with run.eval.checkpoints=all")
        mine: dict[tuple[str, str, int], list[CurveRow]] = defaultdict(list)
        for data in pq.read_table(file).to_pylist():
            row = from_row(CurveRow, data)
            if not arms or row.arm in arms:
                mine[row.arm, row.variant, row.train_seed].append(row)
        for name, rows in mine.items():
            if name in found and found[name] != rows:
                what = "base" if name[1] == "base" else f"training {name[1]}, seed {name[2]},"
                raise DataError(f"The {what} of arm {name[0]} is another one in this file", where=str(file),
                                fix="join sweeps of the same model, prompts and sampling, each training once")
            found[name] = rows
    if missing := sorted(set(arms) - {arm for arm, _, _ in found}):
        raise DataError(f"No file has the arm {missing[0]}", where="--arm", fix="leave --arm out to see what there is")
    return [row for rows in found.values() for row in rows]


def tables(rows: list[CurveRow], baseline: str, at_kl: list[float], axis: equal_drift.Axis) -> dict[str, Any]:
    """What ``ablation.json`` holds, of these rows.

    Raises:
        DataError: an arm has no such baseline.
    """
    by_arm: dict[str, dict[tuple[str, int], list[CurveRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_arm[row.arm][row.variant, row.train_seed].append(row)
    made: list[dict[str, Any]] = []
    notes: list[str] = []
    for arm, trainings in by_arm.items():
        base = [_eval_row(row) for row in trainings.pop(("base", -1))]
        if baseline not in (known := dict.fromkeys(variant for variant, _ in trainings)):
            raise DataError(f"There is no {baseline} in arm {arm}", where="--baseline",
                            fix=f"it has {', '.join(known) or 'no training'}")
        seeds = set.intersection(*({s for v, s in trainings if v == variant} for variant in known))
        if left_out := sorted({(v, s) for v, s in trainings if s not in seeds}):
            common = ", ".join(map(str, sorted(seeds))) or "(none)"
            notes.append(f"{arm}: at equal steps only training seeds {common} are compared, which all variants have; "
                         f"{count(len(left_out), 'training')} of others left out")
        if not seeds:
            continue
        trained = [ablation.Trained(variant, seed, [_eval_row(r) for r in mine if r.step == max(r.step for r in mine)],
                                    max(r.step for r in mine), {}, 0.0)
                   for (variant, seed), mine in sorted(trainings.items(), key=lambda item: item[0][0] != baseline)
                   if seed in seeds]
        made += ablation.arm_table(arm, base, trained, baseline, resamples=2000)
    made = ablation.corrected(made)
    claims = ablation.claims(made, baseline)
    curves = equal_drift.curves(rows, axis)
    drifted = equal_drift.table(curves, baseline, at_kl=at_kl, resamples=2000)
    notes += [*ablation.notes(made, claims, baseline), *ablation.of_failures(made), *ablation.of_trainings(made),
              ablation.of_intervals(made), *equal_drift.left_out(rows, curves, drifted, at_kl)]
    return {"baseline": baseline, "rows": made, "claims": claims, "pareto": ablation.pareto(made),
            "notes": notes, "axis": axis, "frontiers": equal_drift.frontiers(curves),
            "equal_kl": equal_drift.corrected(drifted)}


def _eval_row(row: CurveRow) -> dict[str, Any]:
    """As an evaluation's, all errors as substitutions."""
    return {"status": "ok", "prompt_id": row.prompt_id, "seed": row.seed, "text": row.text, "lang": row.lang,
            "substitutions": row.errors, "deletions": 0, "insertions": 0, "ref_words": row.ref_words,
            "wer": row.errors / max(1, row.ref_words), "duration": row.duration, "reward": row.reward,
            "pause_error": row.pause_error, "cap_hit": float(row.cap_hit)}


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="CURVES.PARQUET")
    parser.add_argument("--baseline", default="dpo", help="what the others are measured against (default: dpo)")
    parser.add_argument("--arm", action="append", default=[], help="only these arms")
    parser.add_argument("--at-kl", action="append", default=[], type=float, metavar="NATS",
                        help="compare here (default: as far as four in five of an arm's variants came)")
    parser.add_argument("--axis", choices=("code", "utterance", "code_on_base"), default="code", help="what KL is of")
    parser.add_argument("--json", action="store_true", help="print what a sweep's ablation.json holds")
    asked = parser.parse_args(arguments)
    try:
        found = tables(read(asked.files, asked.arm), asked.baseline, asked.at_kl, asked.axis)
    except TalkerRLError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1) if asked.json else text_table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
