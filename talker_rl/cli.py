"""The command line: a verb a stage, ``run`` for all of them. Parses before it imports anything heavy."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker_rl import __version__
from talker_rl.errors import TalkerRLError, is_disk_full
from talker_rl.planning.options import DOCTOR_EXAMPLES, PLAN_EXAMPLES, add_doctor_options, add_plan_options
from talker_rl.reward.wer_verb import WER_EXAMPLES, add_wer_options
from talker_rl.speakers.options import SPEAKER_EXAMPLES, add_speaker_options
from talker_rl.stages.export_options import EXPORT_EXAMPLES, EXPORT_HELP, add_export_options

if TYPE_CHECKING:
    from talker_rl.config import RunConfig

STAGES: dict[str, tuple[str, str]] = {
    "prompts": ("read, check and keep disjoint the three prompt sets",
                "talker-rl prompts -c configs/demo.yaml prompts.train=my_texts.txt\n"
                "  talker-rl prompts hard --help      texts that break Talkers, made by rules"),
    "condition": ("compute what the Thinker gives the Talker, once a prompt",
                  "talker-rl condition -c configs/demo.yaml"),
    "rollout": ("sample candidates of every train prompt",
                "talker-rl rollout -c configs/demo.yaml rollouts.num_candidates=16"),
    "score": ("decode and judge every candidate", "talker-rl score -c configs/demo.yaml workers=2"),
    "pair": ("choose preference pairs (or completions to imitate) among the scored candidates",
             "talker-rl pair -c configs/demo.yaml pairs.length_match=3"),
    "train": ("train every variant, and choose its checkpoint on dev",
              "talker-rl train -c configs/demo.yaml train.default.loss.type=ld_dpo"),
    "eval": ("evaluate base and trained by a second recognizer", "talker-rl eval -c configs/demo.yaml eval.seeds=4"),
    "report": ("write report/index.html", "talker-rl report --run-dir runs/demo"),
    "diagnose": ("measure length bias, drift and stopping of the trained variants of a finished run",
                 "talker-rl diagnose --run-dir runs/demo --reward-noise 4"),
}

SWEEP_TEXT = """\
Compare losses: a grid of variants, arms (ways of choosing pairs) and training seeds, one row each in a table.

Prompts, candidates and scores are made once; every training takes the same number of steps and is evaluated on the same
prompts from the same seeds. A claim needs every seed's paired-bootstrap interval to exclude 0. The folder holds
ablation.json and .csv, report/, shared/ and arms/<arm>/; each arm is an ordinary run folder, for every other verb."""
SWEEP_EXAMPLES = """\
talker-rl sweep configs/sweeps/losses.yaml                   the shipped ablation, on the micro model
  talker-rl sweep configs/sweeps/losses.yaml --dry-run         its grid, and how long it takes
  talker-rl sweep configs/sweeps/losses.yaml 'seeds=[0,1,2]'   one seed more: only that one is trained
  talker-rl diagnose --run-dir runs/sweep/arms/biased          any verb on one arm"""

EPILOG = """\
A run is one folder. Start the same command again after an interruption: only what is missing is done.

examples:
  talker-rl run -c configs/demo.yaml                      the whole circle on the micro model
  talker-rl run -c configs/demo.yaml --dry-run            what it would do, and the decode budget
  talker-rl run -c a.yaml -c b.yaml pairs.margin=0.1      later files and overrides win
  talker-rl score --run-dir runs/demo                     one stage, with the run's own configuration
"""


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    top = argparse.ArgumentParser(
        prog="talker-rl", description="Preference training of the Qwen2.5-Omni Talker: from prompts to a better voice.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"talker-rl {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    run = _verb(verbs, "run", "all stages in order", "talker-rl run -c configs/demo.yaml --run-dir runs/demo")
    _add_shared(run)
    for name, (text, example) in STAGES.items():
        stage = _verb(verbs, name, text, example)
        _add_shared(stage)
        if name in ("rollout", "score", "pair", "train"):
            stage.add_argument("--round", type=int, metavar="N", help="on-policy round (default: the latest)")
        if name == "diagnose":
            stage.add_argument("--variant", nargs="+", action="extend", default=[], metavar="NAME",
                               help="variants to look at (default: all of the run)")
            stage.add_argument("--reward-noise", type=int, metavar="N", help="also decode some rollouts from N seeds "
                               "each and score them all: how much of a reward is luck, and which pairs.margin follows")
        if name == "eval":
            stage.add_argument("--protocol", choices=("seed-tts-eval",), help="also score as seed-tts-eval does, by "
                               "language (short for eval.protocol=...)")
        if name == "pair":
            stage.add_argument("--votes", metavar="FILE", help="votes exported by a page's blind A/B listening: make "
                               "the pairs of round 1 of them (short for pairs.votes=FILE)")
        if name == "score":
            stage.add_argument("--endpoint", action="extend", nargs="+", default=[], metavar="URL",
                               help="let reward services do it (talker-rl serve), with the same results; a token is "
                               "taken from $TALKER_RL_TOKEN")

    sweep = _verb(verbs, "sweep", "compare losses: a grid of variants, arms and seeds in one table", SWEEP_EXAMPLES)
    sweep.description = SWEEP_TEXT
    _add_shared(sweep)

    serve = _verb(verbs, "serve", "offer the scorer over HTTP, to rollout workers on other machines",
                  "talker-rl serve -c configs/demo.yaml --port 8020 --workers 2")
    _add_config(serve)
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1; any other needs a token: "
                       "service.token_file or $TALKER_RL_TOKEN)")
    serve.add_argument("--port", type=int, help="port (default 8020; 0 takes a free one)")
    serve.add_argument("--workers", type=int, metavar="N", help="decoder processes, and as many recognizer processes")
    serve.add_argument("--device", help="device of decoder and recognizer, e.g. cuda:0 or cpu")
    serve.add_argument("--canary", metavar="RUN", help="run folder with scores: its best candidate must be scored the "
                       "same by every worker before it may work")
    serve.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)

    validate = _verb(verbs, "validate", "check configuration files and print them resolved",
                     "talker-rl validate configs/demo.yaml pairs.margin=0.1")
    validate.add_argument("arguments", nargs="+", metavar="CONFIG|KEY=VALUE", help="YAML files and overrides")
    validate.add_argument("--quiet", "-q", action="store_true", help="print nothing when all is well")
    validate.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)

    doctor = _verb(verbs, "doctor", "check this machine, the model folder and the recognizers, and forecast memory",
                   DOCTOR_EXAMPLES)
    _add_config(doctor)
    add_doctor_options(doctor)

    plan = _verb(verbs, "plan", "forecast time, memory, disk and GPU-hours of a run, before anything is loaded",
                 PLAN_EXAMPLES)
    _add_config(plan)
    add_plan_options(plan)

    add_export_options(_verb(verbs, "export", EXPORT_HELP, EXPORT_EXAMPLES))
    add_speaker_options(_verb(verbs, "speaker", "list speakers, add one, tell them apart", SPEAKER_EXAMPLES))

    wer = _verb(verbs, "wer", "error rates of transcripts against references, two files of key<TAB>text lines",
                WER_EXAMPLES)
    add_wer_options(wer)
    wer.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)

    micro = _verb(verbs, "micro", "the micro world: build it, check it, say where it is", "talker-rl micro check")
    micro.add_argument("what", choices=("build", "check", "path", "voice"), help="build: train every part from a seed. "
                       "check: print every figure it must meet. path: its folder. voice: codes of a further voice.")
    micro.add_argument("rest", nargs=argparse.REMAINDER, help="options of that (try: micro build --help)")
    return top


def _verb(verbs: Any, name: str, text: str, example: str) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".",
                            epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter)


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", "-c", action="append", default=[], metavar="YAML",
                         help="configuration file; several are merged left to right")
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. rollouts.num_candidates=4")


def _add_shared(command: argparse.ArgumentParser) -> None:
    _add_config(command)
    command.add_argument("--run-dir", metavar="DIR", help="folder of the run (default: runs/<name>); without --config "
                         "its own configuration is used")
    command.add_argument("--dry-run", action="store_true", help="print resolved configuration and plan, and stop")
    command.add_argument("--force-stage", action="append", default=[], metavar="STAGE",
                         help="delete a stage's result, and all that depends on it, and do it again")
    command.add_argument("--quiet", "-q", action="store_true", help="no progress, only the result")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. A user's mistake is one message, never a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parse(arguments)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # each of its warnings was looked at
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return _dispatch(args, arguments)
    except TalkerRLError as error:
        if getattr(args, "debug", False):
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted: what is finished is kept; start the same command again to go on", file=sys.stderr)
        return 130
    except Exception as error:  # whatever library wrote the file: a full disk is not a bug
        if getattr(args, "debug", False) or not is_disk_full(error):
            raise
        print("error: The disk is full\n  fix:   free some space and start the same command again: what is finished "
              "is kept", file=sys.stderr)
        return 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Overrides may stand before, between and after options, which argparse alone does not allow below a verb."""
    command = parser()
    if arguments[:1] == ["micro"] and arguments[1:2] in (["build"], ["check"], ["voice"]):  # with options of their own
        return argparse.Namespace(verb="micro", what=arguments[1], rest=arguments[2:])
    if arguments[:2] == ["prompts", "hard"]:
        return argparse.Namespace(verb="prompts hard", rest=arguments[2:], debug="--debug" in arguments)
    args, rest = command.parse_known_args(arguments)
    strange = [a for a in rest if a.startswith("-") or not hasattr(args, "overrides")]
    if strange:
        command.error(f"unrecognized arguments: {' '.join(strange)} (talker-rl {args.verb} --help)")
    if rest:
        args.overrides = [*args.overrides, *rest]
    if getattr(args, "endpoint", None):  # it takes all that follows: overrides are given back
        urls = [a for a in args.endpoint if a.startswith(("http://", "https://"))]
        args.overrides += [a for a in args.endpoint if a not in urls]
        args.endpoint = urls
    return args


def _dispatch(args: argparse.Namespace, arguments: list[str]) -> int:
    if args.verb == "validate":
        return _validate(args)
    if args.verb == "micro":
        return _micro(args)
    if args.verb == "wer":
        from talker_rl.reward.wer_verb import run as wer

        return wer(args)
    if args.verb == "speaker":
        from talker_rl.speakers.command import run as speaker

        return speaker(args)
    if args.verb == "prompts hard":
        from talker_rl.data.hard.command import run as hard

        return hard(args.rest)
    if args.verb == "doctor":
        from talker_rl.doctor import examine

        if args.model is not None:
            args.overrides.append(f"model.path={json.dumps(args.model)}")
        return examine(_config(args), model_only=args.model is not None and not _files(args)[0], as_json=args.json)
    if args.verb == "plan":
        from talker_rl.planning.command import run as plan

        print(plan(args, _config(args)))
        return 0
    if args.verb == "export":
        from talker_rl.stages import export

        return export.run(args)
    if args.verb == "sweep":
        return _sweep(args, arguments)
    if args.verb == "serve":
        from talker_rl.stages.serve import run

        run(_config(args), host=args.host, port=args.port, workers=args.workers, device=args.device,
            canary=args.canary)
        return 0
    return _stages(args, arguments)


def _config(args: argparse.Namespace) -> RunConfig:
    """The configuration of the files and overrides, or of the run folder where no file is given."""
    from talker_rl.config import load_config

    files, overrides = _files(args)
    if getattr(args, "votes", None):
        overrides.append(f"pairs.votes={json.dumps(args.votes)}")
    if args.verb == "eval" and args.protocol:
        overrides.append(f"eval.protocol={args.protocol}")
    run_dir = getattr(args, "run_dir", None)
    if not files and run_dir and (Path(run_dir) / "manifest.json").exists():
        from talker_rl.config import load_data
        from talker_rl.run_dir import read_json

        stored = read_json(Path(run_dir) / "manifest.json").get("config")
        if stored:
            return load_data(stored, overrides, where=f"{run_dir}/manifest.json")
    return load_config(files, overrides)


def _files(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Configuration files, with or without ``-c``, and overrides."""
    files = [*args.config, *(a for a in args.overrides if a.endswith((".yaml", ".yml")) and "=" not in a)]
    return files, [a for a in args.overrides if a not in files]


def _validate(args: argparse.Namespace) -> int:
    from talker_rl.config import load_config
    from talker_rl.stages.feasible import check_config

    files = [a for a in args.arguments if "=" not in a]
    config = load_config(files, [a for a in args.arguments if "=" in a])
    check_config(config)
    if not args.quiet:
        print(config.to_yaml(), end="")
        print(f"# ok: {', '.join(files)}")
    return 0


def _micro(args: argparse.Namespace) -> int:
    from talker_rl import micro

    if args.what == "path":
        folder = micro.checkpoint_dir()
        print(folder)
        return 0 if folder.is_dir() else 1
    from importlib import import_module

    command = import_module(f"talker_rl.micro.{args.what}")
    return int(command.main(args.rest) or 0)


def _stages(args: argparse.Namespace, arguments: list[str]) -> int:
    config = _config(args)
    run_dir = Path(args.run_dir or Path("runs") / config.name)
    from talker_rl.stages.plan import describe

    if args.verb in ("run", "rollout", "score", "pair"):
        from talker_rl.stages.feasible import check_config

        check_config(config)
    if args.dry_run:
        print(config.to_yaml(), end="")
        print(f"\n# run folder: {run_dir}")
        print(describe(config))
        return 0
    if args.verb == "run" and not args.quiet:
        print(describe(config), flush=True)
    from talker_rl.run_dir import RunDir
    from talker_rl.stages.context import Context, device_name
    from talker_rl.stages.pool import WorkerPool

    device = device_name(config.model.device)
    endpoints = tuple(getattr(args, "endpoint", ()))
    with RunDir(run_dir, force=args.force_stage) as run, WorkerPool(config.workers) as pool:
        run.record_command(config.resolved(), ["talker-rl", *arguments], device)
        ctx = Context(config, run, pool, quiet=args.quiet, endpoints=endpoints)
        from talker_rl.stages import pipeline

        if args.verb == "diagnose":
            from talker_rl.stages import diagnose

            _print_diagnostics(diagnose.run(ctx, args.variant, args.reward_noise), run_dir)
            return 0
        if args.verb != "run":
            result = pipeline.run_verb(ctx, args.verb, getattr(args, "round", None))
            if args.verb == "eval":
                _print_summary(result, run_dir)
            return 0
        summary = pipeline.run_all(ctx)
        _print_summary(summary, run_dir)
        print(f"\nlook and listen: {(run_dir / 'report' / 'index.html').resolve()}")
    return 0


def _sweep(args: argparse.Namespace, arguments: list[str]) -> int:
    from talker_rl.run_dir import read_json
    from talker_rl.stages.plan import describe_sweep
    from talker_rl.sweep_config import load_sweep, load_sweep_data

    files, overrides = _files(args)
    stored = Path(args.run_dir or "") / "sweep.json"
    if not files and not (args.run_dir and stored.exists()):
        raise TalkerRLError("No sweep is named", fix="name its file, e.g. talker-rl sweep configs/sweeps/losses.yaml, "
                            "or the --run-dir of one that has begun")
    config = load_sweep(files, overrides) if files else load_sweep_data(read_json(stored), overrides, str(stored))
    folder = Path(args.run_dir or Path("runs") / config.name)
    if args.dry_run:
        print(f"{config.to_yaml()}\n# sweep folder: {folder}\n{describe_sweep(config)}")
        return 0
    if not args.quiet:
        print(describe_sweep(config), flush=True)
    from talker_rl.stages.context import device_name
    from talker_rl.stages.pool import WorkerPool
    from talker_rl.stages.sweep import Sweep, text_table

    device = device_name(config.run.model.device)
    with WorkerPool(config.run.workers) as pool:
        found = Sweep(config, folder, pool, ["talker-rl", *arguments], device, args.force_stage, args.quiet).run()
    print(f"\n{text_table(found)}\n\nfigures: {folder / 'ablation.json'}\n"
          f"look and listen: {(folder / 'report' / 'loss_ablation.html').resolve()}")
    return 0


def _print_summary(summary: dict[str, Any], run_dir: Path) -> None:
    from talker_rl.report.page import headline, text_table

    print(f"\n{text_table(summary)}\n\n{headline(summary)}\nfigures: {run_dir / 'eval' / 'summary.json'}")
    if "seed_tts_eval" in summary:
        from talker_rl.evaluation.seed_tts_rows import lines

        print("\n".join(lines(summary["seed_tts_eval"])))


def _print_diagnostics(summaries: dict[str, dict[str, Any]], run_dir: Path) -> None:
    from talker_rl.diagnostics.summary import text_lines

    for summary in summaries.values():
        print("\n".join(text_lines(summary)))
    print(f"figures: {run_dir / 'diagnostics'}/*/summary.json")


if __name__ == "__main__":
    sys.exit(main())
