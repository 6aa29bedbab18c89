"""Pairs: chosen and rejected of each prompt, in shards and as a Hugging Face preference dataset."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from talker_rl.base.errors import DataError, StageError
from talker_rl.base.figures import count
from talker_rl.base.file_hash import cached_hash
from talker_rl.config import RunConfig
from talker_rl.losses.config import parse_loss, parts_of
from talker_rl.planning.sizes import per_round
from talker_rl.records.pair import Pair
from talker_rl.records.token_classes import CLASSES
from talker_rl.rounds import Round
from talker_rl.stages import anatomy
from talker_rl.stages.context import Context
from talker_rl.stages.feasible import advice
from talker_rl.stages.inputs import model_input
from talker_rl.stages.scores import Scored
from talker_rl.stages.stage import Stage, Step
from talker_rl.store.run_dir import timed
from talker_rl.store.shards import ShardFolder
from talker_rl.store.sorting import Sorted, write


def make(ctx: Context, round_: Round) -> None:
    """Write ``pairs/`` of a round whose variants learn from pairs; a prompt that gives none is counted by its reason.

    Raises:
        StageError: no prompt gives a pair.
        DataError: the votes cannot be read, or name a pair that this run does not have.
    """
    from talker_rl.data.export import export_pairs
    from talker_rl.data.import_pairs import import_votes
    from talker_rl.data.pairs import REASONS

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
    if ctx.run.is_done(stage) and not folder.missing(max(1, len(folder))):
        return
    with timed() as seconds:
        scored = Scored(ctx, round_)
        if votes is not None:
            pairs, reasons = import_votes(votes, scored.prompts, scored.candidates())
            told = _WithClasses(anatomy.heard_in(ctx.run.path, ctx.config, pairs, round_.prefix))(pairs) \
                if by_class else pairs
            _tell_classes(ctx, write(folder, [told], Pair), len(pairs) - len(told))
        else:
            reasons = _select(ctx, scored, folder, by_class)
        source = "prompt" if votes is None else "vote"
        for reason, n in sorted(reasons.items()):
            if n:
                ctx.say(f"{stage}: {count(n, f'{source} gives', f'{source}s give')} no pair: "
                        f"{REASONS.get(reason, reason)}")
        found = folder.records(Pair)
        if not found and votes is not None:
            raise StageError("No prompt gives a pair", where=str(ctx.run.path / stage),
                             fix="vote for one side of some pairs")
        if not found:
            why, fix = advice(ctx.config, reasons, scored.scores(), ctx.config.pairs.reward_key,
                              "pairs.min_chosen_reward")
            raise StageError(f"No prompt gives a pair ({why})", where=str(ctx.run.path / stage), fix=fix)
        export_pairs(found, ctx.run.path / stage, prompts=scored.prompts, reasons=reasons,
                     source={"run": ctx.config.name, **model_input(ctx.config)})
    shorter = sum(c < r for c, r in zip(*map(found.column, ("chosen_seconds", "rejected_seconds")), strict=True))
    ctx.say(f"{stage}: {count(len(found), 'pair')} of {count(len(scored.prompts), 'prompt')}, mean margin "
            f"{sum(found.column('margin')) / len(found):.3f}, chosen is shorter in {shorter / len(found):.0%}")
    anatomy.warn(ctx, round_)
    ctx.run.finish(stage, content=folder.content(), seconds=seconds[0],
                   counts={"pairs": len(found), "prompts": len(scored.prompts), "no_pair": dict(reasons)})


def _select(ctx: Context, scored: Scored, folder: ShardFolder, by_class: bool) -> dict[str, int]:
    """Choose pairs shard by shard and write them, sorted by prompt id; prompts that gave none by reason."""
    from talker_rl.data.pairs import PairSelection

    selection = PairSelection(ctx.config.pairs)
    if selection.looks:
        for part in scored:
            selection.look(*part)
    rank = {name: i for i, name in enumerate(sorted(p.prompt_id for p in scored.prompts))}
    without = 0
    with Sorted(Pair, lambda pair: rank[pair.prompt_id], len(rank), folder.path) as chosen:
        for prompts, candidates, scores in scored:
            if not by_class:
                chosen.add(selection.choose(prompts, candidates, scores))
                continue
            told = _WithClasses(anatomy.Heard(ctx.config, candidates, scores, prompts))
            chosen.add(selection.choose(prompts, candidates, scores, told))
            without += told.without
        written = write(folder, (selection.finish(part) for part in chosen.parts()), Pair)
    if by_class:
        _tell_classes(ctx, written, without)
    return dict(sorted(Counter(selection.reason_of.values()).items()))


@dataclass
class _WithClasses:
    """Makes pairs say what each token is, for losses with ``token_weights``: those of which it can be told."""

    heard: anatomy.Heard
    without: int = 0
    """Pairs of which it could not."""

    def __call__(self, pairs: list[Pair]) -> list[Pair]:
        told = [replace(pair, chosen_classes=[CLASSES.index(kind) for kind in chosen.classes],
                        rejected_classes=[CLASSES.index(kind) for kind in rejected.classes])
                for pair, (chosen, rejected) in self.heard.sides(pairs)]
        self.without += len(pairs) - len(told)
        return told


def _tell_classes(ctx: Context, told: int, without: int) -> None:
    """Say of how many pairs it cannot be told what their tokens are.

    Raises:
        StageError: of none it can.
    """
    if without and not told:
        raise StageError("No pair has a time for each word that was heard, which token_weights need",
                         where=str(ctx.run.path / "scores"), fix=f"{anatomy.NO_TIMES}, or leave token_weights out")
    if without:
        ctx.say(f"pairs: {count(without, 'pair is', 'pairs are')} left out: without a time for each word "
                "token_weights cannot tell what its tokens say")


def _plan(config: RunConfig, sizes: dict[str, int], round_: Round) -> list[Step]:
    if None not in round_.data(config):
        return []
    most = per_round(config, sizes) * config.pairs.max_pairs_per_prompt
    return [Step("pairs", f"{round_}: at most {count(most, 'pair')}")]


STAGE = Stage("pairs", "pairs", make, "round", key=("pairs", "reward.remove_length"), plan=_plan)
