"""All stages in order: prompts -> conditioning -> (rollouts -> scores -> pairs or completions -> training -> choice) x
rounds -> evaluation -> report. Each is also a function by itself, for the verbs of the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from talker_rl.base.errors import StageError, TalkerRLError
from talker_rl.report.model import ReportData
from talker_rl.stages import (
    choice,
    completions,
    conditioning,
    evaluate,
    feasible,
    named,
    pairs,
    prompts,
    rollouts,
    scores,
    train,
)
from talker_rl.stages.context import Context, Round, choice_stage, rounds_of
from talker_rl.stages.plan import describe
from talker_rl.tracking import check_tracker, send_result


def start_of(ctx: Context, round_: Round, variant: str | None) -> tuple[Path | None, dict[str, str]]:
    """The policy a round begins with and what it comes from; for round 1 ``model.adapter``, or the base."""
    if round_.index == 1 or variant is None:
        return ctx.start_adapter, ctx.start_input()
    before = choice_stage(variant, round_.index - 1)
    return choice.chosen_policy(ctx, variant, round_.index - 1), {before: ctx.run.content(before)}


def check_start(ctx: Context) -> None:
    """Whether the run can give something to learn from, what it names is there, and the adapter that it begins with, or
    those that it will make, fit the model: before hours of work and not after.

    Raises:
        CheckpointError: the adapter is not there, damaged, or of another geometry; likewise a model or a recognizer.
        ConfigError: a variant's ``lora.target_modules`` names what cannot be trained, no text can give a pair, or a
            function or device is not there.
        PromptError: a prompt file is not there.
    """
    feasible.check_config(ctx.config, here=True)
    named.check_prompt_files(ctx.config)
    from talker_rl.speech.locate import resolve_model_path
    from talker_rl.speech.qwen2_5_omni.adapters import check_adapter_of
    from talker_rl.speech.qwen2_5_omni.checkpoint import read_config

    config = read_config(resolve_model_path(ctx.config.model.path))
    if ctx.start_adapter is not None:  # its modules are trained on, whatever the variants say
        check_adapter_of(config, ctx.start_adapter)
    else:
        train.check_lora(ctx.config, config)


def check_texts(ctx: Context) -> None:
    """Whether the train texts can be said within the token limit; tells where some cannot.

    Raises:
        ConfigError: none can.
    """
    if told := feasible.check_texts(ctx.config, ctx.prompts("train")):
        ctx.say(f"prompts: {told}")


def check_prompts(ctx: Context) -> None:
    """What can be asked once the prompts are read: whether they can be said, and heard, and evaluated.

    Raises:
        ConfigError: no train text can be said within the token limit, or no recognizer hears a language.
        CheckpointError: a language's recognizer is not there.
        StageError: variants and further Talkers share a name.
    """
    check_texts(ctx)
    evaluate.check(ctx)
    named.check_heard(ctx.config, "recognizer", ctx.languages())
    named.check_heard(ctx.config, "evaluator", ctx.languages("eval"))


def run_rollouts(ctx: Context, round_: Round) -> None:
    """Sample a round's candidates from the policy it begins with."""
    check_texts(ctx)
    rollouts.run(ctx, round_, *start_of(ctx, round_, round_.variant))


def run_scores(ctx: Context, round_: Round) -> None:
    """Score a round's candidates."""
    scores.run(ctx, round_)


def run_samples(ctx: Context, round_: Round) -> None:
    """Sample and score a round's candidates, both at once; nothing where all its variants learn from a file."""
    if all(ctx.config.train[variant].data == "file" for variant in round_.variants(ctx.config)):
        return
    scores.run_with_rollouts(ctx, round_, *start_of(ctx, round_, round_.variant))


def run_pairs(ctx: Context, round_: Round) -> None:
    """Make what a round's variants are trained on: pairs, completions, or both."""
    for data in dict.fromkeys(ctx.config.train[variant].data for variant in round_.variants(ctx.config)):
        if data is None:
            pairs.run(ctx, round_)
        else:
            completions.run(ctx, round_, data)


def run_training(ctx: Context, round_: Round) -> None:
    """Train the round's variants and choose their checkpoints on dev."""
    variants = round_.variants(ctx.config)
    train.run(ctx.pool, [train.Training(ctx, v, round_, *start_of(ctx, round_, v)) for v in variants])
    choose(ctx, round_, variants)


def choose(ctx: Context, round_: Round, variants: Sequence[str]) -> None:
    """Choose the checkpoints of trained variants on dev; after the last round they are the run's result."""
    for variant in variants:
        choice.run(ctx, variant, round_.index)
        if round_.index == ctx.config.iterations:
            choice.export_variant(ctx, variant)


ROUND_STAGES: dict[str, Callable[[Context, Round], None]] = {
    "rollout": run_rollouts, "score": run_scores, "pair": run_pairs, "train": run_training,
}
"""Verb -> what it does in a round."""


def run_verb(ctx: Context, verb: str, index: int | None = None) -> Any:
    """One stage, from the folders before it.

    Args:
        index: the round, where the stage belongs to one; None is the latest that can begin.
    """
    if verb in ("train", "eval"):
        check_tracker(ctx.config)
    if verb == "prompts":
        return prompts.run(ctx)
    if verb == "condition":
        return conditioning.run(ctx)
    if verb == "eval":
        return evaluate_and_track(ctx)
    if verb == "report":
        return report(ctx)
    for round_ in rounds_of(ctx.config, index or _latest_round(ctx)):
        if round_.index > ctx.config.iterations:
            raise StageError(f"There is no round {round_.index}", where=f"iterations: {ctx.config.iterations}",
                             fix="raise iterations, or name an earlier round")
        ROUND_STAGES[verb](ctx, round_)
    return None


def _latest_round(ctx: Context) -> int:
    """The first round whose choice is not made for every variant; the last one if all are."""
    for index in range(1, ctx.config.iterations + 1):
        if not all(ctx.run.is_done(choice_stage(variant, index)) for variant in ctx.config.train):
            return index
    return ctx.config.iterations


def evaluate_and_track(ctx: Context) -> dict[str, Any]:
    """The figures, and where a tracker is configured, a little of what the report would show to it."""
    from talker_rl.stages.report import collect

    summary = evaluate.run(ctx)
    if ctx.tracking.to != "none":
        track(ctx, collect(ctx))
    return summary


def report(ctx: Context) -> ReportData:
    """Write the page; returns what it shows."""
    from talker_rl.stages import report as stage

    data = stage.run(ctx)
    ctx.say(f"report: {ctx.run.path / 'report' / 'index.html'}")
    return data


def track(ctx: Context, data: ReportData) -> None:
    """Send the result to the tracker, as a stage of its own."""
    with ctx.tracking.stage(f"eval/{evaluate.best_variant(ctx)}") as tracker:
        send_result(tracker, data)


def run_all(ctx: Context) -> dict[str, Any]:
    """The whole circle; finished stages and shards are kept. Returns the figures of ``eval/summary.json``."""
    try:
        check_tracker(ctx.config)
        train.check_arguments(ctx)
        check_start(ctx)
    except TalkerRLError:
        ctx.run.keep_config()
        raise
    if not ctx.quiet:  # only now: what is refused needs no plan
        print(describe(ctx.config), flush=True)
    prompts.run(ctx)
    check_prompts(ctx)
    conditioning.run(ctx)
    for index in range(1, ctx.config.iterations + 1):
        for round_ in rounds_of(ctx.config, index):
            run_samples(ctx, round_)
            run_pairs(ctx, round_)
            run_training(ctx, round_)
    summary = evaluate.run(ctx)
    track(ctx, report(ctx))
    return summary
