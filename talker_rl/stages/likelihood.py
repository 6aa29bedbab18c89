"""Likelihood: held-out completions, teacher-forced under the policy as the run began and under the chosen one."""

from __future__ import annotations

import math
from typing import Any

from talker_rl.data.pairs import is_held_out
from talker_rl.evaluation.likelihood import compare_likelihood
from talker_rl.records.pair import Completion
from talker_rl.rounds import Round, choice_stage
from talker_rl.stages.choice import chosen_policy
from talker_rl.stages.context import Context
from talker_rl.stages.forcing import Forced, ForceTask, force
from talker_rl.stages.inputs import model_input, start_adapter, start_input
from talker_rl.stages.stage import MODEL, Stage
from talker_rl.store.run_dir import timed
from talker_rl.store.shards import ShardFolder, chunks

SHARD = 64
"""Completions a shard."""


def make(ctx: Context, variant: str) -> dict[str, Any] | None:
    """Write ``likelihood/<variant>/``, a row a completion; returns the figures (:func:`compare_likelihood`).

    The codes are those of the first round's completions of the prompts that ``checkpoint.held_out_share`` kept out of
    training: the run's start said them (or the file holds them), and no round has trained on them. None where there
    are none: a variant that learned from pairs, or nothing held out.
    """
    cfg, share = ctx.config.variants[variant], ctx.config.checkpoint.held_out_share
    if cfg.data in (None, "online"):
        return None
    stage, last = f"likelihood/{variant}", ctx.config.iterations
    source, choice = Round(1).data_stage(cfg.data), choice_stage(variant, last)
    completions = [c for c in ctx.shards(source).records(Completion) if is_held_out(c.prompt_id, share)]
    if not completions:
        return None
    key = STAGE.begin(ctx.run, ctx.config, stage, {
        **ctx.contents(source, "conditioning", choice), **model_input(ctx.config), **start_input(ctx.config),
    }, {"held_out_share": share})
    policies = [start_adapter(ctx.config), chosen_policy(ctx, variant, last)]
    parts = chunks(completions, SHARD)

    def task(i: int) -> ForceTask:
        return ForceTask(
            model=ctx.config.model, policies=list(policies), conditioning=ctx.run.path / "conditioning",
            sequences=[(c.prompt_id, c.speech) for c in parts[i]], batch_size=cfg.reference_batch_size,
        )

    def store(folder: ShardFolder, i: int, made: list[list[Forced]]) -> None:
        folder.write(i, [
            {"prompt_id": c.prompt_id, "completion_id": c.completion_id, "tokens": c.speech.steps,
             "base_logp": math.fsum(base.logps), "trained_logp": math.fsum(trained.logps)}
            for c, base, trained in zip(parts[i], *made, strict=True)
        ])

    with timed() as seconds:
        folder = ctx.fill(stage, key, len(parts), task, force, store)
    ctx.run.finish(stage, content=folder.content(), seconds=seconds[0], counts={"completions": len(completions)})
    texts = {c.completion_id: c.text for c in completions}
    rows = [{**row, "text": texts[row["completion_id"]]} for row in folder.all_rows()]
    return compare_likelihood(rows, resamples=ctx.config.eval.bootstrap_samples)


STAGE = Stage("likelihood", "likelihood", each=None, key=("model.dtype", "model.attn_implementation"),
              through=("checkpoint.held_out_share", "iterations", "model.adapter", *MODEL),
              anew=("eval.bootstrap_samples",))
