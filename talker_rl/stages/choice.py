"""Choice: which checkpoint of a training is kept, by what it speaks on dev prompts (early stopping on held-out reward).

Every checkpoint speaks the same prompts from the same seeds. The policy as training began is judged too, as step 0:
it is what the others are measured against, and in later rounds it may win (then the round is undone).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talker_rl.base.disk import atomic_write, read_json
from talker_rl.base.errors import StageError
from talker_rl.base.figures import count, written
from talker_rl.base.seals import seal, unseal
from talker_rl.config import RunConfig
from talker_rl.evaluation.summary import variant_summary
from talker_rl.planning import memory
from talker_rl.planning.forecast import Job, Part, heard, records, spoken
from talker_rl.rounds import Round, choice_stage, train_stage
from talker_rl.speech.adapter_files import intact
from talker_rl.stages import tasks
from talker_rl.stages.context import Context
from talker_rl.stages.inputs import model_input, start_adapter, start_input
from talker_rl.stages.stage import MODEL, REWARD, Stage, Step
from talker_rl.store.run_dir import timed


@dataclass(frozen=True)
class Chosen:
    """A checkpoint that a choice named."""

    stage: Path
    """Folder of its training."""
    round: int
    """The training's round: an earlier one than the choice's where that undid its round."""
    step: int

    @property
    def folder(self) -> Path:
        """Folder of the policy."""
        return self.stage / f"checkpoint-{self.step}"


def make(ctx: Context, round_: Round) -> None:
    """Choose the checkpoints of a round's variants; after the last round they are the run's result."""
    for variant in round_.variants(ctx.config):
        choose(ctx, variant, round_.index)
        if round_.index == ctx.config.iterations:
            export_variant(ctx, variant)


def choose(ctx: Context, variant: str, index: int) -> None:
    """Write ``round<index>/choice/<variant>/choice.json``."""
    from talker_rl.train.checkpoints import list_checkpoints

    stage, trained = choice_stage(variant, index), train_stage(variant, index)
    inputs = {**ctx.contents("prompts", "conditioning", trained), "reward": ctx.scorer_input("recognizer"),
              **model_input(ctx.config), **start_input(ctx.config)}
    cfg = ctx.config.checkpoint
    sampling = cfg.sampling or ctx.config.rollouts.sampling
    key = STAGE.begin(ctx.run, ctx.config, stage, inputs, {
        "dev": cfg.hashed(), "sampling": sampling.model_dump(mode="json"),
        "shard_size": ctx.config.rollouts.shard_size})
    if ctx.run.is_done(stage) and (ctx.run.path / stage / "choice.json").exists():
        return
    checkpoints: dict[int, Path] = list_checkpoints(ctx.run.path / trained)
    if not checkpoints:
        fix = f"set {ctx.config.place_of(variant)}.args.save_steps within max_steps, and --force-stage {trained}"
        raise StageError("Training left no checkpoint to choose from", where=str(ctx.run.path / trained), fix=fix)
    if cfg.tried == "last":
        checkpoints = dict([max(checkpoints.items())])
    elif cfg.tried == "selected":
        step = read_json(ctx.run.path / trained / "result.json")["step"]
        if step not in checkpoints:
            raise StageError(f"The checkpoint that training selected, of step {step}, is not there any more",
                             where=str(ctx.run.path / trained),
                             fix=f"leave {ctx.config.place_of(variant)}.args.save_total_limit out")
        checkpoints = {step: checkpoints[step]}
    known = _start_rows(ctx, variant, index)
    policies: dict[int, Path | None] = {**checkpoints} if known else {0: start_adapter(ctx.config), **checkpoints}
    with timed() as seconds:
        folder = tasks.speak_each(ctx, stage, key, policies, "dev", cfg.num_candidates, sampling)
        table = _table([*known, *folder.all_rows()])
        eligible = [row for row in table if (row["step"] or index > 1) and row[cfg.metric] is not None]
        if not eligible and cfg.keep == "best":
            raise StageError("Nothing that a checkpoint said on dev could be scored", where=str(ctx.run.path / stage),
                             fix="look at error_code in its rows; train with a lower learning rate or fewer steps")
        sign = -1.0 if cfg.metric == "reward" else 1.0
        best = (table[-1] if cfg.keep == "last" else
                min(eligible, key=lambda row: (sign * row[cfg.metric], row["step"])))
        choice = {"round": index, "variant": variant, "step": best["step"], "metric": cfg.metric, "keep": cfg.keep,
                  "checkpoints": table}
        ctx.write_json(f"{stage}/choice.json", choice)
    start = table[0]
    wers = [written(row["wer"], "{:.1%}") for row in (start, best)]
    ctx.say(f"{stage}: step {best['step']} of {', '.join(str(s) for s in checkpoints)}: dev WER {' -> '.join(wers)}, "
            f"reward {written(start['reward'])} -> {written(best['reward'])}")
    before, now = start[cfg.metric], best[cfg.metric]
    if now is None or (before is not None and sign * now >= sign * before):
        ctx.say(f"{stage}: WARNING: step {best['step']} is no better on dev than the policy that training began with")
    ctx.run.finish(stage, content=folder.content(), seconds=seconds[0], counts={"step": best["step"]})


def _start_rows(ctx: Context, variant: str, index: int, below: str = "") -> list[dict[str, Any]]:
    """What the policy that a round begins with said on dev, as step 0, where another choice has heard it already: that
    of the round before, or in round 1 of another variant, which begins alike. Empty where this one has heard it itself.

    Args:
        below: a folder of those stages; ``""`` for their rows.
    """
    if any(row["step"] == 0 for row in ctx.shards(choice_stage(variant, index)).all_rows()):
        return []
    while index > 1:
        stage = choice_stage(variant, index - 1)
        step = read_json(ctx.run.path / stage / "choice.json")["step"]
        if step:
            return [{**row, "step": 0} for row in ctx.shards(f"{stage}{below}").all_rows() if row["step"] == step]
        index -= 1  # the round before was undone: its start is the one of the round before that
    for other in ctx.config.variants:
        stage = choice_stage(other, 1)
        if other != variant and ctx.run.is_done(stage) and any(r["step"] == 0 for r in ctx.shards(stage).all_rows()):
            return [row for row in ctx.shards(f"{stage}{below}").all_rows() if row["step"] == 0]
    return []


def dev_rows(ctx: Context, variant: str, index: int) -> list[dict[str, Any]]:
    """Every dev utterance of a finished choice, by ``step``; step 0 is the policy that the round began with."""
    ctx.run.content(choice_stage(variant, index))
    return [*_start_rows(ctx, variant, index), *ctx.shards(choice_stage(variant, index)).all_rows()]


def dev_candidates(ctx: Context, variant: str, index: int) -> list[dict[str, Any]]:
    """Candidate rows (with codes) of a finished choice, likewise; none where an earlier version kept none."""
    below = f"/{tasks.CANDIDATES}"
    return [*_start_rows(ctx, variant, index, below),
            *ctx.shards(f"{choice_stage(variant, index)}{below}").all_rows()]


def chosen_policy(ctx: Context, variant: str, index: int) -> Path:
    """Folder of the policy that a finished choice named."""
    return _chosen(ctx, variant, index).folder


def start_of(ctx: Context, round_: Round, variant: str | None) -> tuple[Path | None, dict[str, str]]:
    """The policy a round begins with and what it comes from; for round 1 ``model.adapter``, or the base."""
    if round_.index == 1 or variant is None:
        return start_adapter(ctx.config), start_input(ctx.config)
    before = round_.index - 1
    return chosen_policy(ctx, variant, before), ctx.contents(choice_stage(variant, before))


def _chosen(ctx: Context, variant: str, index: int) -> Chosen:
    ctx.run.content(choice_stage(variant, index))
    step = read_json(ctx.run.path / choice_stage(variant, index) / "choice.json")["step"]
    if step == 0:
        return _chosen(ctx, variant, index - 1)
    return Chosen(ctx.run.path / train_stage(variant, index), index, step)


def _table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per step: WER, reward, duration and what else the report draws; None where nothing of it was scored."""
    table = []
    for step in sorted({row["step"] for row in rows}):
        mine = [row for row in rows if row["step"] == step]
        heard = any(row["status"] == "ok" for row in mine)
        summary = variant_summary(mine, resamples=100) if heard else {"n": 0, "failed": len(mine)}
        rewards = [row["reward"] for row in mine if row["reward"] is not None]
        table.append({"step": step, "reward": sum(rewards) / len(rewards) if rewards else None, **{
            name: summary.get(name) for name in ("n", "failed", "wer", "wer_mean", "pause_error", "duration_mean",
                                                 "duration_ratio", "cap_hit_rate", "deletion_rate", "insertion_rate",
                                                 "substitution_rate")}})
    return table


def export_variant(ctx: Context, variant: str) -> Path:
    """Put the chosen policy, its card and the whole training log at ``train/<variant>/``, where PEFT finds it."""
    from talker_rl.train.callbacks import read_log
    from talker_rl.train.card import model_card
    from talker_rl.train.checkpoints import WEIGHT_FILES

    target, last = ctx.run.path / "train" / variant, ctx.config.iterations
    kept = _chosen(ctx, variant, last)
    policy = kept.folder
    names = [name for name in WEIGHT_FILES if (policy / name).is_file()]
    files = [intact(policy / name) for name in names]
    unseal(target)
    for file in files:
        atomic_write(target / file.name, file.read_bytes())
    result = read_json(kept.stage / "result.json")
    dev = ctx.config.checkpoint
    by = "last step" if dev.keep == "last" else f"{dev.metric} of speech on dev prompts"
    chosen = {"name": variant, "step": kept.step, "selected_by": by}
    card = model_card(result | chosen, read_json(kept.stage / "variant.json"),
                      adapter=(policy / "adapter_config.json").is_file())
    atomic_write(target / "README.md", card)
    rows = [{"round": index, **row} for index in range(1, last + 1)
            for row in read_log(ctx.run.path / train_stage(variant, index) / "log.jsonl")]
    atomic_write(target / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    seal(target, [*names, "log.jsonl"])
    ctx.write_json(f"train/{variant}/chosen.json", {"round": kept.round, **chosen})
    return target


def tried(config: RunConfig, variant: str) -> int | None:
    """How many checkpoints a training saves, where that is known beforehand."""
    cfg = config.variants[variant]
    return 1 if config.checkpoint.tried != "all" else cfg.checkpoints(0) if cfg.fixed_steps else None


def _plan(config: RunConfig, sizes: dict[str, int], round_: Round) -> list[Step]:
    assert round_.variant is not None
    saved, first = tried(config, round_.variant), round_.index == 1
    each = sizes["dev"] * config.checkpoint.num_candidates
    known = (count(saved, "checkpoint") if saved else "every saved checkpoint") + " and the start" * first
    return [Step("choice", f"{round_}: {known}, {count(each, 'dev utterance')} each", each * ((saved or 1) + first))]


def _work(job: Job, index: int) -> list[Part]:
    """Saved checkpoints, and in round 1 the start, on dev."""
    config = job.config
    every, each = config.checkpoint.tried == "all", config.checkpoint.num_candidates
    policies = sum((cfg.checkpoints(records(job, cfg)) if every else 1) + (index == 1)
                   for cfg in config.variants.values())
    texts = policies * job.sizes["dev"]
    works = spoken(job, texts, each) + heard(job, "recognizer", texts * each)
    label = f"round {index}: {count(policies, 'policy', 'policies')}, {count(texts * each, 'utterance')}"
    return [Part("choice", label, works, job.devices, job.peaks["choice"], texts * each * memory.SCORE_BYTES,
                 len(config.variants))]


STAGE = Stage(
    "choice", "choice", make, "variant", plan=_plan, work=_work,
    rules=("sampling", "decoding"), key=("token2wav", "seed", "model.dtype", "model.attn_implementation"),
    through=("checkpoint", "rollouts.sampling", "rollouts.shard_size", "model.adapter", *MODEL, *REWARD),
)
