"""Training: variants' losses on the pairs or completions of a round, from the policy as that round began.

Trainings don't depend on each other, so several of them run over the workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talker_rl.base.errors import ConfigError
from talker_rl.base.figures import count
from talker_rl.base.ids import derive_seed
from talker_rl.base.processes import WorkerPool, one_thread
from talker_rl.config import RunConfig
from talker_rl.planning import cost, memory
from talker_rl.planning.forecast import Job, Part, records
from talker_rl.planning.hardware import Work
from talker_rl.records.pair import Completion, Pair
from talker_rl.speech.registry import family_of
from talker_rl.stages.choice import start_of
from talker_rl.stages.context import Context
from talker_rl.stages.inputs import model_input, start_adapter, start_input
from talker_rl.stages.rounds import Round, train_stage
from talker_rl.stages.stage import MODEL, Stage, Step
from talker_rl.store.run_dir import timed
from talker_rl.store.shards import ShardFolder
from talker_rl.train.config import TrainConfig


@dataclass
class Training:
    """What is to be trained: a variant of a run's round."""

    ctx: Context
    variant: str
    round_: Round
    start: Path | None = None
    """Adapter that training begins with (round 2 and later, or ``model.adapter``)."""
    start_inputs: dict[str, str] = field(default_factory=dict)
    """What it comes from -> its content."""


@dataclass
class TrainTask:
    """One training as plain data: it means the same in this process and in a worker."""

    config: dict[str, Any]
    run: str
    stage: str
    source: str
    variant: str
    start: str | None
    reference: str
    """As ``train_variant`` takes it."""
    one_thread: bool
    """Sums in an order that does not depend on where the training runs; a run's only training takes all threads."""
    progress: bool


def run(ctx: Context, round_: Round) -> None:
    """Train a round's variants."""
    train_all(ctx.pool, [Training(ctx, variant, round_, *start_of(ctx, round_, variant))
                         for variant in round_.variants(ctx.config)])


def train_all(pool: WorkerPool, trainings: Sequence[Training]) -> None:
    """Train what is not finished: over the workers, or here where it is its run's only training."""
    todo = [(training, task) for training in trainings if (task := _begin(training)) is not None]
    here = [both for both in todo if not both[1].one_thread]
    spread = [both for both in todo if both[1].one_thread]
    for training, task in here:
        _finish(training, task, train_task(task))
    for i, made in pool.imap(train_task, [task for _, task in spread]):
        _finish(*spread[i], made)


def _begin(training: Training) -> TrainTask | None:
    """The task of a training, or None if it is finished."""
    ctx, variant, index = training.ctx, training.variant, training.round_.index
    cfg = ctx.config.train[variant]
    stage, source = train_stage(variant, index), training.round_.data_stage(cfg.data)
    inputs = {**ctx.contents(source, "conditioning"), **model_input(ctx.config), **training.start_inputs}
    settings = {"train": cfg.model_dump(mode="json"), "held_out_share": ctx.config.dev.held_out_share}
    kept = index > 1 and ctx.config.reference == "kept"
    if kept:
        settings["reference"], inputs = "kept", inputs | start_input(ctx.config)
    reference = str(start_adapter(ctx.config) or "base") if kept else "start"
    STAGE.begin(ctx.run, ctx.config, stage, inputs, settings)
    if ctx.run.is_done(stage) and (ctx.run.path / stage / "result.json").exists():
        return None
    start = str(training.start) if training.start else None
    return TrainTask(ctx.config.resolved(), str(ctx.run.path), stage, source, variant, start, reference,
                     len(ctx.config.train) > 1, not ctx.quiet)


def train_task(task: TrainTask) -> dict[str, Any]:
    """Train one variant; returns ``pairs``, ``held_out``, ``steps``, ``seconds`` and the tracker, if it still works."""
    from talker_rl.speech.cache import ConditioningCache
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
    from talker_rl.tracking import Tracking
    from talker_rl.train.callbacks import Track
    from talker_rl.train.run import train_variant

    config, path = RunConfig.model_validate(task.config), Path(task.run)
    pairs = trained_on(path / task.source, config.train[task.variant].data)
    share = config.dev.held_out_share
    held_out = [p for p in pairs if is_held_out(p.prompt_id, share)]
    fitted = [p for p in pairs if not is_held_out(p.prompt_id, share)]
    tracking = Tracking(config, path)
    threads = one_thread() if task.one_thread else nullcontext()
    with timed() as seconds, threads, tracking.stage(task.stage) as tracker:
        omni = load_omni(config.model, parts=("talker",))  # its own copy: training wraps and changes it
        conditionings = ConditioningCache(path / "conditioning", strict=True).load([p.prompt_id for p in pairs])
        result = train_variant(
            omni, fitted, conditionings, config.train[task.variant], path / task.stage, eval_pairs=held_out or None,
            start_adapter=task.start, reference=task.reference, progress=task.progress,
            reference_cache=path / "reference", extra_callbacks=[Track(tracker.log)],
        )
    return {"pairs": len(fitted), "held_out": len(held_out), "steps": result["steps"], "seconds": seconds[0],
            "tracking": tracking.to}


def _finish(training: Training, task: TrainTask, made: dict[str, Any]) -> None:
    """Note a training as done."""
    from talker_rl.speech.files import content_hash

    ctx, folder = training.ctx, Path(task.run) / task.stage
    ctx.tracking.to = made["tracking"]
    weights = next(folder / n for n in ("adapter_model.safetensors", "model.safetensors") if (folder / n).exists())
    cfg = ctx.config.train[task.variant]
    ctx.say(f"{task.stage}: {cfg.loss['type']} on {count(made['pairs'], 'completion' if cfg.data else 'pair')}"
            + (f", {made['held_out']} held out" if made["held_out"] else "")
            + f": {count(made['steps'], 'step')} in {made['seconds']:.0f} s")
    ctx.run.finish(task.stage, content=content_hash(weights), seconds=made["seconds"],
                   counts={name: made[name] for name in ("pairs", "held_out", "steps")})


def trained_on(folder: Path, data: str | None) -> list[Pair]:
    """Records of a finished stage of pairs (data None) or completions, as the trainer takes them."""
    shards = ShardFolder(folder)
    return shards.read(0, Pair) if data is None else [c.as_pair() for c in shards.read(0, Completion)]


def is_held_out(prompt_id: str, share: float) -> bool:
    """Whether a prompt's pairs are kept out of training: a property of the prompt, not of who else is there."""
    return share > 0 and derive_seed("held-out", prompt_id) / 2**31 < share


def check_arguments(ctx: Context) -> None:
    """Every variant's training arguments, before hours of sampling and not after.

    Raises:
        ConfigError: an unknown or refused argument, or one that does not fit.
    """
    from talker_rl.train.arguments import build_arguments

    for variant, cfg in ctx.config.train.items():
        try:
            build_arguments(cfg.args, ctx.run.path / "train" / variant)
        except ConfigError as error:
            where = (error.where or "").replace("train.args", f"train.{variant}.args")
            raise ConfigError(error.what, where=where, fix=error.fix) from None


def check_lora(config: RunConfig) -> None:
    """Whether the adapters that the variants would train fit the model's Talker; no weights are read.

    Raises:
        ConfigError: ``lora.target_modules`` of a variant is no regular expression, or names what cannot be trained.
    """
    checked, family = [], family_of(config.model.path)
    for variant, cfg in config.train.items():
        if cfg.lora is None or cfg.lora in checked:
            continue
        try:
            family.check_lora(config.model, cfg.lora)
        except ConfigError as error:
            raise ConfigError(error.what, where=f"train.{variant}.{error.where}", fix=error.fix) from None
        checked.append(cfg.lora)


def training_length(cfg: TrainConfig) -> str:
    """Of a training, for people."""
    return count(cfg.fixed_steps, "step") if cfg.fixed_steps else count(cfg.args.get("num_train_epochs", 3), "epoch")


def _plan(config: RunConfig, sizes: dict[str, int], round_: Round) -> list[Step]:
    assert round_.variant is not None
    cfg = config.train[round_.variant]
    return [Step("training", f"{round_}: {cfg.loss['type']}, {training_length(cfg)}")]


def _work(job: Job, index: int) -> list[Part]:
    """All variants of a round; the first pays for the reference log-probs that they share."""
    config, geo, at = job.config, job.geometry, job.lengths
    variants = list(config.train.values())
    works: list[Work] = []
    disk = 0.0
    for number, cfg in enumerate(variants):
        pairs, sides = records(job, cfg), cfg.sides
        dtype = "bfloat16" if cfg.args.get("bf16") else config.model.dtype
        if number < (1 if index == 1 else len(variants)):
            disk += pairs * (memory.PAIR_BYTES + sides * at.codes * 4)
            works += cost.reference(geo, pairs, at, cfg.reference_batch_size, dtype, sides)
        works += cost.training(
            geo, cfg.steps(pairs) * cfg.pairs_per_step, at, cfg.args.get("per_device_train_batch_size", 8), dtype,
            cfg.lora, bool(cfg.args.get("gradient_checkpointing")), sides,
        )  # fmt: skip
        disk += memory.checkpoints_on_disk(geo, config, cfg, cfg.checkpoints(pairs))
    one = len(variants) == 1  # alone it has all cores
    parallel = (job.devices if job.machine.is_cpu else 1) if one else min(job.devices, len(variants))
    total = sum(cfg.steps(records(job, cfg)) for cfg in variants)
    label = f"round {index}: {count(total, 'step')}, {count(len(variants), 'variant')}"
    return [Part("training", label, works, parallel, job.peaks["training"], disk, len(variants))]


STAGE = Stage("train", "training", run, "variant", key=("model.dtype", "model.attn_implementation"), plan=_plan,
              work=_work, through=("train", "dev.held_out_share", "reference", "model.adapter", *MODEL))
