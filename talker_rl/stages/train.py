"""Training: variants' losses on the pairs or completions of a round, from the policy as that round began.

Each is a task in its stage's folder. Trainings don't depend on each other, so several of them run over the workers;
where the run names devices, one after the other over all of those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talker_rl.base.errors import ConfigError
from talker_rl.base.figures import count
from talker_rl.base.ids import stable_hash
from talker_rl.base.processes import WorkerPool, device_list, device_name
from talker_rl.base.versions import rules_of
from talker_rl.config import RunConfig, load_data
from talker_rl.planning import cost, memory
from talker_rl.planning.forecast import Job, Part, heard, records, spoken
from talker_rl.planning.hardware import Work
from talker_rl.planning.sizes import processes_of, spread_over
from talker_rl.rounds import Round, train_stage
from talker_rl.speech.registry import family_of
from talker_rl.stages import anatomy
from talker_rl.stages.choice import start_of
from talker_rl.stages.context import Context
from talker_rl.stages.inputs import model_input, start_adapter, start_input
from talker_rl.stages.stage import MODEL, Stage, Step
from talker_rl.store.run_dir import timed
from talker_rl.tracking import Tracking
from talker_rl.train.config import CommonConfig
from talker_rl.train.engine_config import LAUNCHED, EngineConfig
from talker_rl.train.launch import TASK, Task, command, launch, made_elsewhere, run_task
from talker_rl.train.online_config import OnlineConfig


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

    @property
    def devices(self) -> list[str]:
        """What it is spread over, one process each; none: it runs in this process, on the model's device."""
        return spread(self.ctx.config, self.engine)

    @property
    def engine(self) -> EngineConfig:
        """What it runs on."""
        return self.ctx.config.variants[self.variant].engine


def spread(config: RunConfig, engine: EngineConfig) -> list[str]:
    """The devices of a training's processes on one machine; none where it needs no process of its own."""
    devices = device_list(engine.processes or config.devices, config.model.device)
    return devices or ([device_name(config.model.device)] if engine.name in LAUNCHED or engine.nodes > 1 else [])


def make(ctx: Context, round_: Round) -> None:
    """Train a round's variants."""
    train_all(ctx.pool, [Training(ctx, variant, round_, *start_of(ctx, round_, variant))
                         for variant in round_.variants(ctx.config)])


def train_all(pool: WorkerPool, trainings: Sequence[Training]) -> None:
    """Train what is not finished: each over the run's devices, where it names some; else over the workers, or here
    where it is its run's only training."""
    todo = begun(trainings)
    for training, _ in todo:
        anatomy.warn(training.ctx, training.round_)
    over_workers = [both for both in todo if both[1].one_thread and not both[0].devices]
    for training, task in todo:
        if training.devices or not task.one_thread:
            _finish(training, task, train_task(task, training.devices))
    for i, made in pool.imap(train_task, [task for _, task in over_workers]):
        _finish(*over_workers[i], made)


def begun(trainings: Sequence[Training]) -> list[tuple[Training, Task]]:
    """Those that are not finished, with the tasks that have been written for them."""
    return [(training, task) for training in trainings if (task := _begin(training)) is not None]


def commands(ctx: Context, round_: Round) -> list[str]:
    """What starts each training of a round that is not finished, on every one of its machines; their tasks are written.
    """
    return [command(Path(task.output) / TASK, len(training.devices) or 1, training.engine.nodes)
            for training, task in begun([Training(ctx, variant, round_, *start_of(ctx, round_, variant))
                                         for variant in round_.variants(ctx.config)])]


def _begin(training: Training) -> Task | None:
    """The task of a training, or None if it is finished."""
    ctx, variant, index = training.ctx, training.variant, training.round_.index
    cfg = ctx.config.variants[variant].training()
    stage, online = train_stage(variant, index), cfg.data == "online"
    source = "prompts" if online else training.round_.data_stage(cfg.data)
    inputs = {**ctx.contents(source, "conditioning"), **model_input(ctx.config), **training.start_inputs}
    settings = {"train": cfg.content(), "held_out_share": ctx.config.checkpoint.held_out_share}
    if online:  # what it samples and how that is judged
        inputs |= {"reward": ctx.scorer_input("recognizer"), **rules_of("sampling", "decoding")}
        if cfg.online and cfg.online.held_out:
            inputs["evaluator"] = ctx.scorer_input("evaluator")
            settings["speaking"] = ctx.config.rollouts.sampling.model_dump(mode="json")
        settings |= {"token2wav": ctx.config.token2wav.model_dump(mode="json"), "seed": ctx.config.seed,
                     "max_new_tokens": ctx.config.rollouts.sampling.max_new_tokens}
    kept = index > 1 and ctx.config.reference == "kept"
    if kept:
        settings["reference"], inputs = "kept", inputs | start_input(ctx.config)
    adapter = start_adapter(ctx.config) if kept else None
    reference = str(adapter.absolute()) if adapter else "base" if kept else "start"
    STAGE.begin(ctx.run, ctx.config, stage, inputs, settings)
    made = all((ctx.run.path / stage / name).exists() for name in ("result.json", "variant.json"))
    if ctx.run.is_done(stage) and made:
        return None
    model = ctx.config.model.model_dump(mode="json")
    if training.devices:
        model["device"] = training.devices[0].partition(":")[0]  # of those that a process sees
    place = ctx.run.path.absolute()  # wherever the task's file is run from
    task = Task(
        output=str(place / stage), model=model, train=cfg.model_dump(mode="json"), data=str(place / source),
        conditioning=str(place / "conditioning"), reference_cache=str(place / "reference"),
        start=str(training.start.absolute()) if training.start else None,
        reference=reference, held_out_share=ctx.config.checkpoint.held_out_share,
        one_thread=len(ctx.config.variants) > 1, progress=not ctx.quiet,
        watch={"function": "talker_rl.stages.train:tracked",
               "arguments": {"config": ctx.config.resolved(), "run": str(place), "stage": stage}},
        judge={"function": "talker_rl.stages.online:judging",
               "arguments": {"config": ctx.config.resolved(), "run": str(place), "endpoints": list(ctx.endpoints),
                             "stage": stage}} if online else None,
        live_key=stable_hash(stage, settings, inputs) if online else "",
    )
    task.write()
    return task


def train_task(task: Task, devices: Sequence[str] = ()) -> dict[str, Any]:
    """Train one variant; returns ``pairs``, ``held_out``, ``steps``, ``seconds``, and of a training in this process the
    tracker, if it still works."""
    assert task.watch is not None
    with timed() as seconds:
        engine = EngineConfig.model_validate(task.train.get("engine", {}))
        if engine.nodes > 1:
            made = made_elsewhere(task, engine.nodes, len(devices))
        elif len(devices) > 1 or "cuda" in "".join(devices) or engine.name in LAUNCHED:
            made = launch(Path(task.output) / TASK, devices)
        else:
            tracking, callbacks = _tracking(**task.watch["arguments"])
            with callbacks as watching:
                made = run_task(task, watching) | {"tracking": tracking.to}
    return {**made, "seconds": seconds[0]}


def tracked(config: dict[str, Any], run: str, stage: str) -> AbstractContextManager[list[Any]]:
    """Trainer callbacks that send what is logged to the run's tracker: what a launched training watches itself with."""
    return _tracking(config, run, stage)[1]


def _tracking(config: dict[str, Any], run: str, stage: str) -> tuple[Tracking, AbstractContextManager[list[Any]]]:
    from talker_rl.train.callbacks import Track

    tracking = Tracking(load_data(config, where=stage), Path(run))

    @contextmanager
    def callbacks() -> Iterator[list[Any]]:
        with tracking.stage(stage) as tracker:
            yield [Track(tracker.log)]

    return tracking, callbacks()


def _finish(training: Training, task: Task, made: dict[str, Any]) -> None:
    """Note a training as done."""
    from talker_rl.speech.files import content_hash

    ctx, folder = training.ctx, Path(task.output)
    stage = train_stage(training.variant, training.round_.index)
    ctx.tracking.to = made.get("tracking", ctx.tracking.to)
    weights = next(folder / n for n in ("adapter_model.safetensors", "model.safetensors") if (folder / n).exists())
    cfg = ctx.config.variants[training.variant]
    learned = {None: "pair", "online": "decode"}.get(cfg.data, "completion")
    ctx.say(f"{stage}: {cfg.loss['type']} on {count(made['pairs'], learned)}"
            + (f", {made['held_out']} held out" if made["held_out"] else "")
            + f": {count(made['steps'], 'step')} in {made['seconds']:.0f} s"
            + (f" on {count(len(training.devices) * training.engine.nodes, 'device')}" if training.devices else ""))
    ctx.run.finish(stage, content=content_hash(weights), seconds=made["seconds"],
                   counts={name: made[name] for name in ("pairs", "held_out", "steps")})


def check_arguments(ctx: Context) -> None:
    """Every variant's training arguments, before hours of sampling and not after.

    Raises:
        ConfigError: an unknown or refused argument, or one that does not fit.
    """
    for variant in ctx.config.variants:
        check_variant(ctx.config, variant, ctx.run.path / "train" / variant)


def check_variant(config: RunConfig, variant: str, folder: Path | str) -> None:
    """One variant's.

    Args:
        folder: where it would be trained; nothing is written.

    Raises:
        ConfigError: as :func:`check_arguments`.
    """
    from talker_rl.train.arguments import build_arguments, check_spread
    from talker_rl.train.engines import deepspeed_settings

    cfg, place = config.variants[variant], config.place_of(variant)
    engine, named = cfg.engine, device_list(config.devices, config.model.device)
    if engine.processes and named and engine.processes != len(named):
        raise ConfigError(f"devices names {len(named)} and engine.processes says {engine.processes}",
                          where=f"{place}.engine.processes", fix="leave one of them out")
    processes = max(1, processes_of(config, cfg))
    if processes % engine.sequence_parallel:
        raise ConfigError(f"{processes} processes cannot share rows by {engine.sequence_parallel}",
                          where=f"{place}.engine.sequence_parallel",
                          fix=f"start a multiple of {engine.sequence_parallel} (devices, engine.processes)")
    if cfg.data == "online" and processes > 1:
        raise ConfigError(f"an online training is one process, and devices names {processes}", where=f"{place}.data",
                          fix="devices: null or a single one; judging takes `workers` processes or --endpoint")
    try:
        deepspeed_settings(engine, cfg.args)
        plain = {name: value for name, value in cfg.args.items() if name != "deepspeed"}
        check_spread(build_arguments(plain, folder), processes // engine.sequence_parallel)
    except ConfigError as error:
        where = re.sub(r"^train\b", place, error.where or "")
        raise ConfigError(error.what, where=where, fix=error.fix) from None


def check_lora(config: RunConfig) -> None:
    """Whether the adapters that the variants would train fit the model's Talker; no weights are read.

    Raises:
        ConfigError: ``lora.target_modules`` of a variant is no regular expression, or names what cannot be trained.
    """
    checked, family = [], family_of(config.model.path)
    for variant, cfg in config.variants.items():
        if cfg.lora is None or cfg.lora in checked:
            continue
        try:
            family.check_lora(config.model, cfg.lora)
        except ConfigError as error:
            raise ConfigError(error.what, where=f"{config.place_of(variant)}.{error.where}", fix=error.fix) from None
        checked.append(cfg.lora)


def training_length(cfg: CommonConfig) -> str:
    """Of a training, for people."""
    return count(cfg.fixed_steps, "step") if cfg.fixed_steps else count(cfg.args.get("num_train_epochs", 3), "epoch")


def _plan(config: RunConfig, sizes: dict[str, int], round_: Round) -> list[Step]:
    assert round_.variant is not None
    cfg = config.variants[round_.variant]
    what = f"{round_}: {cfg.loss['type']}, {training_length(cfg)}"
    if cfg.online is None:
        return [Step("training", what)]
    return [Step("training", f"{what}, {count(cfg.online.decodes, 'decode')}", decodes=cfg.online.decodes)]


def _work(job: Job, index: int) -> list[Part]:
    """All variants of a round; the first pays for the reference log-probs that they share."""
    config, geo, at = job.config, job.geometry, job.lengths
    variants = list(config.variants.values())
    works: list[Work] = []
    disk = 0.0
    for number, cfg in enumerate(variants):
        pairs, sides = records(job, cfg), cfg.sides
        dtype = "bfloat16" if cfg.args.get("bf16") else config.model.dtype
        if cfg.online is not None:
            works += _live_work(job, cfg.online)
            pairs, sides = pairs * cfg.online.num_iterations, 1
            disk += pairs * memory.PAIR_BYTES
        elif number < (1 if index == 1 else len(variants)):
            disk += pairs * (memory.PAIR_BYTES + sides * at.codes * 4)
            works += cost.reference(geo, pairs, at, cfg.reference_batch_size, dtype, sides)
        works += cost.training(
            geo, pairs if cfg.online else cfg.steps(pairs) * cfg.pairs_per_step, at,
            cfg.args.get("per_device_train_batch_size", 8), dtype, cfg.lora,
            bool(cfg.args.get("gradient_checkpointing")), sides,
        )  # fmt: skip
        if cfg.online is None:
            works += cost.exchanged(geo, cfg.steps(pairs) * cfg.pairs_per_step,
                                    cfg.args.get("per_device_train_batch_size", 8), at, dtype, cfg,
                                    processes_of(config, cfg))
        disk += memory.checkpoints_on_disk(geo, config, cfg, cfg.checkpoints(pairs))
    one = len(variants) == 1  # alone it has all cores
    parallel = (job.devices if job.machine.is_cpu else 1) if one else min(job.devices, len(variants))
    total = sum(cfg.steps(records(job, cfg)) for cfg in variants)
    label = f"round {index}: {count(total, 'step')}, {count(len(variants), 'variant')}"
    parallel = spread_over(config) or parallel  # one variant after the other, each over all of them
    return [Part("training", label, works, parallel, job.peaks["training"], disk, len(variants))]


def _live_work(job: Job, online: OnlineConfig) -> list[Work]:
    """Sampling, decoding and judging of an online training; its check-ups are not counted as decodes, and cost."""
    checked = 0.0
    if online.held_out is not None:
        checked = -(-online.samplings // online.held_out.every) * min(online.held_out.prompts, job.sizes["dev"])
    each = online.num_generations
    return [*spoken(job, online.decodes / each, each), *heard(job, "recognizer", online.decodes + checked),
            *spoken(job, checked, 1), *heard(job, "evaluator", checked)]


STAGE = Stage("train", "training", make, "variant", key=("model.dtype", "model.attn_implementation"), plan=_plan,
              work=_work, through=("train", "variants", "checkpoint.select", "checkpoint.metric_for_best_model",
                                  "checkpoint.early_stopping_patience", "checkpoint.save_at_kl",
                                  "checkpoint.stop_at_kl",
                                  "checkpoint.held_out_share", "reference",
                                  "model.adapter", *MODEL))
