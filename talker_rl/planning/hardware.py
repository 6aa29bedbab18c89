"""Machines as a roofline: peak rates from the makers' sheets, and the share of them that is assumed to be reached."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from talker_rl.base.errors import ConfigError


@dataclass(frozen=True)
class Work:
    """Something to compute on one device, counted."""

    flops: float
    dtype: str
    """float32, tf32, bfloat16 or float16."""
    moved: float = 0.0
    """Bytes of weights and caches read."""
    launches: float = 0.0
    """Layers that run one after the other: each costs host time, however little it computes."""
    sent: float = 0.0
    """Bytes to the other processes of a training."""
    far: bool = False
    """Whether some of those are on other machines."""


@dataclass(frozen=True)
class Hardware:
    """One device: a GPU, or one core of a CPU."""

    name: str
    flops: dict[str, float]
    """Peak FLOP/s (dense) by type."""
    bandwidth: float
    """Peak bytes per second."""
    memory: float | None
    """Bytes; None: the machine's."""
    flops_share: float
    """Of the peak, assumed to be reached."""
    bandwidth_share: float
    """Likewise."""
    layer_seconds: float
    """Assumed host time to launch one transformer layer."""
    link: float = math.inf
    """Peak bytes per second that a device sends to others of its machine; as if it cost nothing where it is not said.
    """
    network: float = math.inf
    """Likewise to other machines."""

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"

    def limits(self, work: Work) -> dict[str, float]:
        """Seconds that each limit allows at the least."""
        return {"arithmetic": work.flops / (self.flops[work.dtype] * self.flops_share),
                "memory": work.moved / (self.bandwidth * self.bandwidth_share),
                "launches": work.launches * self.layer_seconds,
                "exchange": work.sent / ((self.network if work.far else self.link) * self.bandwidth_share)}

    def seconds(self, works: Iterable[Work]) -> float:
        """Each work takes as long as its tightest limit."""
        return sum(max(self.limits(w).values()) for w in works)

    def bound(self, works: Iterable[Work]) -> str:
        """The limit that sets most of the time."""
        spent: dict[str, float] = {}
        for work in works:
            limit, seconds = max(self.limits(work).items(), key=lambda item: item[1])
            spent[limit] = spent.get(limit, 0.0) + seconds
        return max(spent, key=lambda limit: spent[limit])

    def assumption(self) -> str:
        """What is assumed, in words."""
        rates = ", ".join(f"{name} {rate * self.flops_share / 1e12:.3g}" for name, rate in self.flops.items())
        return (f"{'a core' if self.is_cpu else self.name} is assumed to sustain {rates} TFLOP/s "
                f"({self.flops_share:.0%} of the peak), {self.bandwidth * self.bandwidth_share / 1e9:.3g} GB/s "
                f"({self.bandwidth_share:.0%}), {self.layer_seconds * 1e3:.2g} ms to launch a layer")


def _gpu(name: str, float32: float, tf32: float, half: float, bandwidth: float, memory: float, link: float,
         network: float) -> Hardware:
    rates = {"float32": float32, "tf32": tf32, "bfloat16": half, "float16": half}
    return Hardware(name, rates, bandwidth, memory, flops_share=0.4, bandwidth_share=0.6, layer_seconds=4e-4,
                    link=link, network=network)


HARDWARE = {
    "h200": _gpu("h200", 67e12, 495e12, 989e12, 4.8e12, 141e9, 450e9, 50e9),
    "a100": _gpu("a100", 19.5e12, 156e12, 312e12, 2.04e12, 80e9, 300e9, 25e9),
    # 3 GHz x 2 fused multiply-adds of 8 floats
    "cpu": Hardware("cpu", dict.fromkeys(("float32", "tf32", "bfloat16", "float16"), 96e9), 10e9, None,
                    flops_share=0.3, bandwidth_share=0.6, layer_seconds=3e-4, link=10e9, network=1.25e9),
}
"""Peaks of NVIDIA's data sheets (SXM, without sparsity; NVLink in one direction; a network of 400 and 200 Gbit/s a
GPU); one AVX2 core, memory shared with the others, 10 Gbit/s."""


def hardware(name: str, tflops: float | None = None, bandwidth: float | None = None) -> Hardware:
    """A known machine; with the rates that yours sustains in place of assumed ones where they are given.

    Args:
        tflops: sustained TFLOP/s, for every type.
        bandwidth: sustained GB/s.

    Raises:
        ConfigError: an unknown name, or a rate that is not positive.
    """
    if name not in HARDWARE:
        raise ConfigError(f"There is no hardware {name!r}", where="--hardware", fix=f"use {', '.join(HARDWARE)}")
    for option, value in (("--tflops", tflops), ("--bandwidth", bandwidth)):
        if value is not None and value <= 0:
            raise ConfigError(f"{option} is {value:g}", where=option, fix="give a positive rate")
    found = HARDWARE[name]
    if tflops is not None:
        found = replace(found, flops=dict.fromkeys(found.flops, tflops * 1e12), flops_share=1.0)
    if bandwidth is not None:
        found = replace(found, bandwidth=bandwidth * 1e9, bandwidth_share=1.0)
    return found
