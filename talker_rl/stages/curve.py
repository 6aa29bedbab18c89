"""Curves: what every saved checkpoint of a training says on the eval texts, and how far it has moved from the base.

    curve/<variant>/            rows as of an evaluation, with ``step``; the chosen checkpoint's are eval/<variant>'s
                    candidates/ what was sampled
                    drift/      :mod:`talker_rl.stages.drift`, of all of them
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from talker_rl.base.disk import read_json
from talker_rl.base.ids import stable_hash
from talker_rl.rounds import Round, choice_stage, train_stage
from talker_rl.stages import drift, tasks
from talker_rl.stages.choice import start_of
from talker_rl.stages.context import Context
from talker_rl.stages.evaluate import eval_candidates, eval_rows
from talker_rl.stages.inputs import model_input, start_adapter
from talker_rl.stages.stage import MODEL, REWARD, Stage
from talker_rl.store.run_dir import timed

Row = dict[str, Any]


def make(ctx: Context) -> None:
    """Write ``curve/<variant>/`` of every variant that was evaluated, where ``eval.checkpoints`` is ``all``."""
    if ctx.config.eval.checkpoints == "all":
        for variant in ctx.config.variants:
            _curve(ctx, variant)


def _curve(ctx: Context, variant: str) -> None:
    from talker_rl.train.checkpoints import list_checkpoints

    stage, cfg, last = f"curve/{variant}", ctx.config.eval, ctx.config.iterations
    trained, choice = train_stage(variant, last), choice_stage(variant, last)
    sampling = cfg.sampling or ctx.config.rollouts.sampling
    key = STAGE.begin(ctx.run, ctx.config, stage, {
        **ctx.contents("prompts", "conditioning", trained, choice, "eval/base", f"eval/{variant}"),
        "reward": ctx.scorer_input("recognizer"), "evaluator": ctx.scorer_input("evaluator"),
        **model_input(ctx.config),
    }, {"seeds": cfg.seeds, "sampling": sampling.model_dump(mode="json"), "extras": 0,
        "shard_size": ctx.config.rollouts.shard_size, "batch_size": ctx.config.rollouts.batch_size})
    chosen = int(read_json(ctx.run.path / choice / "choice.json")["step"])
    policies: dict[int, Path | None] = dict(list_checkpoints(ctx.run.path / trained))
    others = {step: policy for step, policy in policies.items() if step != chosen}
    with timed() as seconds:
        spoken_ = tasks.speak_each(ctx, stage, key, others, "eval", cfg.seeds, sampling)
        own: dict[int, list[Row]] = {step: [] for step in policies}
        for row in ctx.shards(f"{stage}/{tasks.CANDIDATES}").all_rows() if others else ():
            own[row["step"]].append(row)
        if chosen in own:
            own[chosen] = eval_candidates(ctx, variant)
        start, _ = start_of(ctx, Round(last, variant), variant)
        moved = drift.make(
            ctx, f"{stage}/drift", key, policies, own, eval_candidates(ctx, "base"),
            reference=start_adapter(ctx.config) if ctx.config.reference == "kept" else start,
            exact=ctx.config.variants[variant].lora is not None,
            batch_size=ctx.config.variants[variant].reference_batch_size)
    content = stable_hash(spoken_.content(), moved.content())
    if not ctx.run.is_done(stage) or content != ctx.run.content(stage):  # the latter is refused
        ctx.run.finish(stage, content=content, seconds=seconds[0],
                       counts={"checkpoints": len(policies), "utterances": sum(map(len, own.values()))})


def curve_rows(ctx: Context, variant: str) -> dict[int, list[Row]]:
    """Step -> evaluation rows of its checkpoint."""
    ctx.run.content(f"curve/{variant}")
    found: dict[int, list[Row]] = {}
    for row in ctx.shards(f"curve/{variant}").all_rows():
        found.setdefault(row["step"], []).append(row)
    chosen = int(read_json(ctx.run.path / choice_stage(variant, ctx.config.iterations) / "choice.json")["step"])
    return dict(sorted((found | {chosen: eval_rows(ctx, variant)}).items()))


def drift_rows(ctx: Context, variant: str) -> list[Row]:
    """Rows of :func:`talker_rl.stages.drift.make` on the eval texts."""
    ctx.run.content(f"curve/{variant}")
    return list(ctx.shards(f"curve/{variant}/drift").all_rows())


STAGE = Stage(
    "curve", "curves", make, each=None, rules=("sampling", "decoding"),
    key=("seed", "token2wav", "model.dtype", "model.attn_implementation"),
    through=("eval.checkpoints", "eval.seeds", "eval.sampling", "rollouts.sampling", "rollouts.shard_size",
             "rollouts.batch_size", "iterations", "reference", "model.adapter", *MODEL, *REWARD),
)
