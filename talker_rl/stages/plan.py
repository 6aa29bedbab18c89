"""What a configuration will do, counted before anything is loaded: the dry run, and the demo's budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from talker_rl.base.figures import count
from talker_rl.config import RunConfig
from talker_rl.evaluation.ablation import read_table
from talker_rl.evaluation.power import TYPICAL, measured, smallest
from talker_rl.planning.forecast import Job, Part
from talker_rl.planning.sizes import count_texts, set_sizes
from talker_rl.rounds import Round, rounds_of
from talker_rl.stages import choice
from talker_rl.stages.order import all_stages
from talker_rl.stages.stage import Stage, Step
from talker_rl.stages.train import training_length
from talker_rl.sweep_config import SweepConfig, cell

MICRO_SECONDS = {"utterance": 0.55, "pair": 0.16, "diagnostics": 80.0}
"""Of one core, on the micro model: to sample, decode and judge an utterance; to train on a pair for one step; to
diagnose a training. As the shipped sweep took them in 86 minutes, beside other work (docs/LOG.md)."""


def plan(config: RunConfig) -> list[Step]:
    """The steps of a run; counts are upper bounds, since prompts may be skipped and trainings may stop early."""
    return list(_steps(config))


def _steps(config: RunConfig) -> Iterator[Step]:
    sizes = set_sizes(config)
    before, after = around_rounds()
    for stage in before:
        yield from stage.plan(config, sizes, Round(1)) if stage.plan else ()
    for index in range(1, config.iterations + 1):
        variants = [Round(index, variant) for variant in config.variants]
        for each, rounds in (("round", rounds_of(config.variants, index)), ("variant", variants)):
            for round_ in rounds:
                for stage in all_stages(each):
                    yield from stage.plan(config, sizes, round_) if stage.plan else ()
    for stage in after:
        yield from stage.plan(config, sizes, Round(1)) if stage.plan else ()


def parts(job: Job) -> list[Part]:
    """What the forecast counts, stage by stage."""
    before, after = around_rounds()
    inside = all_stages("round") + all_stages("variant")
    found = [(stage, 0) for stage in before]
    found += [(stage, index) for index in range(1, job.config.iterations + 1) for stage in inside]
    found += [(stage, 0) for stage in after]
    return [part for stage, index in found if stage.work for part in stage.work(job, index)]


def kinds() -> dict[str, str]:
    """Folder -> what it is called in a plan, of the stages that the forecast counts."""
    return {stage.folder: stage.label for stage in all_stages() if stage.work}


def around_rounds() -> tuple[list[Stage], list[Stage]]:
    """Stages that a run has one of: before its rounds, and after them."""
    order = [stage for stage in all_stages() if stage.each]
    first = next(i for i, stage in enumerate(order) if stage.each != "run")
    return order[:first], [stage for stage in order[first:] if stage.each == "run"]


def describe(config: RunConfig) -> str:
    """The plan as text, with the decode budget."""
    steps = plan(config)
    width = max(len(step.stage) for step in steps)
    cfg = config.token2wav
    total = sum(step.decodes for step in steps)
    lines = [f"  {step.stage:{width}}  {step.what}" for step in steps]
    return "\n".join([
        f"plan of run {config.name}:", *lines,
        f"decode budget: {count(total, 'utterance')} x {cfg.passes} DiT passes ({cfg.num_steps} time points, guidance "
        f"{cfg.guidance_scale:g}), {count(config.workers, 'worker')}",
    ])


def describe_sweep(config: SweepConfig, folder: Path | None = None) -> str:
    """The grid of a sweep as text: trainings, utterances, how long the micro model takes for them, and how small a
    difference is found.

    Args:
        folder: of the sweep: where it holds a table already, the size of luck is taken from there.
    """
    run, counts = config.run, set_sizes(config.run)
    cells = [config.variants[name] for arm in config.arms.values() for name in arm.variants for _ in config.seeds]
    stored = [cfg for cfg in cells if cfg.data in (None, "best_of_n")]
    candidates = counts["train"] * run.rollouts.num_candidates if stored else 0
    decodes = sum(cfg.online.decodes for cfg in cells if cfg.data == "online" and cfg.online)
    eval_each, dev_each = counts["eval"] * run.eval.seeds, counts["dev"] * run.checkpoint.num_candidates
    arm = next(iter(config.arms))
    variant = config.arms[arm].variants[0]  # of all that are named, an arm may train a few
    training = config.variants[variant]
    batch, steps = training.pairs_per_step, training.fixed_steps
    tried = choice.tried(config.arm_run(arm), cell(variant, config.seeds[0]))
    tuned = {arm: cfg.variants if config.tuning else () for arm, cfg in config.arms.items()}
    trainings = sum(len(config.cells(arm, tuned[arm])) for arm in config.arms)
    tries = sum(len(config.tuning_run(arm).variants) for arm in config.arms) if config.tuning else 0
    heard = max(1, int(training.checkpoints(0))) if run.eval.checkpoints == "all" and steps else 1
    lines = [f"sweep {config.name}, measured against {config.baseline}:",
             "  shared: " + (f"{count(candidates, 'candidate')} ({count(counts['train'], 'prompt')} x "
                             f"{run.rollouts.num_candidates}), " if candidates else "")
             + f"{count(eval_each, 'eval utterance')} of base"]
    seeds = ", ".join(map(str, config.seeds))
    for arm, cfg in config.arms.items():
        lines.append(f"  arm {arm}: {count(len(cfg.variants), 'variant')} x seeds {seeds}: {', '.join(cfg.variants)}")
    if tries:
        lines.append(f"  tuning: {count(tries, 'training')} with seed {config.tuning.seed if config.tuning else 0}, "
                     f"each variant's best of {tries // sum(map(len, tuned.values()))} on "
                     f"{count(dev_each, 'dev utterance')} is trained and judged beside it, as <variant>_tuned")
    taken = count(training.online.decodes, "decode") if training.online else count(batch, "pair")
    lines.append(f"  each training: {training_length(training)} of {taken}{' in all' if training.online else ''}, "
                 + (f"{count(tried, 'checkpoint')}" if tried else "every checkpoint")
                 + f" and the start on {count(dev_each, 'dev utterance')}, "
                 + (f"{count(heard, 'checkpoint')} on " if heard > 1 else "") + count(eval_each, "eval utterance"))
    spoken = (candidates + decodes + eval_each + trainings * (eval_each * heard + dev_each * ((tried or 1) + 1))
              + tries * 2 * dev_each)
    lines.append(f"in all: {count(trainings + tries, 'training')}, {count(spoken, 'utterance')}, "
                 f"{count(run.workers, 'worker')}")
    if run.model.path == "micro" and steps:
        pairs = decodes / 2 if training.online else (trainings + tries) * steps * batch
        seconds = (spoken * MICRO_SECONDS["utterance"] + pairs * MICRO_SECONDS["pair"]
                   + trainings * MICRO_SECONDS["diagnostics"])
        lines.append(f"about {seconds / run.workers / 60:.0f} min with a core for each worker")
    return "\n".join([*lines, *_power(config, counts["eval"], folder)])


def _power(config: SweepConfig, prompts: int, folder: Path | None) -> list[str]:
    """How small a difference of WER between a variant and the baseline is found, arm by arm."""
    texts = count_texts(config.run, "eval", prompts)
    beside = {arm: len(cfg.variants) - 1 for arm, cfg in config.arms.items()}
    compared, seeds = sum(beside.values()) * (2 if config.tuning else 1), len(config.seeds)  # as published, and tuned
    if not compared or texts < 2:
        return []
    table = folder / "ablation.json" if folder else None
    known = measured(read_table(table)["rows"]) if table and table.is_file() else None
    spoken = config.run.eval.seeds * max(1, prompts // max(1, texts))  # utterances of a text
    parts = known or replace(TYPICAL, rest=TYPICAL.rest / spoken**0.5)
    lines = []
    for arm, others in beside.items():
        if others:
            alone, after = (smallest(parts, texts, seeds, comparisons=many, beside=others) for many in (1, compared))
            lines.append(f"  arm {arm}: with {count(texts, 'text')} and {count(seeds, 'seed')} a difference of "
                         f"{100 * alone:.1f} points WER is found in 80 % of such sweeps, alone; {100 * after:.1f} "
                         f"points after Holm's correction over {count(compared, 'comparison')}")
    source = f"as measured in {table}" if known else "typical of the micro model"
    luck = (f"luck of texts, seeds and utterances {100 * parts.text:.0f}, {100 * parts.seed:.1f} and "
            f"{100 * parts.rest:.0f} points (standard deviations), {source}")
    alone_told = "" if seeds > 1 else "; with one seed a difference is that of one training, and of no others"
    return [f"what it can find, {luck}{alone_told}:", *lines]
