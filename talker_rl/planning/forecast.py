"""The forecast of a run: every stage's counted work, its time on a machine, its peak memory and what it leaves on disk.

Not counted: loading models (seconds of a worker, minutes from a slow disk), the pairs and the report (seconds), and in
the evaluation speaker similarity and F0. Counts are upper bounds where the configuration leaves them open: every
prompt gives its most pairs, no training stops early.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from talker_rl.base.figures import count
from talker_rl.config import RunConfig
from talker_rl.planning import cost, memory
from talker_rl.planning.cost import Lengths
from talker_rl.planning.hardware import Hardware, Work
from talker_rl.planning.rates import Finished, Rates
from talker_rl.speech.shapes import Geometry
from talker_rl.train.config import TrainConfig


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
class Stage:
    """One line of the forecast."""

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

    stage: Stage
    device_seconds: float
    rate: str
    """``measured``, ``as <stage>`` (measured on a stage that does the same work), or ``assumed``."""

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.device_seconds / self.stage.parallel


ALIKE = {"choice": ("evaluation", "scores"), "evaluation": ("choice", "scores")}
"""Whose measured rate serves a stage that has none of its own."""


def forecast(job: Job, rates: Rates | None = None) -> list[Line]:
    """Every stage of the run with its time."""
    factors = rates.factors if rates else {}
    lines = []
    for stage in stages(job):
        known = next((kind for kind in (stage.kind, *ALIKE.get(stage.kind, ())) if kind in factors), None)
        rate = "assumed" if known is None else "measured" if known == stage.kind else f"as {known}"
        lines.append(Line(stage, job.machine.seconds(stage.works) * factors.get(known or "", 1.0), rate))
    return lines


def rates_of(run: Finished, geometry: Geometry, machine: Hardware, source: str) -> Rates:
    """What a finished run says about its machine: by kind of stage, measured device-seconds over counted ones."""
    job = Job(run.config, geometry, machine, run.sizes, run.lengths, run.pairs_per_prompt,
              run.config.workers if machine.is_cpu else 1)
    counted: dict[str, float] = {}
    parts: dict[str, int] = {}
    busy: dict[str, int] = {}
    for stage in stages(job):
        counted[stage.kind] = counted.get(stage.kind, 0.0) + machine.seconds(stage.works)
        parts[stage.kind] = parts.get(stage.kind, 0) + stage.parts
        busy[stage.kind] = stage.parallel if stage.kind != "training" or stage.parts == 1 else 1
    factors = {kind: sum(s) / len(s) * busy[kind] / (counted[kind] / parts[kind]) for kind, s in run.seconds.items()}
    return Rates(source, machine.name, geometry.name, factors, run.lengths, run.pairs_per_prompt)


def stages(job: Job) -> list[Stage]:
    """All stages in order."""
    return list(_stages(job))


def _stages(job: Job) -> Iterator[Stage]:
    config, geo, at = job.config, job.geometry, job.lengths
    sizes, cfg, peaks = job.sizes, job.config.rollouts, job.peaks
    everything = sum(sizes.values())
    generate = config.conditioning.mode == "generate"
    yield Stage(
        "conditioning", f"{count(everything, 'prompt')}",
        cost.conditioning(geo, everything, at, config.conditioning.batch_size, generate, config.model.dtype),
        job.devices if job.machine.is_cpu else 1, peaks["conditioning"],
        memory.cache_on_disk(geo, config, everything, at),
    )  # fmt: skip
    prompts = min(cfg.prompts_per_round or sizes["train"], sizes["train"])
    variants = len(config.train)
    given = all(cfg.data == "file" for cfg in config.train.values())
    for index in range(1, config.iterations + 1):
        policies = 1 if index == 1 else variants
        if not given:  # else nothing is sampled
            yield from _samples(job, index, prompts, policies)
        yield _training(job, index, prompts, policies)
        yield _choice(job, index, prompts)
    judged = 1 + len(config.eval.talkers) + variants
    spoken = judged * sizes["eval"] * config.eval.seeds
    yield Stage(
        "evaluation", f"{count(judged, 'Talker')}: {count(spoken, 'utterance')}",
        _spoken(job, judged * sizes["eval"], config.eval.seeds)
        + _heard(job, "recognizer", spoken) + _heard(job, "evaluator", spoken),
        job.devices, peaks["evaluation"],
        spoken * (memory.EVAL_BYTES + at.codes * memory.ROLLOUT_BYTES_A_CODE)
        + judged * memory.audio_on_disk(config, sizes["eval"], config.eval.seeds, at), judged,
    )  # fmt: skip


def _samples(job: Job, index: int, prompts: int, policies: int) -> Iterator[Stage]:
    """Rollouts and scores of a round."""
    config, geo, at, cfg = job.config, job.geometry, job.lengths, job.config.rollouts
    sampled = policies * prompts * cfg.num_candidates
    yield Stage(
        "rollouts", f"round {index}: {count(sampled, 'candidate')}",
        cost.rollouts(geo, policies * prompts, cfg.num_candidates, at, _rows(job, cfg.num_candidates),
                      config.model.dtype),
        job.devices, job.peaks["rollouts"], sampled * at.codes * memory.ROLLOUT_BYTES_A_CODE, policies,
    )  # fmt: skip
    yield Stage(
        "scores", f"round {index}: {count(sampled, 'utterance')}",
        cost.decode(geo, sampled, at, config.token2wav) + _heard(job, "recognizer", sampled), job.devices,
        job.peaks["scores"],
        sampled * memory.SCORE_BYTES + memory.audio_on_disk(config, policies * prompts, cfg.num_candidates, at),
        policies,
    )  # fmt: skip


def _records(job: Job, cfg: TrainConfig, prompts: float) -> float:
    """Pairs or completions that a variant is trained on, at most; of a file, one per prompt."""
    each = {None: job.pairs_per_prompt, "best_of_n": job.config.completions.max_per_prompt, "file": 1}
    return prompts * each[cfg.data]


def _training(job: Job, index: int, prompts: float, policies: int) -> Stage:
    """All variants of a round; the first pays for the reference log-probs that they share."""
    config, geo, at = job.config, job.geometry, job.lengths
    variants = list(config.train.values())
    works: list[Work] = []
    disk = 0.0
    for number, cfg in enumerate(variants):
        pairs, sides = _records(job, cfg, prompts), cfg.sides
        dtype = "bfloat16" if cfg.args.get("bf16") else config.model.dtype
        if number < policies:
            disk += pairs * (memory.PAIR_BYTES + sides * at.codes * 4)
            works += cost.reference(geo, pairs, at, cfg.reference_batch_size, dtype, sides)
        works += cost.training(
            geo, cfg.steps(pairs) * cfg.pairs_per_step, at, cfg.args.get("per_device_train_batch_size", 8), dtype,
            cfg.lora, bool(cfg.args.get("gradient_checkpointing")), sides,
        )  # fmt: skip
        disk += memory.checkpoints_on_disk(geo, config, cfg, cfg.checkpoints(pairs))
    one = len(variants) == 1  # alone it has all cores
    parallel = (job.devices if job.machine.is_cpu else 1) if one else min(job.devices, len(variants))
    total = sum(cfg.steps(_records(job, cfg, prompts)) for cfg in variants)
    label = f"round {index}: {count(total, 'step')}, {count(len(variants), 'variant')}"
    return Stage("training", label, works, parallel, job.peaks["training"], disk, len(variants))


def _choice(job: Job, index: int, prompts: float) -> Stage:
    """Saved checkpoints, and in round 1 the start, on dev."""
    config = job.config
    every = config.dev.checkpoints == "all"
    tried = sum((cfg.checkpoints(_records(job, cfg, prompts)) if every else 1) + (index == 1)
                for cfg in config.train.values())
    texts = tried * job.sizes["dev"]
    spoken = texts * config.dev.num_candidates
    works = _spoken(job, texts, config.dev.num_candidates) + _heard(job, "recognizer", spoken)
    return Stage("choice", f"round {index}: {count(tried, 'policy', 'policies')}, "
                           f"{count(spoken, 'utterance')}", works, job.devices,
                 job.peaks["choice"], spoken * memory.SCORE_BYTES, len(config.train))


def _spoken(job: Job, prompts: float, each: int) -> list[Work]:
    """Sampled and decoded."""
    geo, at, config = job.geometry, job.lengths, job.config
    works = cost.rollouts(geo, prompts, each, at, _rows(job, each), config.model.dtype)
    return works + cost.decode(geo, prompts * each, at, config.token2wav)


def _rows(job: Job, each: int) -> int:
    return min(job.config.rollouts.batch_size, job.config.rollouts.shard_size * each)


def _heard(job: Job, which: str, utterances: float) -> list[Work]:
    asr = getattr(job.config.reward, which)
    routes = list(asr.by_lang.values()) or [asr]  # by language: as if each heard an equal share
    return [work for route in routes
            for work in cost.recognition(route.type, route.path, utterances / len(routes), job.lengths)]

