"""The verb ``parity``: do log-probs of sampling equal those of training? Sampled with the policy, or by another engine
(``--samples``), scored by teacher forcing in each state of the adapter and each shape of a batch.

Imports nothing heavy before it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker_rl.base.errors import ConfigError, PromptError
from talker_rl.base.figures import count

if TYPE_CHECKING:
    from talker_rl.config import RunConfig
    from talker_rl.diagnostics.parity import Bound, Figures, Logps, Place
    from talker_rl.diagnostics.parity_causes import Cause
    from talker_rl.records.prompt import Prompt
    from talker_rl.speech.config import LoraSettings, SamplingConfig
    from talker_rl.speech.protocol import Generator, Policy, TalkerSequence

PARITY_HELP = "check that log-probs of sampling equal those of training, and name what differs"
PARITY_EXAMPLES = """\
talker-rl parity                                      the shipped model, in float32
  talker-rl parity -c my.yaml --dtype bfloat16          a checkpoint of yours, in half precision
  talker-rl parity -c my.yaml --samples engine.jsonl    another engine's: raw or processed, right or wrong"""
PROBE_SPREAD = 0.02
"""Standard deviation of the B matrices of an adapter that is made for the check: every log-prob shows it."""


def add_parity_options(parity: argparse.ArgumentParser) -> None:
    """All but the configuration's."""
    parity.add_argument("--prompts", type=_number, default=4, metavar="N", help="prompts, the first of the "
                        "configuration's eval set (default 4)")
    parity.add_argument("--candidates", type=_number, default=4, metavar="K", help="candidates per prompt (default 4)")
    parity.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="precision, in place of "
                        "model.dtype: the bound follows it")
    parity.add_argument("--samples", metavar="FILE", help="JSONL of samples of another engine, in place of own ones "
                        "(docs/PARITY.md): are its log-probs raw, processed, or wrong?")
    parity.add_argument("--json", action="store_true", help="print JSON; the exit code is the same")
    parity.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


def _number(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


@dataclass
class Row:
    """One way of scoring, against what was recorded."""

    state: str
    shape: str
    figures: Figures
    place: Place | None
    kept: bool
    at: str = ""
    """The first step that differs, in words."""


@dataclass
class Report:
    """All of it."""

    facts: dict[str, Any]
    bound: Bound
    rows: list[Row] = field(default_factory=list)
    causes: list[tuple[str, Cause]] = field(default_factory=list)
    """State, and a likely cause."""
    kind: str | None = None
    """Of foreign samples: "raw", "processed (...)" or "neither"; where nothing processed is tried "not raw" or "not one
    a step"."""

    @property
    def ok(self) -> bool:
        """Whether every row keeps the bound."""
        return all(row.kept for row in self.rows) and not self.causes

    def add(
        self, state: str, shape: str, recorded: Sequence[Logps], scored: Sequence[Logps],
        sequences: Sequence[TalkerSequence], names: Sequence[str], bound: Bound | None = None,
    ) -> Row:
        """Compare, and name the first step that differs."""
        from talker_rl.diagnostics.parity import compare, first_beyond

        bound = bound or self.bound
        figures = compare(recorded, scored, bound)
        place = first_beyond(recorded, scored, bound)
        row = Row(state, shape, figures, place, figures.keep(bound),
                  "" if place is None else _where(place, sequences, names))
        self.rows.append(row)
        return row

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.facts, "ok": self.ok, "bound": asdict(self.bound), "kind": self.kind,
            "rows": [{"state": r.state, "shape": r.shape, **r.figures.as_data(), "kept": r.kept,
                      "first": None if r.place is None else r.place.as_data() | {"at": r.at}} for r in self.rows],
            "causes": [{"state": state, **asdict(cause)} for state, cause in self.causes],
        }

    def text(self) -> str:
        """For a terminal."""
        told = {k: v for k, v in self.facts.items() if k != "rerouted"}
        lines = [", ".join(f"{k} {v}" for k, v in told.items()), f"bound: {self.bound}"]
        if (share := self.facts.get("rerouted")) is not None:
            lines.append(f"experts: the rollouts' are taken; {share:.1%} of routers' choices in a row would be others")
        lines += ["",
                 f"{'':12} {'':15} {'largest':>9} {'mean':>9} {'pearson':>9} {'k3':>9} {'beyond':>7}"]
        for row in self.rows:
            f = row.figures
            r = "–" if f.pearson is None else f"{f.pearson:.6f}"
            lines.append(f"{row.state:12} {row.shape:15} {f.largest:9.1e} {f.mean:9.1e} {r:>9} {f.k3:9.1e} "
                         f"{f.beyond:7.2%}" + ("" if row.kept else "  beyond the bound"))
        lines += ["", *(f"first in {r.state}, {r.shape}: {r.at}" for r in self.rows if r.at and not r.kept)]
        lines += [f"likely ({state}): {cause.name}: {cause.text}" for state, cause in self.causes]
        if self.kind:
            lines.append(f"these log-probs are {self.kind}")
        return "\n".join([*lines, "ok: sampling and training agree" if self.ok else
                          "not ok: sampling and training do not agree"])


def verb(args: argparse.Namespace, config: RunConfig) -> int:
    """Measure, print, and say by the exit code whether the bound is kept."""
    from talker_rl.base.places import require_file
    from talker_rl.speech.registry import family_of

    if args.dtype:
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": args.dtype})})
    if args.samples:
        require_file(Path(args.samples), "file of samples", "--samples")
    family = family_of(config.model.path)
    generator = family.load(config.model, ["conditioner", "talker"])
    prompts = _prompts(config, generator, None if args.samples else args.prompts)
    if args.samples:
        from talker_rl.stages.parity_samples import read_samples

        samples = read_samples(Path(args.samples), generator.codec, {p.prompt_id: p for p in prompts},
                               config.prompts.speaker or generator.speakers[0])
        conditionings = generator.condition(list({s.prompt.prompt_id: s.prompt for s in samples}.values()),
                                            config.conditioning)
        report = judge(generator, samples, conditionings, config.rollouts.sampling, adapter=_adapter(config))
    else:
        conditionings = generator.condition(prompts, config.conditioning)
        seeds = [_seeds(config.seed, p, args.candidates) for p in prompts]
        report = measure(generator, conditionings, config.rollouts.sampling, seeds, adapter=_adapter(config),
                         lora=_lora(config))
    print(json.dumps(report.as_data(), indent=1) if args.json else report.text())
    if not report.ok and args.json:
        sys.stderr.write("not ok: sampling and training do not agree\n")
    return 0 if report.ok else 1


def measure(
    generator: Generator, conditionings: Sequence[Any], sampling: SamplingConfig, seeds: Sequence[Sequence[int]], *,
    adapter: Path | None = None, lora: LoraSettings | None = None,
) -> Report:
    """Sample, and score in every state and shape.

    Args:
        adapter: folder of one; None: one is made for the check.
        lora: settings of that.
    """
    from talker_rl.diagnostics.parity import bound_of
    from talker_rl.speech.lora import merged
    from talker_rl.speech.protocol import SampleRequest

    requests = [SampleRequest(c, s) for c, s in zip(conditionings, seeds, strict=True)]
    with generator.policy() as policy:
        bound = bound_of(generator.settings.dtype, sparse=policy.sparse, terms=policy.terms)
        report = Report(_facts(generator, prompts=len(conditionings)), bound)
        drawn = policy.sample(requests, sampling)
        _all_shapes(report, "base", policy, drawn, conditionings)
    with generator.policy(adapter, train=None if adapter else lora or _default_lora()) as policy:
        policy.module.eval()
        if adapter is None:
            _shake(policy)
        own = policy.sample(requests, sampling)
        _all_shapes(report, "adapter on", policy, own, conditionings)
        with policy.as_reference():
            _all_shapes(report, "adapter off", policy, drawn, conditionings)
        with merged(policy.module):
            _all_shapes(report, "merged", policy, own, conditionings)
    steps = sum(len(c.token_logps) for c in drawn)
    report.facts |= {"candidates": len(drawn), "steps": steps, "adapter": str(adapter or "made for this check")}
    return report


def _all_shapes(
    report: Report, state: str, policy: Policy, candidates: Sequence[Any], conditionings: Sequence[Any]
) -> None:
    """Rows of a state, and likely causes where one does not keep the bound."""
    import numpy as np

    from talker_rl.diagnostics.parity import MERGED
    from talker_rl.diagnostics.parity_causes import diagnose, diagnose_shapes
    from talker_rl.stages.parity_scoring import SHAPES, scored, sequences_of, views_of

    kept = [c for c in candidates if c.token_logps]
    sequences, names = sequences_of(kept, conditionings), [c.candidate_id for c in kept]
    recorded = [np.array(c.token_logps) for c in kept]
    by_shape = {shape: scored(policy, sequences, shape) for shape in SHAPES}
    if (share := policy.rerouted()) is not None:
        report.facts["rerouted"] = max(round(share, 4), report.facts.get("rerouted", 0.0))
    bound = report.bound.times(MERGED) if state == "merged" else report.bound
    rows = [report.add(state, shape, recorded, found, sequences, names, bound) for shape, found in by_shape.items()]
    if all(row.kept for row in rows):
        return
    if rows[0].kept:
        causes = diagnose_shapes({row.shape: row.kept for row in rows})
    else:
        views = views_of(policy, sequences, conditionings)
        if state == "base":
            views.pop("reference", None)
        causes = diagnose(recorded, by_shape[SHAPES[0]], bound, views,
                          stopped=[s.speech.stopped for s in sequences])
    report.causes += [(state, cause) for cause in causes]


def judge(
    generator: Generator, samples: Sequence[Any], conditionings: Sequence[Any], own: SamplingConfig, *,
    adapter: Path | None = None,
) -> Report:
    """Score what another engine recorded, and tell raw from processed log-probs.

    Args:
        samples: :class:`talker_rl.stages.parity_samples.Sample`.
        own: sampling options that are tried where a sample names none.
    """
    from talker_rl.diagnostics.parity import bound_of
    from talker_rl.diagnostics.parity_causes import diagnose
    from talker_rl.speech.protocol import TalkerSequence
    from talker_rl.stages.parity_scoring import SHAPES, scored, views_of

    by_id = {c.prompt_id: c for c in conditionings}
    sequences = [TalkerSequence(by_id[s.prompt.prompt_id], s.speech) for s in samples]
    names, stopped = [s.name for s in samples], [s.speech.stopped for s in samples]
    coded = all(s.logps.ndim == 2 for s in samples)
    with generator.policy(adapter) as policy:
        policy.module.eval()
        bound = bound_of(generator.settings.dtype, sparse=policy.sparse, terms=policy.terms)
        report = Report(_facts(generator, samples=len(samples), prompts=len(conditionings)), bound)
        recorded = [s.logps if coded or s.logps.ndim == 1 else
                    s.logps[:, 0] if policy.terms == 1 else s.logps.sum(1) for s in samples]
        score = policy.code_logps if coded else policy.logps
        raw = scored(policy, sequences, SHAPES[0], score)
        kept = report.add("samples", SHAPES[0], recorded, raw, sequences, names).kept
        uneven = any(len(a) != len(b) for a, b in zip(recorded, raw, strict=True))
        if kept and not uneven:
            for shape in SHAPES[1:]:
                report.add("samples", shape, recorded, scored(policy, sequences, shape, score), sequences, names)
            report.kind = "raw, as they should be"
            return report
        views, details = ({}, {}) if coded else (views_of(policy, sequences, conditionings), {})
        if not coded and not uneven:
            views["processed"], details["processed"] = _processed(policy, samples, sequences, recorded, own)
    causes = diagnose(recorded, raw, bound, views, stopped=stopped, details=details)
    report.causes = [("samples", cause) for cause in causes]
    if any(cause.name == "processed" for cause in causes):
        report.kind = f"processed ({details['processed']})"
    elif "processed" in views:
        report.kind = "neither raw nor processed as told or tried"
    else:
        report.kind = ("not one a step" if uneven else "not raw; numbers by code are compared as raw ones only") + (
            ": whether they are processed was not tried")
    return report


def _processed(
    policy: Policy, samples: Sequence[Any], sequences: Sequence[TalkerSequence], recorded: Sequence[Logps],
    own: SamplingConfig,
) -> tuple[list[Logps], str]:
    """Log-probs under the settings that were told, or under those tried that come nearest; and their words."""
    from talker_rl.stages.parity_samples import by_settings, nearest, words
    from talker_rl.stages.parity_scoring import processed

    out: dict[int, Logps] = {}
    said = []
    for members in by_settings(samples):
        told = samples[members[0]].sampling
        part, numbers = [sequences[i] for i in members], [recorded[i] for i in members]
        settings = told if told is not None else nearest(policy, part, numbers, own)
        said.append(words(settings) or "no option that changes them")
        out |= dict(zip(members, processed(policy, part, settings), strict=True))
    return [out[i] for i in range(len(samples))], "; ".join(dict.fromkeys(said))


def _where(place: Place, sequences: Sequence[TalkerSequence], names: Sequence[str]) -> str:
    """A step in words: candidate, step, which code, both values."""
    speech = sequences[place.sequence].speech
    groups = speech.codec.groups
    frame = speech.codes[place.step * groups : (place.step + 1) * groups]
    said = f"the stop {speech.stop_id}" if not frame else f"code {frame[0]}" if groups == 1 else f"frame {frame}"
    book = f", codebook {place.group}" if place.group else ""
    return (f"candidate {names[place.sequence]}, step {place.step} of {speech.steps} ({said}{book}): recorded "
            f"{place.recorded:.6f}, scored {place.scored:.6f}, off by {place.difference:+.2e}")


def _facts(generator: Generator, **counts: int) -> dict[str, Any]:
    settings = generator.settings
    return {"model": str(settings.path), "dtype": settings.dtype, "device": str(generator.device), **counts}


def _shake(policy: Policy) -> None:
    """Give a new adapter, which changes nothing yet, something to do."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in policy.module.named_parameters():
            if ".lora_B." in name:
                value.copy_(PROBE_SPREAD * torch.randn(value.shape, generator=generator))


def _default_lora() -> LoraSettings:
    from talker_rl.speech.config import LoraSettings

    return LoraSettings()


def _lora(config: RunConfig) -> LoraSettings:
    """Of the first variant that trains an adapter; without dropout, which is noise."""
    settings = next((t.lora for t in config.variants.values() if t.lora is not None), None) or _default_lora()
    return settings.model_copy(update={"lora_dropout": 0.0})


def _adapter(config: RunConfig) -> Path | None:
    from talker_rl.speech.lora import resolve_adapter

    return None if config.model.adapter is None else resolve_adapter(config.model.adapter)


def _seeds(root: int, prompt: Prompt, number: int) -> list[int]:
    from talker_rl.base.ids import derive_seed

    return [derive_seed(root, "parity", prompt.prompt_id, k) for k in range(number)]


def _prompts(config: RunConfig, generator: Generator, number: int | None) -> list[Prompt]:
    """The first of the eval set; all of the three sets where no number is given, for samples that name one."""
    from talker_rl.data.prompts import read_prompts

    speakers = list(generator.speakers)
    if config.prompts.speaker is not None and config.prompts.speaker not in speakers:
        raise ConfigError(f"Unknown speaker {config.prompts.speaker!r}", where="prompts.speaker",
                          fix=f"this checkpoint has: {', '.join(speakers)}")
    sets = ("eval",) if number is not None else ("train", "dev", "eval")
    found = [p for name in sets for p in read_prompts(**config.prompts.reading(name), speakers=speakers).prompts]
    if number is not None and not found:
        raise PromptError("the eval set holds no prompt that can be spoken", where="prompts.eval",
                          fix="name another file")
    if number is not None and len(found) < number:
        sys.stderr.write(f"note: the eval set holds {count(len(found), 'prompt')}\n")
    return found[:number]
