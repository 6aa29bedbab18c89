"""Tuning of an arm's variants: every combination is trained once, and its last step speaks the dev texts.

    <sweep>/tuning/<arm>/      an ordinary run, of the arm's own pairs; its variants are <variant>-<number>
    <sweep>/tuning.json        what was tried, what came of it, what was chosen
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from talker_rl.base.disk import read_json
from talker_rl.base.errors import StageError
from talker_rl.rounds import Round, choice_stage
from talker_rl.stages import choice, completions, pairs, train
from talker_rl.stages.context import Context
from talker_rl.sweep_config import SweepConfig


def make(ctx: Context, shared: Context, stages: tuple[str, ...], config: SweepConfig, arm: str) -> dict[str, Any]:
    """Make the tries of an arm; returns ``variant -> {"tried": [...], "chosen": settings}``."""
    assert config.tuning is not None
    ctx.run.record_command(ctx.config.resolved(), ["talker_rl sweep"], "")
    ctx.run.adopt(shared.run.path, stages)
    pairs.make(ctx, Round(1))
    completions.make(ctx, Round(1))
    train.make(ctx, Round(1))
    choice.make(ctx, Round(1))
    found = {}
    for variant in config.arms[arm].variants:
        tried = []
        for k, settings in enumerate(config.tuning.settings(variant)):
            rows = read_json(ctx.run.path / choice_stage(f"{variant}-{k}", 1) / "choice.json")["checkpoints"]
            tried.append({"settings": settings, **{key: rows[-1][key] for key in ("step", "reward", "wer", "n")}})
        best = config.tuning.best(tried)
        if best is None:
            raise StageError(f"Nothing that the tries of {variant} said on dev could be scored",
                             where=str(ctx.run.path / choice_stage(f"{variant}-0", 1)),
                             fix="look at error_code in the rows there; try lower learning rates or other values")
        found[variant] = {"tried": tried, "chosen": tried[best]["settings"]}
    return found


def chosen(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Variant -> the settings that were chosen."""
    return {variant: dict(one["chosen"]) for variant, one in found.items()}
