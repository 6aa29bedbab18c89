"""``talker-rl show``: the table that a run or a sweep ended with, again, and several runs side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talker_rl.base.disk import read_json
from talker_rl.base.figures import changed, span, written
from talker_rl.base.places import is_run, is_sweep, nearest_run, require_run
from talker_rl.evaluation.ablation import read_table
from talker_rl.evaluation.seed_tts_rows import lines
from talker_rl.older_keys import recorded
from talker_rl.report.page import headline, text_table
from talker_rl.report.sweep_table import columns
from talker_rl.report.sweep_table import text_table as sweep_table
from talker_rl.store.run_dir import read_manifest

ABSENT = "(not set)"


@dataclass
class Shown:
    """One variant of one run: a row of the comparison."""

    folder: Path
    variant: str
    best: bool
    """It was best on dev, so ``eval/summary.json`` is its."""
    summary: dict[str, Any]
    settings: dict[str, Any]
    """What the run was configured with, by dotted key; of the variants this one alone."""

    @property
    def data(self) -> dict[str, Any]:
        """Plain data."""
        return {"run": str(self.folder), "variant": self.variant, "best_on_dev": self.best, **self.summary}


@dataclass
class Found:
    """A folder that was named."""

    folder: Path
    rows: list[Shown]
    """Of a run that is evaluated."""
    table: dict[str, Any] | None = None
    """``ablation.json`` of a sweep."""
    unfinished: dict[str, Any] | None = None
    """What is done of a run or sweep that is not finished, and the command that goes on."""


def verb(args: argparse.Namespace) -> int:
    """Print what the folders hold.

    Raises:
        StageError: a folder is neither a run nor a sweep.
        DataError: a file in one is damaged.
    """
    found = [read(Path(folder)) for folder in dict.fromkeys(args.folders)]
    rows = [row for one in found for row in one.rows]
    if args.json:
        print(json.dumps({
            "runs": [row.data for row in rows],
            "sweeps": [{"sweep": str(one.folder), **one.table} for one in found if one.table is not None],
            "unfinished": [one.unfinished for one in found if one.unfinished],
            "differing_settings": differing(rows),
        }, indent=1, ensure_ascii=False))
        return 0
    parts = [f"{one.folder}:\n{sweep_table(one.table)}" for one in found if one.table is not None]
    if len(rows) == 1:
        parts.append(f"{rows[0].folder}, {rows[0].variant}:\n{ending(rows[0].summary)}")
    elif rows:
        parts.append(comparison(rows))
    parts += [_told(one.unfinished) for one in found if one.unfinished]
    print("\n\n".join(parts))
    return 0


def ending(summary: dict[str, Any]) -> str:
    """What a run ends with: the table before and after, and the answer in a sentence."""
    protocol = lines(summary["seed_tts_eval"]) if "seed_tts_eval" in summary else []
    return "\n".join([text_table(summary), "", headline(summary), *protocol])


def read(folder: Path) -> Found:
    """What a run's or a sweep's folder has to show."""
    if is_sweep(folder):
        file = folder / "ablation.json"
        if file.is_file():
            return Found(folder, [], table=read_table(file))
        stages = {f"{part.parent.relative_to(folder)}/{name}": entry["state"]
                  for part in sorted(folder.glob("*/manifest.json")) + sorted(folder.glob("arms/*/manifest.json"))
                  for name, entry in read_manifest(part.parent)["stages"].items()}
        return Found(folder, [], unfinished=_unfinished(folder, stages, f"talker-rl sweep --run-dir {folder}"))
    if not is_run(folder):
        sweep = None if nearest_run(folder) else nearest_run(folder, sweeps=True)
        require_run(folder, fix=f"did you mean {sweep}?" if sweep else "")
    manifest = read_manifest(folder)
    done = {name: entry["state"] for name, entry in manifest["stages"].items()}
    evaluation = folder / "eval"
    config, variants = recorded(manifest.get("config") or {})
    named = [*variants, *config.get("eval", {}).get("talkers", {})]
    files = [evaluation / "summary.json", *(evaluation / name / "summary.json" for name in named)]
    if any(done.get(f"eval/{name}") != "done" for name in ("base", *named)) or not all(f.is_file() for f in files):
        sweeps = [above for above in folder.resolve().parents[:2] if is_sweep(above)]
        go_on = f"talker-rl sweep --run-dir {sweeps[0]}" if sweeps else f"talker-rl run --run-dir {folder}"
        return Found(folder, [], unfinished=_unfinished(folder, done, go_on))
    best = read_json(evaluation / "summary.json")["variant"]
    return Found(folder, [Shown(folder, name, name == best, read_json(evaluation / name / "summary.json"),
                                settings_of(config, variants.get(name, {}))) for name in named])


def _unfinished(folder: Path, stages: dict[str, str], go_on: str) -> dict[str, Any]:
    return {"folder": str(folder), "done": [name for name, state in stages.items() if state == "done"],
            "begun": [name for name, state in stages.items() if state != "done"], "go_on": go_on}


def _told(unfinished: dict[str, Any]) -> str:
    begun = [f"  begun: {', '.join(unfinished['begun'])}"] if unfinished["begun"] else []
    return "\n".join([f"{unfinished['folder']} is not finished",
                      f"  done:  {', '.join(unfinished['done']) or 'nothing yet'}", *begun,
                      f"  go on: {unfinished['go_on']}"])


# -- several runs ---------------------------------------------------------------------------------------------------


def comparison(rows: Sequence[Shown]) -> str:
    """A row per run and variant, figures with their 95 % intervals; below it the settings that differ."""
    labels = names_of(rows)
    head = ("run", "variant", "n", "WER, base", "WER [95 %]", "change [95 %]", "pause error", "change [95 %]",
            "duration", "cap hits")
    body = []
    for label, row in zip(labels, rows, strict=True):
        found, base, trained = row.summary, row.summary["base"], row.summary["trained"]
        pauses = [side.get("pause_error") for side in (base, trained)]
        body.append((
            label, row.variant + " *" * (row.best and _siblings(row, rows) > 1), str(found["n"]),
            written(base["wer"], "{:.2%}"),
            f"{written(trained['wer'], '{:.2%}')} {span(trained.get('wer_ci95'), '{:.2%}')}".rstrip(),
            changed(found["wer_diff"], found.get("wer_diff_ci95"), "{:.2%}"),
            written(pauses[1], "{:.3f}"),
            "" if None in pauses else changed(pauses[1] - pauses[0], found.get("pause_error_diff_ci95"), "{:.3f}"),
            written(found.get("duration_ratio"), "{:.3f}"), written(trained.get("cap_hit_rate"), "{:.2%}")))
    notes = ["Changes are paired over texts and seeds, each against the base of its own run."]
    if any(row.best and _siblings(row, rows) > 1 for row in rows):
        notes.append("*: the variant that was best on dev.")
    if len({(row.summary["base"]["wer"], row.summary["base"]["n"]) for row in rows}) > 1:
        notes.append("The bases differ (texts, seeds, model or evaluator): compare changes, not rates.")
    kinds = {row.summary.get("duration_ratio_to", "") for row in rows}
    notes.append(f"duration: over that of the {' or the '.join(sorted(kind for kind in kinds if kind)) or 'base'}.")
    return "\n".join([*columns((head, *body), left=2), "", *notes, "", *_settings(rows, labels)])


def _settings(rows: Sequence[Shown], labels: Sequence[str]) -> list[str]:
    differ = differing(rows)
    if not differ:
        return ["Their settings are the same."]
    keys = [f"{label}, {row.variant}" if _siblings(row, rows) > 1 else label
            for label, row in zip(labels, rows, strict=True)]
    table = [("settings that differ", *keys), *((key, *map(_short, values)) for key, values in differ.items())]
    return columns(table)


def differing(rows: Sequence[Shown]) -> dict[str, list[Any]]:
    """Dotted key -> its value in every row, for the keys whose values are not all alike; names do not count."""
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    found = {key: [row.settings.get(key, ABSENT) for row in rows] for key in keys if key != "name"}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def settings_of(config: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    """A resolved configuration by dotted key, with the variant as ``train`` and ``checkpoint``."""
    train = {key: value for key, value in variant.items() if key != "checkpoint"}
    common = {key: value for key, value in config.items() if key != "variants"}
    checkpoint = {**config.get("checkpoint", {}), **variant.get("checkpoint", {})}
    return flat({**common, "train": train, "checkpoint": checkpoint})


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value})
    return found


def names_of(rows: Sequence[Shown]) -> list[str]:
    """Names of the rows' folders, with those above where two are alike."""
    folders = {row.folder: row.folder.resolve() for row in rows}
    short = [path.name for path in folders.values()]
    return [folders[row.folder].name if short.count(folders[row.folder].name) == 1 else str(row.folder) for row in rows]


def _siblings(row: Shown, rows: Sequence[Shown]) -> int:
    return sum(other.folder == row.folder for other in rows)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
