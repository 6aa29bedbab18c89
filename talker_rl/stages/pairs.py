"""Pairs: chosen and rejected of each prompt, as one shard and as a Hugging Face preference dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from talker_rl.base.errors import DataError, StageError
from talker_rl.base.figures import count
from talker_rl.base.file_hash import cached_hash
from talker_rl.config import RunConfig
from talker_rl.losses.config import parse_loss, parts_of
from talker_rl.planning.sizes import per_round
from talker_rl.records.candidate import Candidate
from talker_rl.records.pair import Pair
from talker_rl.records.token_classes import CLASSES
from talker_rl.rounds import Round
from talker_rl.stages import anatomy
from talker_rl.stages.context import Context
from talker_rl.stages.feasible import advice
from talker_rl.stages.inputs import model_input
from talker_rl.stages.rollouts import prompts_of
from talker_rl.stages.scores import load_scores
from talker_rl.stages.stage import Stage, Step
from talker_rl.store.run_dir import timed


def make(ctx: Context, round_: Round) -> None:
    """Write ``pairs/`` of a round whose variants learn from pairs; a prompt that gives none is counted by its reason.

    Raises:
        StageError: no prompt gives a pair.
        DataError: the votes cannot be read, or name a pair that this run does not have.
    """
    from talker_rl.data.export import export_pairs
    from talker_rl.data.import_pairs import import_votes
    from talker_rl.data.pairs import REASONS, select_pairs

    if None not in round_.data(ctx.config):
        return
    stage = round_.stage("pairs")
    votes = Path(ctx.config.pairs.votes) if ctx.config.pairs.votes and round_.index == 1 else None
    sources = [round_.stage("rollouts"), round_.stage("scores")]
    inputs = ctx.contents(*sources)
    if votes is not None:
        if not votes.is_file():
            raise DataError("The votes file does not exist", where=str(votes), fix="check the path (pairs.votes)")
        inputs["votes"] = cached_hash(votes)
    losses = [ctx.config.variants[name].loss for name in round_.variants(ctx.config)]
    by_class = any(getattr(part, "token_weights", None) for loss in losses for part in parts_of(parse_loss(loss)))
    folder = ctx.shards(stage, STAGE.begin(ctx.run, ctx.config, stage, inputs, {"token_classes": True} if by_class else
                                           None))
    if ctx.run.is_done(stage) and folder.has(0):
        return
    with timed() as seconds:
        prompts = prompts_of(ctx, round_.index)
        candidates = ctx.shards(sources[0]).read_all(Candidate)
        scores = load_scores(ctx, round_)
        if votes is not None:
            pairs, reasons = import_votes(votes, prompts, candidates)
        else:
            pairs, reasons = select_pairs(prompts, candidates, scores, ctx.config.pairs)
        source = "prompt" if votes is None else "vote"
        for reason, n in sorted(reasons.items()):
            if n:
                ctx.say(f"{stage}: {count(n, f'{source} gives', f'{source}s give')} no pair: "
                        f"{REASONS.get(reason, reason)}")
        if not pairs and votes is not None:
            raise StageError("No prompt gives a pair", where=str(ctx.run.path / stage),
                             fix="vote for one side of some pairs")
        if not pairs:
            why, fix = advice(ctx.config, reasons, scores, ctx.config.pairs.reward_key, "pairs.min_chosen_reward")
            raise StageError(f"No prompt gives a pair ({why})", where=str(ctx.run.path / stage), fix=fix)
        heard = anatomy.Heard(ctx.config, candidates, scores, prompts)
        if by_class:
            pairs = _with_classes(ctx, pairs, heard)
        folder.write(0, pairs, Pair)
        export_pairs(pairs, ctx.run.path / stage, prompts=prompts, reasons=reasons,
                     source={"run": ctx.config.name, **model_input(ctx.config)})
    shorter = sum(p.chosen_seconds < p.rejected_seconds for p in pairs) / len(pairs)
    ctx.say(f"{stage}: {count(len(pairs), 'pair')} of {count(len(prompts), 'prompt')}, mean margin "
            f"{sum(p.margin for p in pairs) / len(pairs):.3f}, chosen is shorter in {shorter:.0%}")
    anatomy.warn(ctx, round_, (pairs, heard))
    ctx.run.finish(stage, content=folder.content(), seconds=seconds[0],
                   counts={"pairs": len(pairs), "prompts": len(prompts), "no_pair": dict(reasons)})


def _with_classes(ctx: Context, pairs: list[Pair], heard: anatomy.Heard) -> list[Pair]:
    """Pairs that say what each of their tokens is, for losses with ``token_weights``.

    Raises:
        StageError: of none it can be told.
    """
    out = [replace(pair, chosen_classes=[CLASSES.index(kind) for kind in chosen.classes],
                   rejected_classes=[CLASSES.index(kind) for kind in rejected.classes])
           for pair, (chosen, rejected) in heard.sides(pairs)]
    if not out:
        raise StageError("No pair has a time for each word that was heard, which token_weights need",
                         where=str(ctx.run.path / "scores"), fix=f"{anatomy.NO_TIMES}, or leave token_weights out")
    if len(out) < len(pairs):
        ctx.say(f"pairs: {count(len(pairs) - len(out), 'pair is', 'pairs are')} left out: without a time for each word "
                "token_weights cannot tell what its tokens say")
    return out


def _plan(config: RunConfig, sizes: dict[str, int], round_: Round) -> list[Step]:
    if None not in round_.data(config):
        return []
    most = per_round(config, sizes) * config.pairs.max_pairs_per_prompt
    return [Step("pairs", f"{round_}: at most {count(most, 'pair')}")]


STAGE = Stage("pairs", "pairs", make, "round", key=("pairs", "reward.remove_length"), plan=_plan)
