"""Measured rates: how long the stages of a run took, as a factor on what the hardware's assumed rates give for it.

A factor holds for work of the same kind on the same machine: it carries over to other counts and lengths, and, with
less right, to another geometry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from talker_rl.base.errors import DataError
from talker_rl.base.places import require_run
from talker_rl.config import RunConfig, load_data
from talker_rl.planning.cost import Lengths
from talker_rl.rounds import stage_kinds
from talker_rl.store.run_dir import read_manifest


@dataclass(frozen=True)
class Rates:
    """What a finished run tells about the next."""

    source: str
    hardware: str
    geometry: str
    factors: dict[str, float]
    """Stage -> measured seconds for each that the assumed rates give."""
    lengths: Lengths
    pairs_per_prompt: float


@dataclass(frozen=True)
class Finished:
    """A run folder, as far as a plan needs it."""

    config: RunConfig
    device: str
    sizes: dict[str, int]
    """Prompts of each set."""
    seconds: dict[str, list[float]]
    """By kind of stage: of each stage that is done."""
    lengths: Lengths
    pairs_per_prompt: float


def load_rates(path: Path) -> Rates:
    """Rates that ``talker-rl plan --json`` printed.

    Raises:
        DataError: the file cannot be read, or holds none.
    """
    try:
        data = json.loads(path.read_text())["rates"]
        return Rates(**{**data, "lengths": Lengths(**data["lengths"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"These are no rates: {type(error).__name__}: {error}", where=str(path), fix="give a run "
                        "folder, or what `talker-rl plan --rates RUN_DIR --json` prints") from None


def dump_rates(rates: Rates) -> dict[str, Any]:
    """Plain data, which ``load_rates`` reads under the key ``rates``."""
    return asdict(rates)


def read_run(folder: Path, kinds: Mapping[str, str]) -> Finished:
    """Seconds and counts of a run's manifest, lengths of its candidates and prefixes.

    Args:
        kinds: folder of a stage in a run -> what it is called in a plan.

    Raises:
        DataError: the run has not finished its rollouts.
        StageError: there is no run.
    """

    require_run(folder, fix="give a run folder, or what `talker-rl plan --rates RUN_DIR --json` prints")
    manifest = read_manifest(folder)
    stages = {name: entry for name, entry in manifest["stages"].items() if entry.get("state") == "done"}
    if not {"prompts", "conditioning", "rollouts"} <= stages.keys():
        raise DataError("This run has no rates yet: its rollouts are not done", where=str(folder),
                        fix="give a run that has finished")
    config = load_data(manifest["config"], where=str(folder / "manifest.json"))
    of_rounds = dict(stage_kinds(list(config.variants), config.iterations))
    seconds: dict[str, list[float]] = {}
    for name, entry in stages.items():
        kind = kinds.get(of_rounds.get(name) or name.partition("/")[0])
        if kind:
            seconds.setdefault(kind, []).append(entry["seconds"])
    counts = stages.get("pairs", {}).get("counts", {})
    return Finished(
        config=config, device=manifest["commands"][-1]["device"], sizes=dict(stages["prompts"]["counts"]),
        seconds=seconds, lengths=_lengths(folder),
        pairs_per_prompt=counts["pairs"] / counts["prompts"] if counts else config.pairs.max_pairs_per_prompt,
    )  # fmt: skip


def _lengths(folder: Path) -> Lengths:
    from talker_rl.speech.cache import ConditioningCache
    from talker_rl.store.shards import ShardFolder

    codes = rows = 0
    for row in ShardFolder(folder / "rollouts").all_rows(["codes"]):
        rows, codes = rows + 1, codes + len(row["codes"])
    stored = ConditioningCache(folder / "conditioning", strict=True).load().values()
    if not (rows and stored):
        raise DataError("The run's rollouts or conditioning are gone", where=str(folder), fix="give a run with both")
    prefix, reply = (sum(lengths) / len(stored) for lengths in zip(*(c.rows for c in stored), strict=True))
    return Lengths(codes / rows + 1, prefix, reply)
