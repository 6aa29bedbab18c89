"""The forecast of a run: every stage's counted work, its time on a machine, its peak memory and what it leaves on disk.

Not counted: loading models (seconds of a worker, minutes from a slow disk), the pairs and the report (seconds), and in
the evaluation speaker similarity and F0. Counts are upper bounds where the configuration leaves them open: every
prompt gives its most pairs, no training stops early.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from talker_rl.config import RunConfig
from talker_rl.planning import cost, memory
from talker_rl.planning.cost import Lengths
from talker_rl.planning.hardware import Hardware, Work
from talker_rl.planning.rates import Finished, Rates
from talker_rl.planning.sizes import per_round, spread_over
from talker_rl.speech.shapes import Geometry
from talker_rl.train.config import CommonConfig


@dataclass(frozen=True)
class Job:
    """What a plan is made of."""

    config: RunConfig
    geometry: Geometry
    machine: Hardware
    sizes: dict[str, int]
    """Prompts of each set."""
    lengths: Lengths
    pairs_per_prompt: float
    devices: int
    """GPUs, or cores, one per worker."""

    @cached_property
    def peaks(self) -> dict[str, float]:
        """Peak memory by stage; recognizers are looked for on this machine."""
        found = memory.stage_peaks(self.geometry, self.config, self.lengths, self.machine.is_cpu)
        return {stage: peak for stage, (peak, _) in found.items()}


@dataclass(frozen=True)
class Part:
    """What one line of the forecast counts."""

    kind: str
    label: str
    works: list[Work] = field(repr=False)
    parallel: int
    """Devices that work on it at once."""
    memory: float
    """Peak bytes of a device (of the machine, on a CPU)."""
    disk: float
    """Bytes that stay."""
    parts: int = 1
    """Stages of the run's folder that this line stands for."""


@dataclass(frozen=True)
class Line:
    """A stage with its time."""

    stage: Part
    device_seconds: float
    rate: str
    """``measured``, ``as <stage>`` (measured on a stage that does the same work), or ``assumed``."""

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.device_seconds / self.stage.parallel


ALIKE = {"choice": ("evaluation", "scores"), "evaluation": ("choice", "scores")}
"""Whose measured rate serves a stage that has none of its own."""


Count = Callable[[Job], list[Part]]
"""All stages of a run in order, as they declare their work (:func:`talker_rl.stages.plan.parts`)."""


def forecast(job: Job, count: Count, rates: Rates | None = None) -> list[Line]:
    """Every stage of the run with its time."""
    factors = rates.factors if rates else {}
    lines = []
    for stage in count(job):
        known = next((kind for kind in (stage.kind, *ALIKE.get(stage.kind, ())) if kind in factors), None)
        rate = "assumed" if known is None else "measured" if known == stage.kind else f"as {known}"
        lines.append(Line(stage, job.machine.seconds(stage.works) * factors.get(known or "", 1.0), rate))
    return lines


def rates_of(run: Finished, count: Count, geometry: Geometry, machine: Hardware, source: str) -> Rates:
    """What a finished run says about its machine: by kind of stage, measured device-seconds over counted ones."""
    job = Job(run.config, geometry, machine, run.sizes, run.lengths, run.pairs_per_prompt,
              run.config.workers if machine.is_cpu else 1)
    counted: dict[str, float] = {}
    parts: dict[str, int] = {}
    busy: dict[str, int] = {}
    for stage in count(job):
        counted[stage.kind] = counted.get(stage.kind, 0.0) + machine.seconds(stage.works)
        parts[stage.kind] = parts.get(stage.kind, 0) + stage.parts
        in_turn = stage.parts == 1 or spread_over(run.config) > 0
        busy[stage.kind] = stage.parallel if stage.kind != "training" or in_turn else 1
    factors = {kind: sum(s) / len(s) * busy[kind] / (counted[kind] / parts[kind]) for kind, s in run.seconds.items()}
    return Rates(source, machine.name, geometry.name, factors, run.lengths, run.pairs_per_prompt)


def records(job: Job, cfg: CommonConfig) -> float:
    """Pairs or completions that a variant is trained on, at most; of a file, one per prompt."""
    each = {None: job.pairs_per_prompt, "best_of_n": job.config.completions.max_per_prompt, "file": 1}
    if cfg.online is not None:
        return cfg.online.decodes
    return per_round(job.config, job.sizes) * each[cfg.data]


def spoken(job: Job, prompts: float, each: int) -> list[Work]:
    """Sampled and decoded."""
    geo, at, config = job.geometry, job.lengths, job.config
    works = cost.rollouts(geo, prompts, each, at, rows_at_a_time(job, each), config.model.dtype)
    return works + cost.decode(geo, prompts * each, at, config.token2wav)


def rows_at_a_time(job: Job, each: int) -> int:
    """Candidates that are sampled side by side, of ``each`` a prompt."""
    return min(job.config.rollouts.batch_size, job.config.rollouts.shard_size * each)


def heard(job: Job, which: str, utterances: float) -> list[Work]:
    """Recognized by ``recognizer`` or ``evaluator``."""
    asr = getattr(job.config.reward, which)
    routes = list(asr.by_lang.values()) or [asr]  # by language: as if each heard an equal share
    return [work for route in routes
            for work in cost.recognition(route.type, route.path, utterances / len(routes), job.lengths)]

