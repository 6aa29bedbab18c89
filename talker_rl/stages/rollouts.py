"""Rollouts: N candidates of every train prompt from the policy as the round begins."""

from __future__ import annotations

from collections.abc import Sequence

from talker_rl.base.figures import count
from talker_rl.config import RunConfig
from talker_rl.planning import cost, memory
from talker_rl.planning.forecast import Job, Part, rows_at_a_time
from talker_rl.planning.sizes import per_round
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.rounds import Round, some
from talker_rl.speech.registry import codec_of
from talker_rl.stages import feasible, tasks, worker
from talker_rl.stages.choice import start_of
from talker_rl.stages.context import Context
from talker_rl.stages.inputs import model_input
from talker_rl.stages.legs import Leg
from talker_rl.stages.stage import MODEL, Stage, Step
from talker_rl.store.shards import ShardFolder, chunks


def prompts_of(ctx: Context, index: int) -> Sequence[Prompt]:
    """Train prompts of a round."""
    prompts = ctx.prompts("train")
    per_round = ctx.config.rollouts.prompts_per_round
    return prompts if per_round is None else some(prompts, per_round, index)


def check_texts(ctx: Context) -> None:
    """Whether the train texts can be said within the token limit; tells where some cannot.

    Raises:
        ConfigError: none can.
    """
    if told := feasible.check_texts(ctx.config, ctx.prompts("train")):
        ctx.say(f"prompts: {told}")


def make(ctx: Context, round_: Round) -> None:
    """Write ``rollouts/`` of a round, from the policy it begins with."""
    check_texts(ctx)
    leg = begin(ctx, round_)
    finish(ctx, leg, ctx.flow(leg))


def begin(ctx: Context, round_: Round) -> Leg:
    """The stage's work, as a leg of a flow."""
    cfg, stage = ctx.config.rollouts, round_.stage("rollouts")
    policy, policy_inputs = start_of(ctx, round_, round_.variant)
    inputs = ctx.contents("prompts", "conditioning") | model_input(ctx.config) | policy_inputs
    key = STAGE.begin(ctx.run, ctx.config, stage, inputs)
    shards = chunks(prompts_of(ctx, round_.index), cfg.shard_size)
    purpose = "rollout" if round_.index == 1 else f"rollout{round_.index}"

    def task(i: int) -> worker.Task:
        return worker.Task(ctx.config.model, tasks.sampling(ctx, stage, policy, purpose, shards[i], cfg.num_candidates,
                                                            cfg.sampling))

    def store(folder: ShardFolder, i: int, made: worker.Made) -> None:
        folder.write(i, made.candidates, Candidate)

    return Leg(stage, ctx.shards(stage, key), len(shards), task, worker.work, store)


def finish(ctx: Context, leg: Leg, seconds: float) -> None:
    """Mark the stage as done, and tell what came out where something was made."""
    if ctx.run.is_done(leg.stage) and not leg.rows:
        ctx.run.finish(leg.stage, content=leg.folder.content(), seconds=0.0)
        return
    reasons: dict[str, int] = {}
    spoken, prompts, codec = 0.0, set(), codec_of(ctx.config.model)
    for row in leg.folder.all_rows(["end_reason", "codes", "prompt_id"]):
        reasons[row["end_reason"]] = reasons.get(row["end_reason"], 0) + 1
        spoken += codec.seconds(row["codes"])
        prompts.add(row["prompt_id"])
    ctx.say(f"{leg.stage}: {count(sum(reasons.values()), 'candidate')} of {count(len(prompts), 'prompt')}, "
            f"{spoken:.0f} s of speech, "
            + ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items())))
    ctx.run.finish(leg.stage, content=leg.folder.content(), seconds=seconds, counts=reasons)


def _plan(config: RunConfig, sizes: dict[str, int], round_: Round) -> list[Step]:
    if not round_.samples(config):
        return []
    prompts, each = per_round(config, sizes), config.rollouts.num_candidates
    return [Step("rollouts", f"{round_}: {count(prompts * each, 'candidate')} ({count(prompts, 'prompt')} x {each})")]


def sampled(job: Job, index: int) -> tuple[int, int]:
    """Policies that a round samples from, and candidates in all; none where every variant learns from a file."""
    if all(cfg.data in ("file", "online") for cfg in job.config.variants.values()):
        return 0, 0
    policies = 1 if index == 1 else len(job.config.variants)
    return policies, policies * per_round(job.config, job.sizes) * job.config.rollouts.num_candidates


def _work(job: Job, index: int) -> list[Part]:
    policies, candidates = sampled(job, index)
    if not policies:
        return []
    each = job.config.rollouts.num_candidates
    works = cost.rollouts(job.geometry, candidates / each, each, job.lengths, rows_at_a_time(job, each),
                          job.config.model.dtype)
    return [Part("rollouts", f"round {index}: {count(candidates, 'candidate')}", works, job.devices,
                 job.peaks["rollouts"], candidates * job.lengths.codes * memory.ROLLOUT_BYTES_A_CODE, policies)]


STAGE = Stage("rollouts", "rollouts", make, "round", plan=_plan, work=_work,
              rules=("sampling",), key=("rollouts", "seed", "model.dtype", "model.attn_implementation"),
              through=("model.adapter", *MODEL))
