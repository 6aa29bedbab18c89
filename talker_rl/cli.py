"""The command line: a verb per stage, ``run`` for all of them. Parses before it imports anything heavy."""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker_rl.base.errors import ConfigError, TalkerRLError, disk_full, is_disk_full
from talker_rl.base.progress import quiet_logs
from talker_rl.cli_parser import parse
from talker_rl.shipped import split
from talker_rl.stages.order import VERBS

if TYPE_CHECKING:
    from talker_rl.config import RunConfig

def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. A user's mistake is one message, never a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parse(arguments)
    quiet_logs()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # each of its warnings was looked at
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        code = _dispatch(args, arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return 0
    except TalkerRLError as error:
        if getattr(args, "debug", False):
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted: what is finished is kept; start the same command again to go on", file=sys.stderr)
        return 130
    except Exception as error:  # whatever library wrote the file: a full or closed disk is not a bug
        if getattr(args, "debug", False):
            raise
        from talker_rl.base.places import unwritable

        refused = disk_full() if is_disk_full(error) else unwritable(error)
        if refused is None:
            raise
        print(f"error: {refused}", file=sys.stderr)
        return 1


def _reader_is_gone() -> bool:
    """Whether nobody reads what is printed any more (``talker-rl ... | head``); nothing more is printed then."""
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in watch.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _dispatch(args: argparse.Namespace, arguments: list[str]) -> int:
    if hasattr(args, "call"):
        return int(args.call(args))
    if args.verb == "completion":
        import argcomplete

        print(argcomplete.shellcode(["talker-rl"], shell=args.shell))
        return 0
    if args.verb == "validate":
        return _validate(args)
    if args.verb == "configs":
        from talker_rl.shipped import verb as configs

        return configs(args)
    if args.verb == "show":
        from talker_rl.report.show import verb as show

        return show(args)
    if args.verb == "micro":
        from talker_rl.micro import checkpoint_dir

        print(checkpoint_dir())
        return 0 if checkpoint_dir().is_dir() else 1
    if args.verb == "encode":
        from talker_rl.stages.encode import verb as encode

        return encode(args)
    if args.verb == "wer":
        from talker_rl.evaluation.wer_verb import verb as wer

        return wer(args)
    if args.verb == "speaker":
        from talker_rl.speakers.command import verb as speaker

        return speaker(args)
    if args.verb == "doctor":
        from talker_rl.doctor import examine

        if args.model is not None:
            args.overrides.append(f"model.path={json.dumps(args.model)}")
        files, _ = split(args.config, args.overrides)
        return examine(_config(args), model_only=args.model is not None and not files and not args.run_dir,
                       as_json=args.json, run=Path(args.run_dir) if args.run_dir else None)
    if args.verb == "plan":
        from talker_rl.planning.command import verb as plan
        from talker_rl.stages.plan import kinds, parts

        print(plan(args, _config(args), parts, kinds()))
        return 0
    if args.verb == "jobs":
        from talker_rl.stages import job_scripts

        args.config, args.overrides = split(args.config, args.overrides)
        return job_scripts.verb(args, _config(args))
    if args.verb == "parity":
        from talker_rl.stages import parity

        return parity.verb(args, _config(args))
    if args.verb == "anatomy":
        from talker_rl.stages import anatomy

        return anatomy.verb(args, _config(args))
    if args.verb == "export":
        from talker_rl.stages import export

        return export.verb(args)
    if args.verb == "sweep":
        return _sweep(args, arguments)
    if args.verb == "serve":
        from talker_rl.stages.serve import serve

        serve(_config(args), host=args.host, port=args.port, workers=args.workers, device=args.device,
              canary=args.canary)
        return 0
    return _stages(args, arguments)


def _config(args: argparse.Namespace) -> RunConfig:
    """The configuration of the files and overrides, or of the run folder where no file is given."""
    from talker_rl.base.places import require_file
    from talker_rl.config import load_config

    files, overrides = split(args.config, args.overrides)
    if getattr(args, "votes", None):
        require_file(Path(args.votes), "votes file", "--votes")  # before the run remembers it
        overrides.append(f"pairs.votes={json.dumps(args.votes)}")
    if args.verb == "eval" and args.protocol:
        overrides.append(f"eval.protocol={args.protocol}")
    run_dir = getattr(args, "run_dir", None)
    if not files and run_dir:
        return _config_of_run(Path(run_dir), overrides)
    if not files and not overrides and hasattr(args, "run_dir") and args.verb != "doctor":
        raise ConfigError("No run is named", where=f"talker-rl {args.verb}",
                          fix="give a configuration (-c demo), or the --run-dir of a run that has begun")
    return load_config(files, overrides)


def _config_of_run(run_dir: Path, overrides: list[str]) -> RunConfig:
    from talker_rl.base.places import require_run
    from talker_rl.config import load_data
    from talker_rl.store.run_dir import MANIFEST, stored_config

    require_run(run_dir, fix="check the name, or give a configuration to begin a run there: -c FILE")
    return load_data(stored_config(run_dir), overrides, where=str(run_dir / MANIFEST))


def _validate(args: argparse.Namespace) -> int:
    from talker_rl.config import load_config
    from talker_rl.stages.feasible import check_config
    from talker_rl.stages.named import missing

    files, overrides = split(args.config, args.overrides)
    config = load_config(files, overrides)
    check_config(config)
    if not args.quiet:
        print(config.to_yaml(), end="")
        print("".join(f"# note: {line}\n" for line in missing(config)), end="")
        print(f"# ok: {', '.join(files) or 'defaults'}")
    return 0


def _stages(args: argparse.Namespace, arguments: list[str]) -> int:
    config = _config(args)
    run_dir = Path(args.run_dir or Path("runs") / config.name)
    from talker_rl.stages.feasible import check_config
    from talker_rl.stages.named import missing
    from talker_rl.stages.plan import describe

    endpoints = tuple(getattr(args, "endpoint", ()))
    check_config(config, args.verb, remote=bool(endpoints))
    if args.dry_run:
        print(config.to_yaml(), end="")
        print("".join(f"# note: {line}\n" for line in missing(config)), end="")
        print(f"\n# run folder: {run_dir}")
        print(describe(config))
        return 0
    _check_places(args, config, run_dir)
    check_config(config, args.verb, here=True, remote=bool(endpoints))  # before a stage to force is deleted
    from talker_rl.stages.context import open_run

    argv = ["talker-rl", *arguments]
    with open_run(config, run_dir, argv, force=args.force_stage, quiet=args.quiet, endpoints=endpoints) as ctx:
        from talker_rl.stages import pipeline

        if args.verb == "diagnose":
            from talker_rl.stages import diagnose

            _print_diagnostics(diagnose.make(ctx, args.variant, args.reward_noise), run_dir)
            return 0
        if getattr(args, "engine_command", False):
            print("\n".join(pipeline.training_commands(ctx, getattr(args, "round", None))))
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


def _check_places(args: argparse.Namespace, config: RunConfig, run_dir: Path) -> None:
    """Whether what the verb goes on from is there, and its folder can be written; nothing is created before."""
    from talker_rl.base.places import check_writable_folder, require_adapter, require_free, require_run

    if VERBS[args.verb].begins and not args.force_stage:
        require_free(run_dir)
    else:
        require_run(run_dir, fix="do what comes before, or all of it: talker-rl run")
    if args.verb == "run":
        require_adapter(config.model.adapter)
    check_writable_folder(run_dir)


def _sweep(args: argparse.Namespace, arguments: list[str]) -> int:
    from talker_rl.base.places import check_writable_folder, require_adapter, require_free, require_sweep
    from talker_rl.report.sweep_table import text_table
    from talker_rl.stages.feasible import check_config
    from talker_rl.stages.plan import describe_sweep
    from talker_rl.sweep_config import load_sweep, load_sweep_data, stored_sweep

    files, overrides = split(args.config, args.overrides, sweep=True)
    stored = Path(args.run_dir or "") / "sweep.json"
    if not files and not args.run_dir:
        raise TalkerRLError("No sweep is named", fix="name it, e.g. talker-rl sweep losses, or the --run-dir of "
                            "one that has begun")
    if not files:
        require_sweep(stored.parent)
    config = load_sweep(files, overrides) if files else load_sweep_data(
        stored_sweep(stored.parent), overrides, str(stored))
    folder = Path(args.run_dir or Path("runs") / config.name)
    for arm in config.arms:
        check_config(config.arm_run(arm), here=not args.dry_run)
    if args.dry_run:
        print(f"{config.to_yaml()}\n# sweep folder: {folder}\n{describe_sweep(config, folder)}")
        return 0
    require_free(folder, sweep=True)
    require_adapter(config.run.model.adapter)
    check_writable_folder(folder)
    from talker_rl.base.processes import device_name
    from talker_rl.stages.context import open_pool
    from talker_rl.stages.sweep import Sweep

    device = device_name(config.run.model.device)
    with open_pool(config.run) as pool:
        found = Sweep(config, folder, pool, ["talker-rl", *arguments], device, args.force_stage, args.quiet).run()
    print(f"\n{text_table(found)}\n\nfigures: {folder / 'ablation.json'}\n"
          f"look and listen: {(folder / 'report' / 'loss_ablation.html').resolve()}")
    return 0


def _print_summary(summary: dict[str, Any], run_dir: Path) -> None:
    from talker_rl.report.show import ending

    print(f"\n{ending(summary)}\nfigures: {run_dir / 'eval' / 'summary.json'}")


def _print_diagnostics(summaries: dict[str, dict[str, Any]], run_dir: Path) -> None:
    from talker_rl.diagnostics.summary import text_lines

    for summary in summaries.values():
        print("\n".join(text_lines(summary)))
    print(f"figures: {run_dir / 'diagnostics'}/*/summary.json")


if __name__ == "__main__":
    sys.exit(main())
