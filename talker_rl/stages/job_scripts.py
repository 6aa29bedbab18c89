"""Job scripts for Slurm, rendered from ``jobs/`` for one configuration: ``talker-rl jobs render``.

What is written is what a person would write: a script to read, to change and to submit.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker_rl.base.errors import ConfigError

if TYPE_CHECKING:
    from talker_rl.config import RunConfig

FOLDER = Path(__file__).parents[1] / "jobs"
KINDS = {
    "sample": "all before training, on one machine: prompts, conditioning, candidates, scores, pairs",
    "train": "the trainings, on as many machines as train.engine.nodes says",
    "online": "the whole run on one machine: online training, or what is left of a run",
    "chain": "one round as three jobs that wait for each other, and the script that submits them",
    "ray": "the whole run, whose workers are actors on --nodes machines, a Ray cluster for as long as the job lasts",
}
_FILES = {
    "sample": {"sample.sbatch": "sample"},
    "train": {"train.sbatch": "train"},
    "online": {"online.sbatch": "online"},
    "chain": {"sample.sbatch": "sample", "train.sbatch": "train", "finish.sbatch": "online", "submit.sh": "chain"},
    "ray": {"ray.sbatch": "ray"},
}
"""Kind -> file -> template."""

TEXT = """\
Write the scripts with which a cluster runs a configuration. They can be read, and changed. A job asks to be put back
into the queue before its time is up, and goes on where it was; a failed one can be submitted again."""
EXAMPLES = """\
talker-rl jobs render chain -c my.yaml --gpus 8 --time 24:00:00       then: bash jobs-<name>/submit.sh
  talker-rl jobs render train -c my.yaml --dry-run train.engine.name=zero3 train.engine.nodes=4
  talker-rl jobs render online -c qwen2.5-omni-7b-grpo --setup 'module load cuda; source venv/bin/activate'"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Options of ``talker-rl jobs render``, but for the configuration's."""
    command.add_argument("kind", choices=tuple(KINDS), help="; ".join(f"{k}: {text}" for k, text in KINDS.items()))
    command.add_argument("--run-dir", metavar="DIR", help="folder of the run, on a file system that all machines see "
                         "(default: runs/<name>)")
    command.add_argument("--out", metavar="DIR", help="where the scripts and the jobs' logs go (default: jobs-<name>)")
    command.add_argument("--gpus", type=int, metavar="N", help="GPUs of a machine (default: as many as `devices` says)")
    command.add_argument("--nodes", type=int, default=2, metavar="N", help="machines of a Ray cluster (default 2); "
                         "those of a training: train.engine.nodes")
    command.add_argument("--cpus", type=int, default=16, metavar="N", help="cores of a machine (default 16)")
    command.add_argument("--time", default="12:00:00", help="longest time of a job, as Slurm has it (default 12:00:00)")
    command.add_argument("--grace", type=int, default=120, metavar="SECONDS", help="so long before its end a job goes "
                         "back into the queue (default 120)")
    command.add_argument("--partition", help="Slurm's")
    command.add_argument("--account", help="Slurm's")
    command.add_argument("--setup", metavar="SHELL", help="what makes `talker-rl` and `torchrun` known, e.g. "
                         "'source venv/bin/activate'")
    command.add_argument("--dry-run", action="store_true", help="print the scripts and write nothing")
    command.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


def verb(args: argparse.Namespace, config: RunConfig) -> int:
    """Write the scripts, or print them."""
    if args.gpus is not None and args.gpus < 0 or min(args.cpus, args.grace, args.nodes) < 1:
        raise ConfigError("--gpus is at least 0, and --cpus, --grace and --nodes are at least 1",
                          where="talker-rl jobs render")
    if not re.fullmatch(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}", args.time):
        raise ConfigError(f"--time {args.time} is no time of Slurm's", where="talker-rl jobs render",
                          fix="hours:minutes:seconds, or days-hours:minutes:seconds")
    out = Path(args.out or f"jobs-{config.name}").absolute()
    rendered = render(args.kind, config, files=args.config, overrides=args.overrides, out=out,
                      run_dir=Path(args.run_dir or Path("runs") / config.name).absolute(), gpus=args.gpus,
                      nodes=args.nodes, cpus=args.cpus, time=args.time, grace=args.grace, partition=args.partition,
                      account=args.account, setup=args.setup)
    if args.dry_run:
        print("\n".join(f"# ---- {name}\n{text}" for name, text in rendered.items()), end="")
        return 0
    from talker_rl.base.disk import atomic_write

    for name, text in rendered.items():
        atomic_write(out / name, text.encode())
        print(out / name)
    print(f"submit: {'bash' if args.kind == 'chain' else 'sbatch'} {shlex.quote(str(out / list(rendered)[-1]))}")
    return 0


def render(
    kind: str, config: RunConfig, *, files: list[str], overrides: list[str], run_dir: Path, out: Path,
    gpus: int | None = None, nodes: int = 2, **given: Any,
) -> dict[str, str]:
    """The scripts of a kind: name -> content.

    Args:
        files, overrides: the configuration as it was named.
        run_dir, out: of the run, and of the scripts and logs; absolute.
        gpus: of a machine; None: as the configuration says.
        nodes: machines of a Ray cluster.
        given: what the templates take besides.
    """
    from talker_rl.planning.sizes import spread_over

    engine = _engine(config)
    each = max(1, spread_over(config) // engine.nodes)
    gpus = gpus if gpus is not None else 0 if config.model.device == "cpu" else each
    devices = [] if config.devices is not None or gpus < 2 else [f"devices={gpus}"]
    if kind == "ray":  # an actor a GPU, or a core, on all machines
        devices += ["executor.name=ray", "executor.address=auto", f"executor.gpus={1 if gpus else 0}",
                    f"workers={nodes * (gpus or given['cpus'])}"]
    else:
        devices += [f"workers={gpus}"] if gpus > config.workers else []
    named = [part for file in _places(files) for part in ("-c", file)]
    run = shlex.join([*named, "--run-dir", str(run_dir), *overrides, *devices])
    values = {
        "name": config.name, "run": run, "run_dir": shlex.quote(str(run_dir)), "out": shlex.quote(str(out)),
        "here": shlex.quote(str(Path.cwd())),
        "gpus": gpus, "processes": max(each, gpus), "threads": max(1, given["cpus"] // max(1, gpus)),
        **given,
    }
    return {name: _filled(template, {**values, "job": f"{config.name}-{Path(name).stem}",
                                     "nodes": {"train": engine.nodes, "ray": nodes}.get(template, 1)})
            for name, template in _FILES[kind].items()}


def _engine(config: RunConfig) -> Any:
    """Of the variants, which share a job."""
    found = {cfg.engine.model_dump_json(): cfg.engine for cfg in config.variants.values()}
    if len(found) > 1:
        raise ConfigError("The variants name several engines, and a job is for one", where="variants.*.engine",
                          fix="say train.engine for all of them, or render a job for each configuration")
    return next(iter(found.values()))


def _places(files: list[str]) -> list[str]:
    """Files as a job finds them from any folder; names of shipped configurations stay."""
    return [str(Path(file).absolute()) if Path(file).is_file() else file for file in files]


def _filled(template: str, values: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    suffix = ".sh.j2" if template == "chain" else ".sbatch.j2"
    world = Environment(loader=FileSystemLoader(FOLDER), undefined=StrictUndefined, trim_blocks=True,
                        lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)
    return world.get_template(f"slurm/{template}{suffix}").render(values)
