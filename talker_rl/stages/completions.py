"""Completions: what supervised variants imitate, as one shard and as a Hugging Face dataset."""

from __future__ import annotations

from typing import Literal

from talker_rl.base.errors import DataError, StageError
from talker_rl.base.figures import count, written
from talker_rl.base.file_hash import cached_hash
from talker_rl.data.prompt_files import parse_source
from talker_rl.records.candidate import Candidate
from talker_rl.records.pair import Completion
from talker_rl.stages.context import Context, Round
from talker_rl.stages.feasible import advice
from talker_rl.stages.rollouts import prompts_of
from talker_rl.stages.scores import load_scores
from talker_rl.store.run_dir import timed
from talker_rl.store.shards import ShardFolder


def run(ctx: Context, round_: Round, data: Literal["best_of_n", "file"]) -> None:
    """Write ``completions/<data>/`` of a round; every prompt or row that gives none is counted by its reason.

    Raises:
        StageError: no prompt has a candidate that is good enough.
        DataError: the file of codes cannot be read, or holds none of a train prompt.
    """
    from talker_rl.data.completions import REASONS, import_completions, select_completions
    from talker_rl.data.export import export_completions

    stage = round_.data_stage(data)
    file = parse_source(ctx.config.completions.file or ctx.config.prompts.train).path
    if data == "file":
        if file is None or not file.is_file():
            raise DataError("The file of codes does not exist", where=str(file or ctx.config.prompts.train),
                            fix="check completions.file")
        inputs = {"completions.file": cached_hash(file), "conditioning": ctx.run.content("conditioning")}
    else:
        inputs = {name: ctx.run.content(name) for name in (round_.stage("rollouts"), round_.stage("scores"))}
    key = ctx.begin(stage, data, inputs)
    folder = ShardFolder(ctx.run.path / stage, key)
    if ctx.run.is_done(stage) and folder.has(0):
        return
    with timed() as seconds:
        if data == "file":
            assert file is not None
            prompts = ctx.prompts("train")
            found, reasons = import_completions(file, prompts)
        else:
            prompts = prompts_of(ctx, round_.index)
            candidates = ShardFolder(ctx.run.path / round_.stage("rollouts")).read_all(Candidate)
            scores = load_scores(ctx, round_)
            found, reasons = select_completions(prompts, candidates, scores, ctx.config.completions)
        for reason, n in reasons.items():
            ctx.say(f"{stage}: {n} left out: {REASONS[reason]}")
        if not found:
            why, fix = advice(ctx.config, reasons, scores, ctx.config.completions.reward_key, "completions.min_reward")
            raise StageError(f"No candidate is good enough to imitate ({why})", where=str(ctx.run.path / stage),
                             fix=fix)
        folder.write(0, found, Completion)
        export_completions(found, ctx.run.path / stage, reasons=reasons,
                           source={"run": ctx.config.name, **ctx.model_input()})
    rewards = [c.reward for c in found if c.reward is not None]
    ctx.say(f"{stage}: {count(len(found), 'completion')} of {len({c.prompt_id for c in found})} of "
            f"{count(len(prompts), 'prompt')}, "
            f"{sum(c.seconds for c in found):.0f} s of speech"
            + (f", mean reward {written(sum(rewards) / len(rewards))}" if rewards else ""))
    ctx.run.finish(stage, content=folder.content(), seconds=seconds[0],
                   counts={"completions": len(found), "prompts": len(prompts), "no_completion": reasons})
