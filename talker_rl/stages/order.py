"""The stages in their order, one line each, with their verbs. Imports nothing heavy: every command parses verbs.

What a stage is, its own file says (:class:`talker_rl.stages.stage.Stage`, as ``STAGE`` at its end).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from talker_rl.stages.stage import Stage


@dataclass(frozen=True)
class Verb:
    """A verb that works on a run's folder."""

    name: str
    text: str
    """What it does, for the list of verbs."""
    example: str
    needs: tuple[str, ...] = ()
    """What it uses of what a configuration names (:func:`talker_rl.stages.named.faults`)."""
    options: Callable[[argparse.ArgumentParser], object] | None = None
    begins: bool = False
    """Whether it may begin a run; the others go on with what is in its folder."""
    learns: bool = False
    """Whether it is of no use where nothing to learn from can come out."""
    tracks: bool = False
    """Whether it sends figures to a tracker."""


def _round(command: argparse.ArgumentParser) -> None:
    command.add_argument("--round", type=int, metavar="N", help="on-policy round (default: the latest)")


def _pair(command: argparse.ArgumentParser) -> None:
    _round(command)
    command.add_argument("--votes", metavar="FILE", help="votes exported by a page's blind A/B listening: make the "
                         "pairs of round 1 of them (short for pairs.votes=FILE)")


def _endpoint(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--endpoint", action="extend", nargs="+", default=[], metavar="URL",
                         help=f"let reward services {what} (talker-rl serve), with the same results; a token is taken "
                         "from $TALKER_RL_TOKEN")


def _score(command: argparse.ArgumentParser) -> None:
    _round(command)
    _endpoint(command, "do it")


def _train(command: argparse.ArgumentParser) -> None:
    _round(command)
    _endpoint(command, "decode and judge what an online training samples")
    command.add_argument("--engine-command", action="store_true", help="write the tasks of the trainings and print "
                         "what starts them (torchrun), for a scheduler or several machines; nothing is trained. "
                         "Afterwards the verb alone takes what came of them")


def _run(command: argparse.ArgumentParser) -> None:
    _endpoint(command, "decode and judge what is sampled to learn from")


def _eval(command: argparse.ArgumentParser) -> None:
    command.add_argument("--protocol", choices=("seed-tts-eval",), help="also score as seed-tts-eval does, by language "
                         "(short for eval.protocol=...)")


def _diagnose(command: argparse.ArgumentParser) -> None:
    command.add_argument("--variant", nargs="+", action="extend", default=[], metavar="NAME",
                         help="variants to look at (default: all of the run)")
    command.add_argument("--reward-noise", type=int, metavar="N", help="also decode some rollouts from N seeds each "
                         "and score them all: how much of a reward is luck, and which pairs.margin follows")


RUN = Verb("run", "all stages in order", "talker-rl run -c demo --run-dir runs/demo",
           ("reward", "recognizer", "evaluator", "losses", "device"), _run, begins=True, learns=True, tracks=True)
_TRAIN = Verb("train", "train every variant, and choose its checkpoint on dev",
              "talker-rl train -c demo train.loss.type=ld_dpo", ("reward", "recognizer", "losses", "device"),
              _train, tracks=True)
_PAIR = Verb("pair", "choose preference pairs (or completions to imitate) among the scored candidates",
             "talker-rl pair -c demo pairs.length_match=3", (), _pair, learns=True)

ORDER: dict[str, Verb | None] = {
    "prompts": Verb("prompts", "read, check and keep disjoint the three prompt sets",
                    "talker-rl prompts -c demo prompts.train=my_texts.txt\n"
                    "  talker-rl prompts hard --help      texts that break Talkers, made by rules", begins=True),
    "conditioning": Verb("condition", "compute what the Thinker gives the Talker, once per prompt",
                         "talker-rl condition -c demo", ("device",)),
    "rollouts": Verb("rollout", "sample candidates of every train prompt",
                     "talker-rl rollout -c demo rollouts.num_candidates=16", ("device",), _round, learns=True),
    "scores": Verb("score", "decode and judge every candidate", "talker-rl score -c demo workers=2",
                   ("reward", "recognizer", "device"), _score, learns=True),
    "pairs": _PAIR,
    "completions": _PAIR,
    "train": _TRAIN,
    "choice": _TRAIN,
    "evaluate": Verb("eval", "evaluate base and trained by a second recognizer", "talker-rl eval -c demo eval.seeds=4",
                     ("reward", "recognizer", "evaluator", "device"), _eval, tracks=True),
    "curve": None,
    "likelihood": None,
    "report": Verb("report", "write report/index.html", "talker-rl report --run-dir runs/demo"),
    "diagnose": Verb("diagnose", "measure length bias, drift and stopping of the trained variants of a finished run",
                     "talker-rl diagnose --run-dir runs/demo --reward-noise 4", ("device",), _diagnose),
    "reward_noise": None,
}
"""Module of a stage -> its verb; two that share one are made by it one after the other."""

VERBS = {verb.name: verb for verb in (RUN, *ORDER.values()) if verb}


def stage_of(module: str) -> Stage:
    """What a stage's file says of it."""
    found: Stage = import_module(f"talker_rl.stages.{module}").STAGE
    return found


def all_stages(each: str | None = "any") -> list[Stage]:
    """All of them in order, or those that a run has one of for ``each``."""
    return [stage for stage in map(stage_of, ORDER) if each in ("any", stage.each)]


def stages_of(verb: str) -> list[Stage]:
    """What a verb makes."""
    return [stage_of(module) for module, own in ORDER.items() if own and own.name == verb]
