"""Completions: what supervised variants imitate, in shards and as a Hugging Face dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from talker_rl.base.errors import DataError, StageError
from talker_rl.base.figures import count, written
from talker_rl.base.file_hash import cached_hash
from talker_rl.config import RunConfig
from talker_rl.data.prompt_files import parse_source
from talker_rl.records.pair import Completion
from talker_rl.records.score import ScoreRow
from talker_rl.rounds import Round
from talker_rl.speech.registry import codec_of
from talker_rl.stages.context import Context
from talker_rl.stages.feasible import advice
from talker_rl.stages.inputs import model_input
from talker_rl.stages.scores import Scored
from talker_rl.stages.stage import Stage, Step
from talker_rl.store.run_dir import timed
from talker_rl.store.shards import ShardFolder
from talker_rl.store.sorting import Sorted, write


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
    from talker_rl.data.completions import REASONS, import_completions
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
    if ctx.run.is_done(stage) and not folder.missing(max(1, len(folder))):
        return
    with timed() as seconds:
        if data == "file":
            assert file is not None
            prompts = ctx.prompts("train")
            scores: Iterator[ScoreRow] = iter(())
            given, reasons = import_completions(file, prompts, codec_of(ctx.config.model))
            write(folder, [given], Completion)
        else:
            scored = Scored(ctx, round_)
            prompts, scores = scored.prompts, scored.scores()
            reasons = _select(ctx, scored, folder)
        found = folder.records(Completion)
        for reason, n in reasons.items():
            ctx.say(f"{stage}: {n} left out: {REASONS[reason]}")
        if not found:
            why, fix = advice(ctx.config, reasons, scores, ctx.config.completions.reward_key, "completions.min_reward")
            raise StageError(f"No candidate is good enough to imitate ({why})", where=str(ctx.run.path / stage),
                             fix=fix)
        export_completions(found, ctx.run.path / stage, reasons=reasons,
                           source={"run": ctx.config.name, **model_input(ctx.config)})
    rewards = [reward for reward in found.column("reward") if reward is not None]
    ctx.say(f"{stage}: {count(len(found), 'completion')} of {len(set(found.column('prompt_id')))} of "
            f"{count(len(prompts), 'prompt')}, "
            f"{sum(found.column('seconds')):.0f} s of speech"
            + (f", mean reward {written(sum(rewards) / len(rewards))}" if rewards else ""))
    ctx.run.finish(stage, content=folder.content(), seconds=seconds[0],
                   counts={"completions": len(found), "prompts": len(prompts), "no_completion": reasons})


def _select(ctx: Context, scored: Scored, folder: ShardFolder) -> dict[str, int]:
    """The best candidates, shard by shard, written sorted by prompt id; prompts that gave none by reason."""
    from talker_rl.data.completions import select_completions

    reasons: Counter[str] = Counter()
    rank = {name: i for i, name in enumerate(sorted(p.prompt_id for p in scored.prompts))}
    with Sorted(Completion, lambda one: rank[one.prompt_id], len(rank), folder.path) as chosen:
        for prompts, candidates, scores in scored:
            found, why = select_completions(prompts, candidates, scores, ctx.config.completions)
            chosen.add(found)
            reasons.update(why)
        write(folder, chosen.parts(), Completion)
    return dict(sorted(reasons.items()))


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
