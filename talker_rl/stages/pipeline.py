"""All stages in order: prompts -> conditioning -> (rollouts -> scores -> pairs or completions -> training -> choice) x
rounds -> evaluation -> report. Each is also a function by itself, for the verbs of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from talker_rl.base.errors import ConfigError, StageError, TalkerRLError
from talker_rl.base.places import check_writable_folder, require_adapter, require_free
from talker_rl.config import RunConfig, load_config
from talker_rl.report.model import ReportData
from talker_rl.rounds import Round, choice_stage, rounds_of
from talker_rl.shipped import split
from talker_rl.speech.registry import family_of
from talker_rl.stages import (
    conditioning,
    curve,
    evaluate,
    feasible,
    named,
    order,
    prompts,
    report,
    rollouts,
    scores,
    train,
)
from talker_rl.stages.context import Context, open_run
from talker_rl.stages.inputs import start_adapter
from talker_rl.stages.plan import describe
from talker_rl.tracking import check_tracker, send_result


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
    adapter = start_adapter(ctx.config)
    if adapter is not None:  # its modules are trained on, whatever the variants say
        family_of(ctx.config.model.path).check_adapter(ctx.config.model, adapter)
    else:
        train.check_lora(ctx.config)


def check_prompts(ctx: Context) -> None:
    """What can be asked once the prompts are read: whether they can be said, and heard, and evaluated.

    Raises:
        ConfigError: no train text can be said within the token limit, or no recognizer hears a language.
        CheckpointError: a language's recognizer is not there.
        StageError: variants and further Talkers share a name.
    """
    rollouts.check_texts(ctx)
    evaluate.check(ctx)
    named.check_heard(ctx.config, "recognizer", ctx.languages())
    named.check_heard(ctx.config, "evaluator", ctx.languages("eval"))


def run_round(ctx: Context, round_: Round) -> None:
    """A round's stages in order, the first two at once."""
    scores.run_with_rollouts(ctx, round_)
    for stage in order.all_stages("round") + order.all_stages("variant"):
        if stage not in (rollouts.STAGE, scores.STAGE):
            stage.make(ctx, round_)


def run_verb(ctx: Context, verb: str, index: int | None = None) -> Any:
    """One stage, from the folders before it.

    Args:
        index: the round, where the stage belongs to one; None is the latest that can begin.
    """
    if order.VERBS[verb].tracks:
        check_tracker(ctx.config)
    if verb == "eval":
        return evaluate_and_track(ctx)
    if verb == "train":
        train.check_arguments(ctx)
    made = order.stages_of(verb)
    if made[0].each == "run":
        return made[0].make(ctx)
    for round_ in _rounds(ctx, index):
        for stage in made:
            stage.make(ctx, round_)
    return None


def training_commands(ctx: Context, index: int | None = None) -> list[str]:
    """What starts each training of a round that is not finished; their tasks are written.

    Args:
        index: as :func:`run_verb` takes it.
    """
    train.check_arguments(ctx)
    return [line for round_ in _rounds(ctx, index) for line in train.commands(ctx, round_)]


def _rounds(ctx: Context, index: int | None) -> list[Round]:
    """Those that a verb means."""
    found = rounds_of(ctx.config.variants, index or _latest_round(ctx))
    if any(round_.index > ctx.config.iterations for round_ in found):
        raise StageError(f"There is no round {index}", where=f"iterations: {ctx.config.iterations}",
                         fix="raise iterations, or name an earlier round")
    return found


def _latest_round(ctx: Context) -> int:
    """The first round whose choice is not made for every variant; the last one if all are."""
    for index in range(1, ctx.config.iterations + 1):
        if not all(ctx.run.is_done(choice_stage(variant, index)) for variant in ctx.config.variants):
            return index
    return ctx.config.iterations


def evaluate_and_track(ctx: Context) -> dict[str, Any]:
    """The figures, and where a tracker is configured, a little of what the report would show to it."""
    summary = evaluate.make(ctx)
    curve.make(ctx)
    if ctx.tracking.to != "none":
        track(ctx, report.collect(ctx))
    return summary


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
    prompts.make(ctx)
    check_prompts(ctx)
    conditioning.make(ctx)
    for index in range(1, ctx.config.iterations + 1):
        for round_ in rounds_of(ctx.config.variants, index):
            run_round(ctx, round_)
    summary = evaluate.make(ctx)
    curve.make(ctx)
    track(ctx, report.make(ctx))
    return summary


def run(
    config: str | Path | RunConfig, run_dir: str | Path | None = None, *, overrides: Sequence[str] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a configuration from Python, as ``talker-rl run`` does: all stages, from where the folder stands.

    >>> figures = talker_rl.run("demo", "runs/demo", overrides=["seed=1"])
    >>> figures["base"]["wer"], figures["trained"]["wer"], figures["wer_diff_ci95"]

    Args:
        config: a configuration's file or shipped name, or the settings themselves.
        run_dir: the run's folder, begun or gone on with; None: ``runs/<name of the configuration>``.
        overrides: ``key=value``, as on the command line.
        quiet: no lines and bars on stderr.

    Returns: the figures of ``eval/summary.json``.

    Raises:
        TalkerRLError: what does not fit, before the work where it can be known; finished shards are kept.
    """
    if not isinstance(config, RunConfig):
        config = load_config(*split([str(config)], list(overrides)))
    elif overrides:
        raise ConfigError("Overrides belong to a configuration that is read", where="overrides",
                          fix="set them on the settings, or give the file's name")
    folder = Path(run_dir or Path("runs") / config.name)
    feasible.check_config(config, here=True)
    require_free(folder)
    require_adapter(config.model.adapter)
    check_writable_folder(folder)
    with open_run(config, folder, ["talker_rl.run"], quiet=quiet) as ctx:
        return run_all(ctx)
