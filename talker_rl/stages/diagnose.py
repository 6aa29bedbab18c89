"""Diagnostics of trained variants: log-probs of the pairs at every checkpoint and of fresh samples, and the figures.

    diagnostics/<variant>/pairs.parquet     a row a (step, pair)            talker_rl.diagnostics.records.PairRecord
                          samples.parquet   a row a sample of the evaluation                              SampleRecord
                          summary.json      talker_rl.diagnostics.summary
                          parts/            the same in shards: what an interruption keeps
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from talker_rl.base.disk import atomic_write, read_json
from talker_rl.base.errors import StageError
from talker_rl.base.figures import count
from talker_rl.base.ids import derive_seed, stable_hash
from talker_rl.base.seals import is_intact, seal
from talker_rl.base.text.tokens import normalize
from talker_rl.data.pairs import is_held_out
from talker_rl.diagnostics.anatomy import SIDES, Side, anatomy
from talker_rl.diagnostics.moved import moved
from talker_rl.diagnostics.records import ForcedPair, PairRecord, SampleRecord
from talker_rl.diagnostics.stability import LAST
from talker_rl.diagnostics.summary import summarize
from talker_rl.losses.config import parse_loss, parts_of
from talker_rl.records.pair import Pair
from talker_rl.records.speech import Speech
from talker_rl.rounds import Round, choice_stage, train_stage
from talker_rl.stages import drift, reward_noise
from talker_rl.stages.anatomy import heard_in, is_own
from talker_rl.stages.choice import chosen_policy, dev_candidates, dev_rows
from talker_rl.stages.context import Context
from talker_rl.stages.evaluate import eval_candidates, eval_rows
from talker_rl.stages.forcing import Forced, ForceTask, force, speech_of
from talker_rl.stages.inputs import model_input, start_adapter
from talker_rl.stages.online import live_pairs
from talker_rl.stages.stage import MODEL, Stage
from talker_rl.store.run_dir import timed
from talker_rl.store.shards import ShardFolder, chunks, parquet_bytes, schema_of, table_of

Row = dict[str, Any]

SHARD = 64
"""Pairs or samples per shard."""

MAX_PAIRS = 256
"""Pairs that are looked at, at every checkpoint: enough for a mean margin within 6 % of its spread, at a cost that does
not grow with the data."""


def make(ctx: Context, variants: Sequence[str] = (), noise_decodes: int | None = None) -> dict[str, Row]:
    """Write ``diagnostics/<variant>/`` of trained variants; returns their summaries.

    Args:
        variants: names; all of the run's where empty.
        noise_decodes: measure the reward's noise with so many decodes per candidate; None takes what was measured.

    Raises:
        StageError: no such variant, or it is not trained, chosen and evaluated yet.
    """
    unknown = [name for name in variants if name not in ctx.config.variants]
    if unknown:
        raise StageError(f"There is no variant {unknown[0]!r} in this run", where=str(ctx.run.path),
                         fix=f"one of: {', '.join(ctx.config.variants)}")
    paired = [name for name, cfg in ctx.config.variants.items() if cfg.data in (None, "online")]
    alone = [name for name in variants if name not in paired]
    if alone or not paired:
        raise StageError("Diagnostics compare the two sides of pairs, and "
                         f"{(alone or list(ctx.config.variants))[0]} was trained on completions",
                         where=str(ctx.run.path),
                         fix="look at its eval/<variant>/summary.json, which has the likelihood of held-out codes")
    names = list(dict.fromkeys(variants)) or paired
    for name in names:  # before hours of work, and before the noise
        ctx.run.content(f"eval/{name}")
    noise = reward_noise.stored(ctx) if noise_decodes is None else reward_noise.make(ctx, noise_decodes)
    return {name: _Variant(ctx, name).run(noise) for name in names}


class _Variant:
    """One variant of the last round, where its records come from and go to."""

    def __init__(self, ctx: Context, name: str) -> None:
        self.ctx, self.name, self.stage = ctx, name, f"diagnostics/{name}"
        self.cfg, self.index = ctx.config.variants[name], ctx.config.iterations
        self.trained, self.choice = train_stage(name, self.index), choice_stage(name, self.index)
        self.round = Round(self.index, None if self.index == 1 else name)
        self.pairs_stage = self.round.stage("pairs")
        self.start = start_adapter(ctx.config) if self.index == 1 else chosen_policy(ctx, name, self.index - 1)
        """The policy that the round began with; None is the base."""
        self.reference = start_adapter(ctx.config) if ctx.config.reference == "kept" else self.start
        """Likewise, what the losses compared with."""

    def run(self, noise: Row) -> Row:
        """Make what is missing, and the figures from all of it."""
        from talker_rl.train.checkpoints import list_checkpoints

        ctx = self.ctx
        live = self.cfg.data == "online"
        learned = () if live else (self.pairs_stage,)  # of an online training the weights stand for what it sampled
        sources = (*learned, "conditioning", self.trained, self.choice, "eval/base", f"eval/{self.name}")
        if "drift" not in ctx.run.stages.get(self.stage, {"config": {"drift": ""}})["config"]:
            ctx.say(f"{self.stage}: made again, since an earlier version estimated the drift from what was sampled")
            ctx.run.clear(self.stage)  # nothing depends on it
        self.key = STAGE.begin(ctx.run, ctx.config, self.stage, ctx.contents(*sources) | model_input(ctx.config),
                               {"dev.held_out_share": ctx.config.checkpoint.held_out_share, "drift": "exact"})
        policies: dict[int, Path | None] = {**list_checkpoints(ctx.run.path / self.trained)}
        policies[0] = self.start
        step = int(read_json(ctx.run.path / self.choice / "choice.json")["step"])
        found = live_pairs(ctx, self.trained) if live else ctx.shards(self.pairs_stage).records(Pair)
        self.pairs = some_pairs(found, ctx.config.checkpoint.held_out_share)
        with timed() as seconds:
            pairs = self._pairs(policies, step)
            samples = self._samples(step)
            spoken = self._moved(policies)
            done = ctx.run.is_done(self.stage)
            for name, folder, cls in (("pairs", pairs, PairRecord), ("samples", samples, SampleRecord)):
                file = ctx.run.path / self.stage / f"{name}.parquet"
                if not done or not is_intact(file):
                    atomic_write(file, parquet_bytes(table_of(list(folder.all_rows()), schema_of(cls))))
                    seal(file.parent, [file.name])
            pushes, more = self._pushes(step, pairs.all_rows())
            summary = summarize(
                variant=self.name, beta=_beta(self.cfg.loss), step=step, pairs=list(pairs.all_rows()),
                samples=list(samples.all_rows()), rows=eval_rows(ctx, self.name), base_rows=eval_rows(ctx, "base"),
                base_lengths=self._base_lengths(), dev_rows=dev_rows(ctx, self.name, self.index),
                moved=moved(list(spoken.all_rows())),
                max_seconds={p.prompt_id: p.max_seconds for p in ctx.prompts("eval") if p.max_seconds is not None},
                noise=noise["figures"], pushes=pushes,
                more_notes=[*noise["notes"], *more, *self._left_out(len(found))],
            )
            file = ctx.run.path / self.stage / "summary.json"
            if not file.exists() or read_json(file) != summary:
                ctx.write_json(f"{self.stage}/summary.json", summary)
        content = stable_hash(pairs.content(), samples.content(), spoken.content())
        if not done or content != ctx.run.content(self.stage):  # the latter is refused
            ctx.run.finish(self.stage, content=content, seconds=seconds[0], counts={
                "steps": len(policies), "pairs": summary["n_pairs"], "samples": summary["n_samples"]})
        return summary

    def _left_out(self, count: int) -> list[str]:
        return [f"pairs: {len(self.pairs)} of {count} were looked at"] if len(self.pairs) < count else []

    # -- pairs ------------------------------------------------------------------------------------------------------

    def _pairs(self, policies: dict[int, Path | None], chosen: int) -> ShardFolder:
        """Every pair at every step: shards of one step each, step 0 first; by token at the chosen one, and at step 0
        where the policy began as another than the reference."""
        ctx = self.ctx
        parts = chunks(self.pairs, SHARD)
        work = [(step, part) for step in sorted(policies) for part in parts]
        stage = f"{self.stage}/parts/pairs"
        folder = ctx.shards(stage, self.key)
        if not folder.missing(len(work)):
            return folder
        references = self._references([pair for part in parts for pair in part])
        by_token = {chosen, 0} if self.start != self.reference else {chosen} - {0}

        def task(i: int) -> ForceTask:
            step, part = work[i]
            # at step 0 the policy is, as a rule, the reference, which is known
            return self._task([policies[step]] if step or self.start != self.reference else [],
                              [(p.prompt_id, side) for p in part for side in (p.chosen, p.rejected)])

        def store(target: ShardFolder, i: int, made: list[list[Forced]]) -> None:
            step, part = work[i]
            records = []
            for k, pair in enumerate(part):
                reference = references[pair.pair_id]
                policy = (made[0][2 * k].logps, made[0][2 * k + 1].logps) if made else reference
                held_out = is_held_out(pair.prompt_id, ctx.config.checkpoint.held_out_share)
                records.append(_pair_record(step, pair, held_out, policy, reference, step in by_token))
            target.write(i, records, ForcedPair)

        return ctx.fill(stage, self.key, len(work), task, force, store)

    def _references(self, pairs: list[Pair]) -> dict[str, tuple[list[float], list[float]]]:
        """Per-token reference log-probs by pair id, in the precision of the model; mostly from the run's cache, which
        training filled."""
        from talker_rl.speech.cache import ConditioningCache
        from talker_rl.speech.registry import load
        from talker_rl.train.reference import reference_logps

        stored = ConditioningCache(self.ctx.run.path / "conditioning", strict=True)
        self.ctx.pool.pin_here()
        generator = load(self.ctx.config.model, parts=("talker",))
        with generator.policy(self.reference, reference=self.reference) as policy:
            found, _ = reference_logps(policy, pairs, stored.load(sorted({p.prompt_id for p in pairs})),
                                       self.ctx.run.path / "reference", batch_size=self.cfg.reference_batch_size)
        return {pair.pair_id: (chosen.tolist(), rejected.tolist())
                for pair, (chosen, rejected) in zip(pairs, found, strict=True)}

    def _pushes(self, step: int, rows: Iterable[Row]) -> tuple[dict[str, Row], list[str]]:
        """What the loss pushes on in the pairs before training and at the chosen checkpoint, by step; and notes."""
        if self.cfg.data == "online":
            return {}, ["pairs: of the groups of all samplings, as online.pairs would choose them; the page of the run "
                        "shows where credit falls"]
        if is_own(self.cfg.loss):
            return {}, ["anatomy: a loss of one's own is not asked what it pushes on"]
        both = heard_in(self.ctx.run.path, self.ctx.config, self.pairs, self.round.prefix).sides(self.pairs)
        if not both:
            return {}, ["anatomy: no pair has a time for each word that was heard"]
        notes = [f"anatomy: {count(len(self.pairs) - len(both), 'pair is', 'pairs are')} left out, without a time for "
                 "each word"] if len(both) < len(self.pairs) else []
        forced = {(row["step"], row["pair_id"]): row for row in rows if row.get("policy_chosen_logps")}
        found = {}
        for at in sorted({0, step}):
            if at == 0 and self.start == self.reference:  # as sampled: nothing has been learned
                sides = [pair for _, pair in both]
            elif (at, both[0][0].pair_id) in forced:
                sides = [_forced_sides(pair, forced[at, of.pair_id]) for of, pair in both]
            else:
                notes.append(f"anatomy: of an earlier version, which kept no log-probs by token at step {at}: "
                             f"--force-stage {self.stage} makes them")
                continue
            found[str(at)] = asdict(anatomy(self.cfg.loss, sides))
        return found, notes

    # -- samples ----------------------------------------------------------------------------------------------------

    def _samples(self, step: int) -> ShardFolder:
        """The evaluation's samples of the chosen policy."""
        ctx = self.ctx
        policy = chosen_policy(ctx, self.name, self.index)
        rows = {row["candidate_id"]: row for row in eval_rows(ctx, self.name)}
        parts = chunks(eval_candidates(ctx, self.name), SHARD)

        def task(i: int) -> ForceTask:
            return self._task([policy, self.reference], _sequences(parts[i]))

        def store(folder: ShardFolder, i: int, made: list[list[Forced]]) -> None:
            forced = iter(zip(*made, strict=True))
            folder.write(i, [
                _sample_record(step, candidate, rows[candidate["candidate_id"]],
                               next(forced) if speech_of(candidate).steps else None)
                for candidate in parts[i]
            ], SampleRecord)

        return ctx.fill(f"{self.stage}/parts/samples", self.key, len(parts), task, force, store)

    def _base_lengths(self) -> list[Row]:
        """Duration and text units of what the base said."""
        rows = {row["candidate_id"]: row for row in eval_rows(self.ctx, "base")}
        return [{"prompt_id": c["prompt_id"], "seconds": speech_of(c).seconds,
                 "units": _units(rows[c["candidate_id"]])} for c in eval_candidates(self.ctx, "base")]

    # -- drift ------------------------------------------------------------------------------------------------------

    def _moved(self, policies: dict[int, Path | None]) -> ShardFolder:
        """What each checkpoint, and the policy that the round began with, sampled for the dev prompts."""
        by_step: dict[int, list[Row]] = defaultdict(list)
        for row in dev_candidates(self.ctx, self.name, self.index):
            by_step[row["step"]].append(row)
        return drift.make(
            self.ctx, f"{self.stage}/parts/moved", self.key, policies, by_step, by_step[0], reference=self.reference,
            exact=self.cfg.lora is not None, batch_size=self.cfg.reference_batch_size)

    def _task(self, policies: list[Path | None], sequences: list[tuple[str, Speech]]) -> ForceTask:
        return ForceTask(
            model=self.ctx.config.model, policies=policies, conditioning=self.ctx.run.path / "conditioning",
            sequences=sequences, batch_size=self.cfg.reference_batch_size,
        )


def some_pairs(pairs: Sequence[Pair], held_out_share: float, count: int = MAX_PAIRS) -> list[Pair]:
    """At most ``count`` pairs, drawn by their ids, half of them held out where so many are; in their order."""
    drawn = sorted((derive_seed("diagnostics", p.pair_id), i, is_held_out(p.prompt_id, held_out_share))
                   for i, p in enumerate(pairs))
    held_out, train = ([i for _, i, held in drawn if held is side] for side in (True, False))
    shares = max(count // 2, count - len(train)), max(count - count // 2, count - len(held_out))
    return [pairs[i] for i in sorted([*held_out[: shares[0]], *train[: shares[1]]])]


def _sequences(candidates: list[Row]) -> list[tuple[str, Speech]]:
    """Prompt id and what was said of the candidates that said anything."""
    return [(c["prompt_id"], speech_of(c)) for c in candidates if speech_of(c).steps]


def _pair_record(
    step: int, pair: Pair, held_out: bool, policy: tuple[list[float], list[float]],
    reference: tuple[list[float], list[float]], by_token: bool,
) -> ForcedPair:
    raw, common = _margins(pair.pair_id, policy, reference)
    tokens = (*policy, *reference) if by_token else ([], [], [], [])
    return ForcedPair(
        step=step, pair_id=pair.pair_id, prompt_id=pair.prompt_id, held_out=held_out,
        chosen_codes=pair.chosen.frames, rejected_codes=pair.rejected.frames,
        chosen_seconds=pair.chosen_seconds, rejected_seconds=pair.rejected_seconds,
        chosen_reward=pair.chosen_reward, rejected_reward=pair.rejected_reward,
        policy_chosen_logp=math.fsum(policy[0]), policy_rejected_logp=math.fsum(policy[1]),
        ref_chosen_logp=math.fsum(reference[0]), ref_rejected_logp=math.fsum(reference[1]),
        margin_raw=raw, margin_common=common,
        policy_chosen_logps=tokens[0], policy_rejected_logps=tokens[1],
        ref_chosen_logps=tokens[2], ref_rejected_logps=tokens[3],
    )


def _forced_sides(sides: tuple[Side, Side], row: Row) -> tuple[Side, Side]:
    """The sides of a pair with the log-probs of a checkpoint."""
    chosen, rejected = (replace(side, logps=row[f"policy_{name}_logps"], ref_logps=row[f"ref_{name}_logps"])
                        for name, side in zip(SIDES, sides, strict=True))
    return chosen, rejected


def _margins(
    pair_id: str, policy: tuple[list[float], list[float]], reference: tuple[list[float], list[float]]
) -> tuple[float, float]:
    """DPO's and SamPO's margin of a pair without beta, by the losses themselves; SamPO's draw is fixed by the pair."""
    import torch

    from talker_rl.losses import PairBatch, build_loss

    (policy_w, policy_l), (ref_w, ref_l) = ([torch.tensor([x], dtype=torch.float64) for x in side]
                                            for side in (policy, reference))
    batch = PairBatch(
        policy_w, policy_l, ref_w, ref_l, torch.ones_like(policy_w, dtype=torch.bool),
        torch.ones_like(policy_l, dtype=torch.bool),
        generator=torch.Generator().manual_seed(derive_seed("margin-common", pair_id)),
    )
    raw, common = (float(build_loss(loss)(batch).margin) for loss in (
        {"type": "dpo", "beta": 1.0}, {"type": "sampo", "beta": 1.0, "mode": "random"}))
    return raw, common


def _sample_record(step: int, candidate: Row, row: Row, forced: tuple[Forced, ...] | None) -> SampleRecord:
    p_stop = forced[0].p_stop if forced else []
    half = len(p_stop) // 2
    return SampleRecord(
        prompt_id=candidate["prompt_id"], candidate_id=candidate["candidate_id"], step=step,
        seconds=speech_of(candidate).seconds, codes=speech_of(candidate).frames, units=_units(row),
        end_reason=candidate["end_reason"],
        policy_logp=math.fsum(forced[0].logps) if forced else None,
        ref_logp=math.fsum(forced[1].logps) if forced else None,
        reward=row["reward"], wer=row.get("wer"),
        p_eos_last=p_stop[-LAST:], p_eos_early=max(p_stop[:half]) if half else None,
    )


def _units(row: Row) -> int:
    """Words (Chinese: characters) of an evaluation row's text."""
    return len(normalize(row["text"], row["lang"]).tokens)


def _beta(loss: dict[str, Any]) -> float | None:
    """Beta of a loss of pairs, of a mixture the first one in it; None where there is none (a policy gradient's is the
    coefficient of a KL)."""
    found = [getattr(part, "beta", None) for part in parts_of(parse_loss(loss)) if part.needs_rejected]
    return next((float(beta) for beta in found if beta is not None), None)


STAGE = Stage("diagnostics", "diagnostics", each=None, key=("model.dtype", "model.attn_implementation"),
              through=("checkpoint.held_out_share", "iterations", "reference", "model.adapter", *MODEL))
