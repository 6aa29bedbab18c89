"""Completions: what supervised variants imitate, as one shard and as a Hugging Face dataset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from talker_rl.base.errors import DataError, StageError
from talker_rl.base.figures import count, written
from talker_rl.base.file_hash import cached_hash
from talker_rl.config import RunConfig
from talker_rl.data.prompt_files import parse_source
from talker_rl.records.candidate import Candidate
from talker_rl.records.pair import Completion
from talker_rl.rounds import Round
from talker_rl.speech.registry import codec_of
from talker_rl.stages.context import Context
from talker_rl.stages.feasible import advice
from talker_rl.stages.inputs import model_input
from talker_rl.stages.rollouts import prompts_of
from talker_rl.stages.scores import load_scores
from talker_rl.stages.stage import Stage, Step
from talker_rl.store.run_dir import timed


def make(ctx: Context, round_: Round) -> None:
    """Write ``completions/<data>/`` of a round for each that variants learn from."""
    for data in round_.data(ctx.config):
        if data is not None:
            _make(ctx, round_, data)


def _make(ctx: Context, round_: Round, data: str) -> None:
    """One of them; every prompt or row that gives none is counted by its reason.

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
        inputs = {"completions.file": cached_hash(file), **ctx.contents("conditioning")}
    else:
        inputs = ctx.contents(round_.stage("rollouts"), round_.stage("scores"))
    kind = STAGE if data == "best_of_n" else replace(STAGE, key=())
    folder = ctx.shards(stage, kind.begin(ctx.run, ctx.config, stage, inputs))
    if ctx.run.is_done(stage) and folder.has(0):
        return
    with timed() as seconds:
        if data == "file":
            assert file is not None
            prompts = ctx.prompts("train")
            found, reasons = import_completions(file, prompts, codec_of(ctx.config.model))
        else:
            prompts = prompts_of(ctx, round_.index)
            candidates = ctx.shards(round_.stage("rollouts")).read_all(Candidate)
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
                           source={"run": ctx.config.name, **model_input(ctx.config)})
    rewards = [c.reward for c in found if c.reward is not None]
    ctx.say(f"{stage}: {count(len(found), 'completion')} of {len({c.prompt_id for c in found})} of "
            f"{count(len(prompts), 'prompt')}, "
            f"{sum(c.seconds for c in found):.0f} s of speech"
            + (f", mean reward {written(sum(rewards) / len(rewards))}" if rewards else ""))
    ctx.run.finish(stage, content=folder.content(), seconds=seconds[0],
                   counts={"completions": len(found), "prompts": len(prompts), "no_completion": reasons})


def _plan(config: RunConfig, sizes: dict[str, int], round_: Round) -> Iterator[Step]:
    cfg = config.completions
    least = "" if cfg.min_reward is None else f" with {cfg.reward_key} >= {cfg.min_reward:g}"
    told = {"file": f"the codes of {cfg.file or config.prompts.train}",
            "best_of_n": f"the best {cfg.max_per_prompt} of each prompt's candidates{least}"}
    return (Step("completions", f"{round_}: {told[data]}") for data in round_.data(config) if data is not None)


STAGE = Stage(
    "completions", "completions", make, "round", plan=_plan, through=("completions.file", "prompts.train"),
    key=("completions.reward_key", "completions.min_reward", "completions.max_per_prompt", "completions.unwritten",
         "reward.remove_length"),
)
