"""The options of every verb, and what their help says. Imports nothing heavy: every command parses them."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from talker_rl import __version__
from talker_rl.base.parsers import Parser, add_verb, did_you_mean
from talker_rl.evaluation.wer_verb import WER_EXAMPLES, add_wer_options
from talker_rl.planning.options import DOCTOR_EXAMPLES, PLAN_EXAMPLES, add_doctor_options, add_plan_options
from talker_rl.shipped import CONFIGS_EXAMPLES, add_configs_options, names
from talker_rl.speakers.options import SPEAKER_EXAMPLES, add_speaker_options
from talker_rl.stages.anatomy import ANATOMY_EXAMPLES, ANATOMY_HELP, add_anatomy_options
from talker_rl.stages.encode import EXAMPLES as ENCODE_EXAMPLES
from talker_rl.stages.encode import HELP as ENCODE_HELP
from talker_rl.stages.encode import TEXT as ENCODE_TEXT
from talker_rl.stages.encode import add_options as add_encode_options
from talker_rl.stages.export_options import EXPORT_EXAMPLES, EXPORT_HELP, add_export_options
from talker_rl.stages.job_scripts import EXAMPLES as JOBS_EXAMPLES
from talker_rl.stages.job_scripts import TEXT as JOBS_TEXT
from talker_rl.stages.job_scripts import add_options as add_jobs_options
from talker_rl.stages.order import VERBS
from talker_rl.stages.parity import PARITY_EXAMPLES, PARITY_HELP, add_parity_options

SWEEP_TEXT = """\
Compare losses: a grid of variants, arms (ways of choosing pairs) and training seeds, one row each in a table.

Prompts, candidates and scores are made once; every training takes the same number of steps and is evaluated on the same
prompts from the same seeds. Intervals of a variant are over texts and training seeds; a claim needs a p-value below
0.05 after correction for the number of comparisons (Holm). --dry-run says how small a difference would be found. The
folder holds ablation.json and .csv, report/, shared/ and arms/<arm>/: each arm a run folder, for every other verb.

With run.eval.checkpoints: all every checkpoint is heard (arms/<arm>/curve/, curves.parquet), and losses are compared
where they have drifted as far, too. With tuning a small grid of settings is tried of each variant first (tuning/<arm>/,
tuning.json)."""
SWEEP_EXAMPLES = """\
talker-rl sweep losses                                 the shipped ablation, on the micro model
  talker-rl sweep losses --dry-run                       its grid, and how long it takes
  talker-rl sweep losses 'seeds=[0,1,2,3]'               one seed more: only that one is trained
  talker-rl diagnose --run-dir runs/sweep/arms/biased    any verb on one arm"""

SHOW_TEXT = """\
Print the table that a run or a sweep ended with. Of several runs, or of one with several variants: a row each, figures
with their 95 % intervals side by side, and below them the settings that differ. Of one that is not finished: what is
done, and the command that goes on."""
SHOW_EXAMPLES = """\
talker-rl show runs/demo                     base against trained, once more
  talker-rl show runs/demo runs/margin-0.2     which was better, and what was set otherwise
  talker-rl show runs/sweep --json"""

EPILOG = """\
A run is one folder. Start the same command again after an interruption: only what is missing is done.

examples:
  talker-rl run -c demo                                   the whole circle on the micro model
  talker-rl run -c demo --dry-run                         what it would do, and the decode budget
  talker-rl run -c a.yaml -c b.yaml pairs.margin=0.1      later files and overrides win
  talker-rl score --run-dir runs/demo                     one stage, with the run's own configuration
  talker-rl show runs/demo runs/other                     their figures side by side
"""


MICRO = {"build": "train every part from a seed", "check": "print every figure it must meet", "path": "its folder",
         "voice": "codes of a further voice"}
COMPLETION_EXAMPLES = """\
eval "$(talker-rl completion bash)"          in ~/.bashrc; of zsh in ~/.zshrc, after compinit
  talker-rl completion fish | source           in ~/.config/fish/config.fish"""


def parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The argument parser; verbs below verbs that import more than the others have options where they are called."""
    top = Parser(
        prog="talker-rl",
        description="Preference training of Qwen2.5-Omni's and Qwen3-Omni's Talkers: from prompts to a better voice.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"talker-rl {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    for verb in VERBS.values():
        command = add_verb(verbs, verb.name, verb.text, verb.example)
        if arguments[:2] == ["prompts", "hard"] and verb.name == "prompts":
            from talker_rl.data.hard import command as hard

            _add_elsewhere(command.add_subparsers(dest="what").add_parser("hard"), hard)
            continue
        _add_shared(command)
        if verb.options:
            verb.options(command)

    sweep = add_verb(verbs, "sweep", "compare losses: a grid of variants, arms and seeds in one table", SWEEP_EXAMPLES)
    sweep.description = SWEEP_TEXT
    _add_shared(sweep)

    show = add_verb(verbs, "show", "the table of finished runs and sweeps again, several side by side", SHOW_EXAMPLES)
    show.description = SHOW_TEXT
    show.add_argument("folders", nargs="+", metavar="RUN", help="folder of a run or of a sweep")
    show.add_argument("--json", action="store_true", help="print JSON: the figures, and the settings that differ")
    show.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)

    serve = add_verb(verbs, "serve", "offer the scorer over HTTP, to rollout workers on other machines",
                  "talker-rl serve -c demo --port 8020 --workers 2")
    _add_config(serve)
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1; any other needs a token: "
                       "service.token_file or $TALKER_RL_TOKEN)")
    serve.add_argument("--port", type=int, help="port (default 8020; 0 takes a free one)")
    serve.add_argument("--workers", type=int, metavar="N", help="decoder processes, and as many recognizer processes")
    serve.add_argument("--device", help="device of decoder and recognizer, e.g. cuda:0 or cpu")
    serve.add_argument("--canary", metavar="RUN", help="run folder with scores: its best candidate must be scored the "
                       "same by every worker before it may work")
    serve.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)

    validate = add_verb(verbs, "validate", "check configuration files and print them resolved",
                     "talker-rl validate -c demo pairs.margin=0.1")
    _add_config(validate)
    validate.add_argument("--quiet", "-q", action="store_true", help="print nothing when all is well")
    validate.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)

    add_configs_options(add_verb(verbs, "configs", "list the configurations that are shipped, print one, write one out",
                              CONFIGS_EXAMPLES))

    doctor = add_verb(verbs, "doctor", "check this machine, the model folder and the recognizers, and forecast memory",
                   DOCTOR_EXAMPLES)
    _add_config(doctor)
    add_doctor_options(doctor)

    plan = add_verb(verbs, "plan", "forecast time, memory, disk and GPU-hours of a run, before anything is loaded",
                 PLAN_EXAMPLES)
    _add_config(plan)
    add_plan_options(plan)

    parity = add_verb(verbs, "parity", PARITY_HELP, PARITY_EXAMPLES)
    _add_config(parity)
    add_parity_options(parity)

    jobs = add_verb(verbs, "jobs", "write the scripts with which a cluster runs a configuration", JOBS_EXAMPLES)
    render = jobs.add_subparsers(dest="what", metavar="WHAT", required=True).add_parser(
        "render", help="write them, or print them", description=JOBS_TEXT, epilog=f"examples:\n  {JOBS_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    render.set_defaults(own=render)
    _add_config(render)
    add_jobs_options(render)

    anatomy = add_verb(verbs, "anatomy", ANATOMY_HELP, ANATOMY_EXAMPLES)
    _add_config(anatomy)
    add_anatomy_options(anatomy)
    encode = add_verb(verbs, "encode", ENCODE_HELP, ENCODE_EXAMPLES)
    encode.description = ENCODE_TEXT
    add_encode_options(encode)
    add_export_options(add_verb(verbs, "export", EXPORT_HELP, EXPORT_EXAMPLES))
    add_speaker_options(add_verb(verbs, "speaker", "list speakers, add one, tell them apart", SPEAKER_EXAMPLES))

    wer = add_verb(verbs, "wer", "error rates of transcripts against references, two files of key<TAB>text lines",
                WER_EXAMPLES)
    add_wer_options(wer)
    wer.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)

    micro = add_verb(verbs, "micro", "the micro world: build it, check it, say where it is", "talker-rl micro check")
    what = micro.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, text in MICRO.items():
        command = what.add_parser(name, help=text)
        if arguments[:2] == ["micro", name] and name != "path":
            _add_elsewhere(command, import_module(f"talker_rl.micro.{name}"))

    completion = add_verb(verbs, "completion", "print what lets a shell complete verbs, options and configurations",
                          COMPLETION_EXAMPLES)
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell")
    return top


def _add_elsewhere(command: argparse.ArgumentParser, module: ModuleType) -> None:
    """Options of a verb whose module has them, and ``verb(args)``."""
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.set_defaults(own=command, call=module.verb)
    module.add_options(command)


def _add_config(command: argparse.ArgumentParser) -> None:
    files = command.add_argument("--config", "-c", action="append", default=[], metavar="YAML",
                                 help="configuration: a file, or a name that `talker-rl configs` lists; several are "
                                 "merged left to right")
    others = command.add_argument("overrides", nargs="*", metavar="YAML|KEY=VALUE", help="configurations without -c, "
                                  "and single values, e.g. rollouts.num_candidates=4")
    files.completer = others.completer = lambda **_: names()  # type: ignore[attr-defined]


def _add_shared(command: argparse.ArgumentParser) -> None:
    _add_config(command)
    command.add_argument("--run-dir", metavar="DIR", help="folder of the run (default: runs/<name>); without a "
                         "configuration that of the run there is used")
    command.add_argument("--dry-run", action="store_true", help="print resolved configuration and plan, and stop")
    command.add_argument("--force-stage", action="append", default=[], metavar="STAGE",
                         help="delete a stage's result, and all that depends on it, and do it again")
    command.add_argument("--quiet", "-q", action="store_true", help="no progress, only the result")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Overrides may stand before, between and after options, which argparse alone does not allow below a verb."""
    completing = "_ARGCOMPLETE" in os.environ  # a shell asks what may stand next in its COMP_LINE
    command = parser(os.environ.get("COMP_LINE", "").split()[1:] if completing else arguments)
    if completing:
        import argcomplete

        argcomplete.autocomplete(command, always_complete_options=False)
    if not arguments:  # the list of verbs says more than that one is missing
        command.print_help(sys.stderr)
        raise SystemExit(2)
    args, rest = command.parse_known_args(arguments)
    strange = [a for a in rest if a.startswith("-") or not hasattr(args, "overrides")]
    if strange:
        known = re.findall(r"--[\w-]+", args.own.format_help())
        command.error(f"unrecognized arguments: {' '.join(strange)} ({args.own.prog} --help)"
                      f"{did_you_mean(strange[0].partition('=')[0], known)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    if getattr(args, "endpoint", None):  # it takes all that follows: overrides are given back
        urls = [a for a in args.endpoint if a.startswith(("http://", "https://"))]
        args.overrides += [a for a in args.endpoint if a not in urls]
        args.endpoint = urls
    return args
