"""The verb ``anatomy``: what losses push on in a run's pairs, before any training or at a checkpoint.

Imports nothing heavy before it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker_rl.base.errors import ConfigError, DataError, StageError
from talker_rl.base.figures import count

if TYPE_CHECKING:
    from talker_rl.config import RunConfig
    from talker_rl.diagnostics.anatomy import Anatomy, Side
    from talker_rl.records.candidate import Candidate
    from talker_rl.records.pair import Pair
    from talker_rl.records.prompt import Prompt
    from talker_rl.records.score import ScoreRow
    from talker_rl.rounds import Round
    from talker_rl.stages.context import Context

    Both = tuple[Pair, tuple[Side, Side]]
    """A pair, and what its sides say."""

ANATOMY_HELP = "what a loss pushes on in a run's pairs: right words, wrong ones, silence, the stop"
ANATOMY_EXAMPLES = """\
talker-rl anatomy --run-dir runs/demo                                  the losses of the run's variants
  talker-rl anatomy --run-dir runs/demo --loss all                       the usual ones, side by side
  talker-rl anatomy --run-dir runs/demo --loss '{type: ld_dpo, alpha: 0}' --loss '{type: dpo, stop: drop}'
  talker-rl anatomy --run-dir runs/demo --step 30                        after 30 steps of training
  talker-rl anatomy -c my.yaml train.loss.beta=0.5                       those of a configuration, in its run's pairs
  talker-rl anatomy -c my.yaml --run-dir runs/demo                       the same, in the pairs of another run"""
USUAL = ({"type": "dpo"}, {"type": "dpo", "stop": "drop"}, {"type": "dpo_norm"}, {"type": "ipo"}, {"type": "hinge"},
         {"type": "r_dpo"}, {"type": "sampo", "mode": "random"}, {"type": "sampo", "mode": "top_k"},
         {"type": "ld_dpo", "alpha": 0.0}, {"type": "ld_dpo", "alpha": 0.5}, {"type": "simpo"})
"""What ``--loss all`` compares."""
NO_TIMES = "score with a recognizer that gives times (docs/RECOGNIZERS.md)"
PAIRS_ASKED = 200
"""Pairs that tell whether a run is to be warned, and what a sweep's durations will be."""
_MOSTLY = 0.5
"""Share of the pairs in which a loss pushes the stop down, from which it is warned of."""
_LEAST = 1e-6
"""Net push on the stop, in units of DPO's on a token, above which it is none of rounding."""
_MENDS = "stop: keep or stop: drop in the loss mends that"


def add_anatomy_options(anatomy: argparse.ArgumentParser) -> None:
    """All of them."""
    anatomy.add_argument("--run-dir", metavar="DIR", help="folder of a run that has pairs and scores (default: "
                         "runs/<name>); without a configuration that of the run there is used")
    anatomy.add_argument("--loss", action="append", default=[], metavar="LOSS", help="a loss as in a configuration, "
                         "{type: ld_dpo, alpha: 0}; or `all`: the usual ones. Default: those of the variants")
    anatomy.add_argument("--step", type=int, metavar="N", help="at this checkpoint of --variant, in place of before "
                         "training; needs the model")
    anatomy.add_argument("--variant", metavar="NAME", help="of which training (default: the only one)")
    anatomy.add_argument("--json", action="store_true", help="print JSON: every class of both sides")
    anatomy.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


def verb(args: argparse.Namespace, config: RunConfig) -> int:
    """Measure and print.

    Args:
        config: whose variants' losses are asked of; the pairs, what is heard in them and the model are the run's.

    Raises:
        StageError: no run, no pairs, no such checkpoint; or no pair has times that can be used.
        ConfigError: a loss that is none, or that compares nothing.
    """
    from talker_rl.base.places import require_run
    from talker_rl.config import load_data
    from talker_rl.diagnostics.anatomy import anatomy
    from talker_rl.records.token_classes import MEANING
    from talker_rl.store.run_dir import MANIFEST, read_manifest, stored_config

    if args.variant is not None and args.step is None:
        raise ConfigError("A variant's log-probs are asked for, and not after how many steps", where="--variant",
                          fix="add --step N; whose losses are asked of, --loss says")
    folder = Path(args.run_dir or Path("runs") / config.name)
    require_run(folder, fix="make its pairs first: talker-rl pair")
    run = load_data(stored_config(folder), where=str(folder / MANIFEST))
    losses = _losses(args.loss, config, read_manifest(folder).get("trainings", {}))
    pairs, left_out = read_pairs(folder, run)
    if args.step is not None:
        pairs = _at_checkpoint(folder, run, pairs, args.variant, args.step)
    sides = [both for _, both in pairs]
    found = {name: anatomy(loss, sides) for name, loss in losses.items()}
    if args.json:
        print(json.dumps({"pairs": len(sides), "left_out": left_out, "step": args.step or 0, "classes": MEANING,
                          "losses": {name: {"loss": losses[name], **asdict(one)} for name, one in found.items()}},
                         indent=1, ensure_ascii=False))
    else:
        print(text(found, left_out, f"after step {args.step}" if args.step else "before training"))
    return 0


@dataclass(frozen=True)
class Heard:
    """What was sampled of some prompts of a round, and what the recognizer heard."""

    config: RunConfig
    candidates: Sequence[Candidate]
    scores: Sequence[ScoreRow]
    prompts: Sequence[Prompt]

    @cached_property
    def _by_id(self) -> tuple[dict[str, Candidate], dict[str, ScoreRow], dict[str, str]]:
        return ({c.candidate_id: c for c in self.candidates}, {s.candidate_id: s for s in self.scores},
                {p.prompt_id: p.lang for p in self.prompts})

    def side(self, pair: Pair, candidate_id: str) -> Side:
        """A side of a pair, before training.

        Raises:
            ValueError: the recognizer's times cannot be used.
            KeyError: no such candidate.
        """
        from talker_rl.diagnostics.anatomy import Side
        from talker_rl.records.token_classes import token_classes

        candidates, scores, langs = self._by_id
        candidate, score, pauses = candidates[candidate_id], scores[candidate_id], self.config.reward.pauses
        kinds = token_classes(candidate.speech, pair.text, langs[pair.prompt_id], score.transcript, score.spans,
                              hit_seconds=pauses.hit_seconds, spurious_seconds=pauses.spurious_seconds,
                              tolerance=pauses.time_tolerance)
        return Side(candidate.token_logps, kinds, seconds=candidate.duration)

    def sides(self, pairs: Sequence[Pair]) -> list[Both]:
        """Those of the pairs of which it can be told."""
        found: list[Both] = []
        for pair in pairs:
            with contextlib.suppress(ValueError, KeyError):  # unusable times; or a pair that was given, of no candidate
                found.append((pair, (self.side(pair, pair.chosen_id), self.side(pair, pair.rejected_id))))
        return found


def heard_in(folder: Path, config: RunConfig, pairs: Iterable[Pair], prefix: str = "") -> Heard:
    """What was sampled and heard of some pairs in a run's folder, of the round whose stages have this prefix.

    Raises:
        DataError: a shard is damaged, or the prompts are not there.
    """
    from talker_rl.data.speaker_settings import SETS
    from talker_rl.records.candidate import Candidate
    from talker_rl.records.prompt import Prompt
    from talker_rl.records.score import ScoreRow
    from talker_rl.store.shards import ShardFolder

    spoken = {candidate for pair in pairs for candidate in (pair.chosen_id, pair.rejected_id)}
    prompts = {pair.prompt_id for pair in pairs}
    return Heard(config, ShardFolder(folder / f"{prefix}rollouts").where("candidate_id", spoken, Candidate),
                 ShardFolder(folder / f"{prefix}scores").where("candidate_id", spoken, ScoreRow),
                 [p for p in ShardFolder(folder / "prompts").records(Prompt, SETS.index("train"))
                  if p.prompt_id in prompts])


def read_pairs(folder: Path, config: RunConfig, most: int | None = None) -> tuple[list[Both], int]:
    """Pairs of round 1 with what was sampled and heard, and how many were left out for want of usable times.

    Args:
        most: so many pairs are looked at, at even distances; None: all.

    Raises:
        StageError: there are none.
        DataError: a shard is damaged.
    """
    from talker_rl.records.pair import Pair
    from talker_rl.report.clips import spaced
    from talker_rl.store.shards import ShardFolder

    stored = ShardFolder(folder / "pairs").records(Pair)
    if not stored:
        raise StageError("This run has no pairs yet", where=str(folder), fix=f"talker-rl pair --run-dir {folder}")
    pairs = spaced(stored, len(stored) if most is None else most)
    found = heard_in(folder, config, pairs).sides(pairs)
    if not found:
        raise StageError("No pair has a time for each word that was heard", where=str(folder / "scores"), fix=NO_TIMES)
    return found, len(pairs) - len(found)


def losses_of(
    config: RunConfig, names: Iterable[str], trainings: Mapping[str, Mapping[str, Any]], *, own: bool = False
) -> dict[str, dict[str, Any]]:
    """Losses of variants that learn from pairs, equal ones once: whose it is -> loss.

    Args:
        names: of variants; where one is a training of a sweep, ``trainings`` (of its manifest) says of what.
        own: functions of the user's own as well.
    """
    from talker_rl.base.ids import stable_hash
    from talker_rl.losses.config import parse_loss

    whose: dict[str, list[str]] = defaultdict(list)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        cfg = config.variants[name]
        if cfg.data is None and (own or not is_own(cfg.loss)):
            key = stable_hash(parse_loss(cfg.loss).model_dump(mode="json"))
            whose[key].append(trainings.get(name, {}).get("variant", name))
            found[key] = cfg.loss
    return {_whose(mine): found[key] for key, mine in whose.items()}


def _whose(variants: Sequence[str]) -> str:
    """``a``, ``a (as b)``, ``a (3 trainings)``: one name to speak of, the variant of each training given."""
    first, *others = dict.fromkeys(variants)
    more = [f"as {', '.join(others)}"] if others else []
    if len(variants) > 1 + len(others):
        more.append(count(len(variants), "training"))
    return f"{first} ({'; '.join(more)})" if more else first


def is_own(loss: Mapping[str, Any]) -> bool:
    """Whether a function of the user's own is in a loss: nobody knows what it takes a pair for."""
    from talker_rl.losses.config import parse_loss, parts_of

    return any(part.type == "custom" for part in parts_of(parse_loss(loss)))


def warn(ctx: Context, round_: Round) -> None:
    """Say which of a round's variants would push the stop down: once an invocation, where its pairs are made, else
    before it trains on them. Functions of the user's own are not asked."""
    from talker_rl.diagnostics.anatomy import anatomy
    from talker_rl.records.pair import Pair
    from talker_rl.report.clips import spaced

    stage = round_.stage("pairs")
    if ctx.quiet or stage in ctx.told:
        return
    ctx.told.add(stage)
    losses = losses_of(ctx.config, round_.variants(ctx.config), ctx.run.manifest.get("trainings", {}))
    if not losses:
        return
    sides: list[Both] = []
    with contextlib.suppress(DataError):  # training needs neither candidates nor scores: who does will say it
        pairs = spaced(ctx.shards(stage).records(Pair), PAIRS_ASKED)
        sides = heard_in(ctx.run.path, ctx.config, pairs, round_.prefix).sides(pairs)
    for line in warnings({name: anatomy(loss, [both for _, both in sides]) for name, loss in losses.items()}):
        ctx.say(f"{stage}: {line}")


def findings(config: RunConfig, run: Path | None = None) -> list[str]:
    """What a configuration's losses are to be warned of: in the pairs of a run, or where nothing is sampled yet in
    pairs whose chosen is the longer one.

    Raises:
        StageError: the run has no pairs, or none with usable times.
        DataError: a shard is damaged.
    """
    from talker_rl.diagnostics.anatomy import anatomy
    from talker_rl.store.run_dir import read_manifest

    if run is not None:
        losses = losses_of(config, config.variants, read_manifest(run).get("trainings", {}))
        sides = [both for _, both in read_pairs(run, config, PAIRS_ASKED)[0]] if losses else []
        return [line.removeprefix("warning: ")
                for line in warnings({name: anatomy(loss, sides) for name, loss in losses.items()})]
    told = []
    for name, loss in losses_of(config, config.variants, {}).items():
        one = anatomy(loss, _longer_chosen())
        if one.stop < -_LEAST:
            up, down = one.push["chosen"]["stop"], -one.push["rejected"]["stop"]
            told.append(f"on pairs whose chosen is the longer one {name} will push the stop down, and lengthen speech: "
                        f"where it is a fifth longer, its stop is pushed up by {up / down:.0%} of what the other's is "
                        f"pushed down; {_MENDS}")
    return told


def _longer_chosen() -> list[tuple[Side, Side]]:
    """Pairs for what can be told of a loss alone: chosen a fifth longer, both with their stops. Many of the same, for
    losses that draw."""
    from talker_rl.diagnostics.anatomy import Side
    from talker_rl.records.token_classes import TokenClass

    right: list[TokenClass] = ["right"]
    chosen, rejected = (Side([-2.0] * steps, [*right * (steps - 1), "stop"]) for steps in (120, 100))
    return [(chosen, rejected)] * 100


def _losses(
    asked: Sequence[str], config: RunConfig, trainings: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Name -> loss."""
    from talker_rl.config_files import parse_value
    from talker_rl.losses.config import parse_loss, parts_of
    from talker_rl.losses.policy_config import PolicyLossConfig, ReinforceLossConfig

    given: list[dict[str, Any]] = []
    for text_ in asked:
        given += USUAL if text_ == "all" else [parse_value(text_, f"--loss {text_}")]
    named = {_label(loss): loss for loss in given} if given else losses_of(config, config.variants, trainings, own=True)
    for name, loss in named.items():
        if any(isinstance(part, PolicyLossConfig | ReinforceLossConfig)
               for part in parts_of(parse_loss(loss, where=f"--loss {name}"))):
            raise ConfigError(f"{name} learns from samples with advantages, and these are pairs",
                              where=f"--loss {name}", fix="name a loss of pairs, or --loss all")
    if not named:
        raise ConfigError("The variants learn from completions, which are compared with nothing",
                          where="train.data", fix="name a loss: --loss '{type: dpo}'")
    return named


def _label(loss: Any) -> str:
    if not isinstance(loss, dict):
        raise ConfigError(f"A loss is a dictionary with a type, not {loss!r}", where="--loss",
                          fix="write --loss '{type: dpo}', or --loss all")
    return " ".join(str(value) if key == "type" else f"{key}={value}" for key, value in loss.items())


def _at_checkpoint(
    folder: Path, config: RunConfig, pairs: list[Both], variant: str | None, step: int
) -> list[Both]:
    """The same pairs with the log-probs of a checkpoint, and of the policy that it began with."""
    from dataclasses import replace

    from talker_rl.rounds import train_stage
    from talker_rl.stages.forcing import ForceTask, force
    from talker_rl.stages.inputs import start_adapter
    from talker_rl.train.checkpoints import list_checkpoints

    names = [name for name, cfg in config.variants.items() if cfg.data is None]
    if variant is None and len(names) != 1 or variant is not None and variant not in names:
        raise ConfigError("Which variant's checkpoint?", where="--variant", fix=f"one of: {', '.join(names)}")
    stage = train_stage(variant or names[0], 1)
    saved = list_checkpoints(folder / stage)
    if step not in saved:
        raise StageError(f"There is no checkpoint of step {step}", where=str(folder / stage),
                         fix=f"one of: {', '.join(map(str, saved)) or 'none: it is not trained yet'}")
    policy, reference = force(ForceTask(
        config.model, [saved[step], start_adapter(config)], folder / "conditioning",
        [(pair.prompt_id, speech) for pair, _ in pairs for speech in pair.sides],
        config.variants[variant or names[0]].reference_batch_size))
    forced = iter(zip(policy, reference, strict=True))
    out = []
    for pair, both in pairs:
        chosen, rejected = (replace(side, logps=mine.logps, ref_logps=other.logps)
                            for side, (mine, other) in zip(both, forced, strict=False))
        out.append((pair, (chosen, rejected)))
    return out


def text(found: dict[str, Anatomy], left_out: int = 0, when: str = "before training") -> str:
    """A table, a row a loss, and what to be warned of; ``when`` says of which policy the log-probs are."""
    from talker_rl.records.token_classes import WRONG
    from talker_rl.report.columns import columns

    first = next(iter(found.values()))
    head = ("loss", "a token", "stop", "of its own", "pushed down in", "moves stops", "tail", "right words", "wrong",
            "past common, w / l")
    rows = [head]
    for name, one in found.items():
        rows.append((
            name, f"{one.per_token:.2g}", f"{one.stop:+.2f}", f"{one.stop_share:+.2f}",
            f"{one.stop_down} of {one.pairs}", f"{one.stop_seconds:+.2f} s", f"{one.net('tail'):+.1f}",
            f"{one.net('right'):+.1f}", f"{one.net(*WRONG):+.1f}",
            f"{one.past_common['chosen']:+.1f} / {one.past_common['rejected']:+.1f}"))
    lines = columns(rows)
    unusable = f" Left out, for want of usable times: {left_out}." if left_out else ""
    lines += ["", f"Means over {count(first.pairs, 'pair')}, {when}, both sides together, in units of the push "
              "that DPO gives a token at the start. `a token`: what this loss gives one on average; `of its own`: the "
              f"stop in units of that, which is what Adam makes of it.{unusable}"]
    return "\n".join([*lines, *warnings(found)])


def warnings(found: dict[str, Anatomy]) -> list[str]:
    """A line for each loss that pushes the stop down on balance in most pairs: it will lengthen speech."""
    return [f"warning: {name} pushes the stop down in {one.stop_down} of {count(one.pairs, 'pair')}, and will lengthen "
            f"speech: {_MENDS}" for name, one in found.items() if one.stop_down > _MOSTLY * one.pairs]
