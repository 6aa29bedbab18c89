"""``talker-rl plan``: the forecast as a table or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talker_rl.base.errors import ConfigError
from talker_rl.base.places import SHIPPED_MODELS
from talker_rl.config import RunConfig
from talker_rl.planning.cost import Lengths
from talker_rl.planning.forecast import Count, Job, Line, forecast, rates_of
from talker_rl.planning.hardware import hardware
from talker_rl.planning.rates import Rates, dump_rates, load_rates, read_run
from talker_rl.planning.sizes import set_sizes, spread_over
from talker_rl.speech.registry import read_geometry
from talker_rl.speech.shapes import Geometry

ASSUMED_SECONDS = 5.0
"""Of speech per utterance, where neither an option nor a measured run says more."""


def verb(args: argparse.Namespace, config: RunConfig, count: Count, kinds: Mapping[str, str]) -> str:
    """The forecast as text.

    Args:
        count: what the stages of a run count.
        kinds: folder of each -> what it is called here.

    Raises:
        ConfigError, CheckpointError, DataError: names what does not fit.
    """
    for option in ("prompts", "candidates", "seconds", "gpus"):
        value = getattr(args, option)
        if value is not None and value <= 0:
            raise ConfigError(f"--{option} is {value:g}", where=f"--{option}", fix="give a positive number")
    if args.candidates:
        rollouts = config.rollouts.model_copy(update={"num_candidates": args.candidates})
        config = config.model_copy(update={"rollouts": rollouts})
    geometry = read_geometry(args.geometry or config.model.path)
    rates = _rates(args, geometry, count, kinds)
    usual = rates.hardware if rates else "cpu" if geometry.name in SHIPPED_MODELS else "h200"
    machine = hardware(args.hardware or usual, args.tflops, args.bandwidth)
    if rates and (rates.hardware != machine.name or args.tflops or args.bandwidth):
        raise ConfigError(f"These rates were measured on {rates.hardware}", where="--rates",
                          fix="leave out --hardware, --tflops and --bandwidth, or --rates")
    lengths = rates.lengths if rates and not args.seconds else Lengths.of_seconds(
        args.seconds or ASSUMED_SECONDS, rates.lengths if rates else None, geometry.codec.rate)
    job = Job(
        config, geometry, machine, set_sizes(config, {"train": args.prompts} if args.prompts else None), lengths,
        rates.pairs_per_prompt if rates else config.pairs.max_pairs_per_prompt,
        config.workers if machine.is_cpu else args.gpus,
    )  # fmt: skip
    lines = forecast(job, count, rates)
    return json.dumps(_data(job, lines, rates), indent=1) if args.json else _text(job, lines, rates)


def _rates(args: argparse.Namespace, geometry: Geometry, count: Count, kinds: Mapping[str, str]) -> Rates | None:
    if not args.rates:
        return None
    path = Path(args.rates)
    if path.is_file():
        return load_rates(path)
    found = read_run(path, kinds)
    machine = hardware("cpu" if found.device == "cpu" else args.hardware or "h200")
    own = found.config.model.path
    return rates_of(found, count, geometry if own == geometry.name else read_geometry(own), machine, str(path))


def _data(job: Job, lines: list[Line], rates: Rates | None) -> dict[str, Any]:
    return {
        "geometry": job.geometry.name,
        "parameters": job.geometry.parameters,
        "hardware": job.machine.name,
        "devices": job.devices,
        "lengths": {**vars(job.lengths), "seconds": job.lengths.seconds},
        "stages": [
            {"stage": line.stage.kind, "what": line.stage.label, "seconds": line.seconds,
             "device_hours": line.device_seconds / 3600, "flops": sum(w.flops for w in line.stage.works),
             "memory_bytes": line.stage.memory, "disk_bytes": line.stage.disk,
             "bound": job.machine.bound(line.stage.works), "rate": line.rate}
            for line in lines
        ],
        "rates": dump_rates(rates) if rates else None,
    }  # fmt: skip


def _text(job: Job, lines: list[Line], rates: Rates | None) -> str:
    geo, at, machine = job.geometry, job.lengths, job.machine
    unit = "core" if machine.is_cpu else "GPU"
    counts = ", ".join(f"{part} {n / 1e6:.1f} M" for part, n in geo.parameters.items())
    rows = [("stage", "", "time", f"{unit}-hours", "memory", "disk", "TFLOP", "bound", "rate")]
    for line in lines:
        s = line.stage
        rows.append((s.kind, s.label, duration(line.seconds), hours(line.device_seconds), size(s.memory), size(s.disk),
                     f"{sum(w.flops for w in s.works) / 1e12:.3g}", machine.bound(s.works), line.rate))
    rows.append(("in all", "", duration(sum(x.seconds for x in lines)), hours(sum(x.device_seconds for x in lines)),
                 size(max(x.stage.memory for x in lines)), size(sum(x.stage.disk for x in lines)), "", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(w) if i < 2 or i >= 7 else cell.rjust(w)
                       for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    notes = [f"lengths: {at.codes:.0f} ids ({at.seconds:.1f} s) per utterance, prefix {at.prefix:.0f} positions, reply "
             f"{at.reply:.0f}, {job.pairs_per_prompt:.2f} pairs per prompt"
             + ("" if rates else ": assumed (--seconds, or --rates of a run)")]
    if rates:
        notes.append(f"measured: {rates.source} ({rates.geometry}, {rates.hardware})"
                     + ("" if rates.geometry == geo.name else "; carried over by counted FLOPs to another geometry"))
    if any(line.rate == "assumed" for line in lines):
        notes.append(f"assumed: {machine.assumption()}")
    spread = spread_over(job.config)
    if not machine.is_cpu and job.devices > 1:
        notes.append(f"{job.devices} GPUs: a run uses those that devices names, with as many workers; the times assume "
                     "that its prompts" + ("" if spread else ", then its variants,") + " are divided among so many")
    if spread > 1:
        sent = sum(w.sent for line in lines if line.stage.kind == "training" for w in line.stage.works)
        machines = max(cfg.engine.nodes for cfg in job.config.variants.values())
        rate = (machine.network if machines > 1 else machine.link) * machine.bandwidth_share
        notes.append(f"a training is spread over {spread}" + (f" on {machines} machines" if machines > 1 else "")
                     + f": its arithmetic is divided by {spread}; beside it each sends {sent / spread / 1e9:.3g} GB to "
                     f"the others, at {rate / 1e9:.3g} GB/s and hidden behind nothing")
    peak = max(x.stage.memory for x in lines)
    if machine.memory and peak > machine.memory:
        notes.append(f"too much: {size(peak)} of {size(machine.memory)}; lower rollouts.batch_size, workers or "
                     "per_device_train_batch_size, or set gradient_checkpointing")
    devices = max(job.devices, spread)
    head = (f"plan of run {job.config.name}: {geo.name} ({counts} parameters), {devices} {unit}" + "s" * (devices != 1))
    return "\n".join([head, *table, *notes])


def duration(seconds: float) -> str:
    """12 s, 3.4 min or 5.6 h."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def hours(seconds: float) -> str:
    """Hours of devices."""
    return f"{seconds / 3600:.2f}"


def size(count: float) -> str:
    """Bytes in binary units."""
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} GiB"
