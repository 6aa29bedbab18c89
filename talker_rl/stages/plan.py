"""What a configuration will do, counted before anything is loaded: the dry run, and the demo's budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from talker_rl.base.errors import TalkerRLError
from talker_rl.base.figures import count
from talker_rl.config import RunConfig, SetLimits
from talker_rl.data.prompt_files import count_rows, parse_source
from talker_rl.stages.assignment import voices
from talker_rl.stages.context import rounds_of
from talker_rl.sweep_config import SweepConfig, cell
from talker_rl.train.config import TrainConfig

MICRO_SECONDS = {"utterance": 0.55, "pair": 0.16, "diagnostics": 80.0}
"""Of one core, on the micro model: to sample, decode and judge an utterance; to train on a pair for one step; to
diagnose a training. As the shipped sweep took them in 86 minutes, beside other work (docs/LOG.md)."""


@dataclass(frozen=True)
class Step:
    """One line of the plan."""

    stage: str
    what: str
    decodes: int = 0
    """Utterances that go through token2wav and a recognizer."""


def count_prompts(config: RunConfig, which: str) -> int | None:
    """Lines of a set within its limit (skips and pieces of long texts not known yet); None where there is no file."""
    limit = getattr(config.prompts.limit, which)
    source = parse_source(getattr(config.prompts, which))
    lines = limit if limit and source.name else count_rows(source)  # with a limit the hub is not asked
    if lines is None:
        return limit
    return min(lines, limit) if limit else lines


def plan(config: RunConfig) -> list[Step]:
    """The steps of a run; counts are upper bounds, since prompts may be skipped and trainings may stop early."""
    return list(_steps(config))


def set_sizes(config: RunConfig, given: Mapping[str, int] | None = None) -> dict[str, int]:
    """Prompts of the three sets; those of ``given`` are taken from there.

    Raises:
        TalkerRLError: a file that is not there.
    """
    counts = {}
    for name in SetLimits.model_fields:
        found = given[name] if given and name in given else count_prompts(config, name)
        if found is None:
            raise TalkerRLError(f"Cannot count the {name} prompts", fix=f"check prompts.{name}, or set prompts.limit")
        counts[name] = found if name in (given or {}) else found * voices(config, name)
    return counts


def _steps(config: RunConfig) -> Iterator[Step]:
    counts = set_sizes(config)
    total = sum(counts.values())
    yield Step("prompts", ", ".join(f"{n} {name}" for name, n in counts.items()))
    yield Step("conditioning", f"{count(total, 'prompt')} through the Thinker")
    per_round = min(config.rollouts.prompts_per_round or counts["train"], counts["train"])
    sampled = per_round * config.rollouts.num_candidates
    for index in range(1, config.iterations + 1):
        for round_ in rounds_of(config, index):
            label = f"round {index}" + (f", {round_.variant}" if round_.variant else "")
            learned = dict.fromkeys(config.train[name].data for name in round_.variants(config))
            if set(learned) != {"file"}:
                yield Step("rollouts", f"{label}: {count(sampled, 'candidate')} ({count(per_round, 'prompt')} x "
                                       f"{config.rollouts.num_candidates})")
                yield Step("scores", f"{label}: {count(sampled, 'utterance')} decoded and recognized", sampled)
            for data in learned:
                yield Step(*_data(config, data, label, per_round))
        for variant, cfg in config.train.items():
            yield Step("training", f"round {index}, {variant}: {cfg.loss['type']}, {_length(cfg)}")
            tried = _checkpoints(config, variant)
            spoken = counts["dev"] * config.dev.num_candidates
            known = count(tried, "checkpoint") if tried else "every saved checkpoint"
            known += " and the start" * (index == 1)
            yield Step("choice", f"round {index}, {variant}: {known}, {count(spoken, 'dev utterance')} each",
                       spoken * ((tried or 1) + (index == 1)))
    judged = 1 + len(config.eval.talkers) + len(config.train)
    spoken = counts["eval"] * config.eval.seeds
    yield Step("evaluation", f"{count(judged, 'Talker')} x {count(spoken, 'utterance')} "
                             f"({count(counts['eval'], 'text')} x "
                             f"{count(config.eval.seeds, 'seed')}), two recognizers", judged * spoken)
    yield Step("report", "one page")


def _data(config: RunConfig, data: str | None, label: str, prompts: int) -> tuple[str, str]:
    """What a round's variants are trained on."""
    if data is None:
        return "pairs", f"{label}: at most {count(prompts * config.pairs.max_pairs_per_prompt, 'pair')}"
    if data == "file":
        return "completions", f"{label}: the codes of {config.completions.file or config.prompts.train}"
    cfg = config.completions
    least = "" if cfg.min_reward is None else f" with {cfg.reward_key} >= {cfg.min_reward:g}"
    return "completions", f"{label}: the best {cfg.max_per_prompt} of each prompt's candidates{least}"


def _length(cfg: TrainConfig) -> str:
    return count(cfg.fixed_steps, "step") if cfg.fixed_steps else count(cfg.args.get("num_train_epochs", 3), "epoch")


def _checkpoints(config: RunConfig, variant: str) -> int | None:
    """How many checkpoints a training saves, where that is known beforehand."""
    if config.dev.checkpoints != "all":
        return 1
    cfg = config.train[variant]
    return cfg.checkpoints(0) if cfg.fixed_steps else None


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


def describe_sweep(config: SweepConfig) -> str:
    """The grid of a sweep as text: trainings, utterances, and how long the micro model takes for them."""
    run, counts = config.run, set_sizes(config.run)
    candidates = counts["train"] * run.rollouts.num_candidates
    eval_each, dev_each = counts["eval"] * run.eval.seeds, counts["dev"] * run.dev.num_candidates
    variant = next(iter(config.variants))
    training = config.variants[variant]
    batch, steps = training.pairs_per_step, training.fixed_steps
    tried = _checkpoints(config.arm_run(next(iter(config.arms))), cell(variant, config.seeds[0]))
    trainings = sum(len(config.cells(arm)) for arm in config.arms)
    lines = [f"sweep {config.name}, measured against {config.baseline}:",
             f"  shared: {count(candidates, 'candidate')} ({count(counts['train'], 'prompt')} x "
             f"{run.rollouts.num_candidates}), "
             f"{count(eval_each, 'eval utterance')} of base"]
    seeds = ", ".join(map(str, config.seeds))
    for arm, cfg in config.arms.items():
        lines.append(f"  arm {arm}: {count(len(cfg.variants), 'variant')} x seeds {seeds}: {', '.join(cfg.variants)}")
    lines.append(f"  each training: {_length(training)} of {count(batch, 'pair')}, {tried or 'every'} checkpoints and "
                 f"the start "
                 f"on {count(dev_each, 'dev utterance')}, {count(eval_each, 'eval utterance')}")
    spoken = candidates + eval_each + trainings * (eval_each + dev_each * ((tried or 1) + 1))
    lines.append(f"in all: {count(trainings, 'training')}, {count(spoken, 'utterance')}, "
                 f"{count(run.workers, 'worker')}")
    if run.model.path == "micro" and steps:
        seconds = (spoken * MICRO_SECONDS["utterance"] + trainings * steps * batch * MICRO_SECONDS["pair"]
                   + trainings * MICRO_SECONDS["diagnostics"])
        lines.append(f"about {seconds / run.workers / 60:.0f} min with a core for each worker")
    return "\n".join(lines)
