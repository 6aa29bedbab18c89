"""Training: one variant's loss on the pairs of a round, from the policy as that round began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from talker_rl.data.records import Pair, derive_seed
from talker_rl.errors import ConfigError
from talker_rl.run_dir import read_json, timed
from talker_rl.stages.context import Context, Round, train_stage
from talker_rl.stages.shards import ShardFolder


def run(ctx: Context, variant: str, round_: Round, start: Path | None = None,
        start_inputs: dict[str, str] | None = None) -> dict[str, Any]:
    """Train one variant; returns what ``train_variant`` says.

    Args:
        start: adapter that training begins with (round 2 and later); it is the reference as well.
        start_inputs: stage that chose it -> its content.
    """
    stage, source = train_stage(variant, round_.index), round_.stage("pairs")
    cfg = ctx.config.train[variant]
    inputs = {source: ctx.run.content(source), "conditioning": ctx.run.content("conditioning"),
              **ctx.model_input(), **(start_inputs or {})}
    ctx.begin(stage, "train", inputs, {"train": cfg.model_dump(mode="json"),
                                       "held_out_share": ctx.config.dev.held_out_share})
    folder = ctx.run.path / stage
    if ctx.run.is_done(stage) and (folder / "result.json").exists():
        return read_json(folder / "result.json")

    from talker_rl.omni.checkpoint import load_omni
    from talker_rl.omni.conditioning_cache import ConditioningCache
    from talker_rl.omni.files import content_hash
    from talker_rl.train.callbacks import Track
    from talker_rl.train.run import train_variant

    pairs = ShardFolder(ctx.run.path / source).read(0, Pair)
    held_out = [p for p in pairs if is_held_out(p.prompt_id, ctx.config.dev.held_out_share)]
    fitted = [p for p in pairs if not is_held_out(p.prompt_id, ctx.config.dev.held_out_share)]
    ctx.say(f"{stage}: {cfg.loss['type']} on {len(fitted)} pairs"
            + (f", {len(held_out)} held out" if held_out else ""))
    with timed() as seconds, ctx.tracking.stage(stage) as tracker:
        omni = load_omni(ctx.config.model, parts=("talker",))  # its own copy: training wraps and changes it
        conditionings = ConditioningCache(ctx.run.path / "conditioning", strict=True).load([p.prompt_id for p in pairs])
        result = train_variant(
            omni, fitted, conditionings, cfg, folder, eval_pairs=held_out or None, start_adapter=start,
            progress=not ctx.quiet, reference_cache=ctx.run.path / "reference",
            extra_callbacks=[Track(tracker.log)],
        )
    weights = next(folder / n for n in ("adapter_model.safetensors", "model.safetensors") if (folder / n).exists())
    ctx.run.finish(stage, content=content_hash(weights), seconds=seconds[0],
                   counts={"pairs": len(fitted), "held_out": len(held_out), "steps": result["steps"]})
    return result


def is_held_out(prompt_id: str, share: float) -> bool:
    """Whether a prompt's pairs are kept out of training: a property of the prompt, not of who else is there."""
    return share > 0 and derive_seed("held-out", prompt_id) / 2**31 < share


def check_arguments(ctx: Context) -> None:
    """Every variant's training arguments, before hours of sampling and not after.

    Raises:
        ConfigError: an unknown or refused argument, or one that does not fit.
    """
    from talker_rl.train.arguments import build_arguments

    for variant, cfg in ctx.config.train.items():
        try:
            build_arguments(cfg.args, ctx.run.path / "train" / variant)
        except ConfigError as error:
            where = (error.where or "").replace("train.args", f"train.{variant}.args")
            raise ConfigError(error.what, where=where, fix=error.fix) from None
