"""Rollouts: N candidates of every train prompt from the policy as the round begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from talker_rl.base.figures import count
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.records.rows import from_row
from talker_rl.stages import worker
from talker_rl.stages.context import Context, Round, some
from talker_rl.stages.flow import Leg
from talker_rl.store.shards import ShardFolder, chunks


def prompts_of(ctx: Context, index: int) -> list[Prompt]:
    """Train prompts of a round."""
    prompts = ctx.prompts("train")
    per_round = ctx.config.rollouts.prompts_per_round
    return prompts if per_round is None else some(prompts, per_round, index)


def run(ctx: Context, round_: Round, policy: Path | None = None, policy_inputs: dict[str, str] | None = None) -> None:
    """Write ``rollouts/`` of a round.

    Args:
        policy: adapter to sample from; None is the base.
        policy_inputs: stage that made the policy -> its content.
    """
    leg = begin(ctx, round_, policy, policy_inputs)
    finish(ctx, leg, ctx.flow(leg))


def begin(
    ctx: Context, round_: Round, policy: Path | None = None, policy_inputs: dict[str, str] | None = None
) -> Leg:
    """The stage's work, as a leg of a flow."""
    cfg = ctx.config.rollouts
    stage = round_.stage("rollouts")
    inputs = {"prompts": ctx.run.content("prompts"), "conditioning": ctx.run.content("conditioning"),
              **ctx.model_input(), **(policy_inputs or {})}
    key = ctx.begin(stage, "rollouts", inputs)
    prompts = prompts_of(ctx, round_.index)
    shards = chunks(prompts, cfg.shard_size)
    purpose = "rollout" if round_.index == 1 else f"rollout{round_.index}"

    def task(i: int) -> worker.RolloutTask:
        return worker.RolloutTask(
            model=ctx.model_dump(), policy=str(policy) if policy else None,
            conditioning=str(ctx.run.path / "conditioning"), prompt_ids=[p.prompt_id for p in shards[i]],
            seeds=[ctx.seeds(purpose, p, cfg.num_candidates) for p in shards[i]],
            sampling=cfg.sampling.model_dump(mode="json"), batch_size=cfg.batch_size,
        )

    def store(folder: ShardFolder, i: int, rows: list[dict[str, Any]]) -> None:
        folder.write(i, [from_row(Candidate, r) for r in rows], Candidate)

    return Leg(stage, ShardFolder(ctx.run.path / stage, key), len(shards), task, worker.sample, store)


def finish(ctx: Context, leg: Leg, seconds: float) -> None:
    """Mark the stage as done, and tell what came out where something was made."""
    if ctx.run.is_done(leg.stage) and not leg.rows:
        ctx.run.finish(leg.stage, content=leg.folder.content(), seconds=0.0)
        return
    reasons: dict[str, int] = {}
    codes, prompts = 0, set()
    for row in leg.folder.all_rows():
        reasons[row["end_reason"]] = reasons.get(row["end_reason"], 0) + 1
        codes += len(row["codes"])
        prompts.add(row["prompt_id"])
    ctx.say(f"{leg.stage}: {count(sum(reasons.values()), 'candidate')} of {count(len(prompts), 'prompt')}, "
            f"{codes / 50:.0f} s of speech, "
            + ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items())))
    ctx.run.finish(leg.stage, content=leg.folder.content(), seconds=seconds, counts=reasons)
