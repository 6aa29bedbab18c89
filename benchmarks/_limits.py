"""How close a time comes to what the device allows: counted FLOPs and bytes against rates measured on it.

The ceilings are this device's own: the rate of a large copy (bytes read and written), and of large matrix products in
each precision. Counts are what the work needs at the least: weights once per forward, every layer's input and output
once, nothing twice.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from typing import Any

import torch

from talker_rl.planning import cost
from talker_rl.planning.cost import BYTES, Lengths
from talker_rl.planning.hardware import HARDWARE, Hardware, Work
from talker_rl.records.pair import Pair
from talker_rl.speech.config import LoraSettings, Token2WavConfig, branches
from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning
from talker_rl.speech.qwen2_5_omni.shapes import of_talker, of_token2wav
from talker_rl.speech.qwen2_5_omni.token2wav import products
from talker_rl.speech.shapes import Geometry

from ._measure import seconds_of
from .geometry import Models


@functools.cache
def measured(device: torch.device) -> Hardware:
    """The device, its measured rates as peaks."""
    on_gpu = device.type == "cuda"
    rates: dict[str, float] = {}
    for name, dtype in {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}.items():
        if name == "tf32" and not on_gpu:
            rates[name] = rates["float32"]
            continue
        size = 8192 if on_gpu else 1024
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        with products(Token2WavConfig(tf32=name == "tf32"), device):
            rates[name] = 2 * size**3 / _best(lambda a=a, b=b: a @ b)
    name = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    return Hardware(name, rates, _copy_rate(device), None, flops_share=1.0, bandwidth_share=1.0, layer_seconds=0.0)


def _copy_rate(device: torch.device) -> float:
    """Bytes per second, read and written."""
    source = torch.zeros(1 << (28 if device.type == "cuda" else 25), device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / _best(lambda: target.copy_(source))


def _best(call: Any) -> float:
    call()
    return min(seconds_of(call) for _ in range(5))


def ceilings(device: torch.device) -> str:
    """The measured rates, in words."""
    found = measured(device)
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in found.flops.items())
    return f"{found.name}: copies {found.bandwidth / 1e9:.0f} GB/s read and written, products {rates} TFLOP/s"


def share(works: Sequence[Work], seconds: float, device: torch.device) -> str:
    """What share of the limit a time reaches, which limit that is, and what was counted."""
    limit = measured(device)
    flops, moved = sum(w.flops for w in works), sum(w.moved for w in works)
    return (f"{limit.seconds(works) / seconds:.1%} of the limit, which is {limit.bound(works)} "
            f"({flops / 1e12:.3g} TFLOP, {moved / 1e9:.3g} GB)")


def utilization(works: Sequence[Work], seconds: float, device: torch.device) -> tuple[float, str]:
    """Model FLOP utilization: (share of the measured rate of products, the same in words with the data sheet's)."""
    limit = measured(device)
    mfu = sum(w.flops / limit.flops[w.dtype] for w in works) / seconds
    sheet = next((h for key, h in HARDWARE.items() if not h.is_cpu and key in limit.name.lower()), None)
    words = f"MFU {mfu:.1%} of the measured rate"
    if sheet:
        words += f", {sum(w.flops / sheet.flops[w.dtype] for w in works) / seconds:.1%} of the data sheet's"
    return mfu, words


def goal(words: str, met: bool, models: Models) -> str:
    """Whether a goal was met, where it counts: the real geometry on a GPU."""
    return f"goal {words} {'met' if met else 'not met'}" if models.judged else ""


def counted(**parts: Any) -> Geometry:
    """The geometry of a ``talker`` or a ``token2wav``; the other part's fields are None."""
    known = {"talker": of_talker, "token2wav": of_token2wav}
    found = dict.fromkeys(field.name for field in fields(Geometry) if field.default is MISSING)
    for name, module in parts.items():
        found |= known[name](module)
    return Geometry(**found)


def decoding(geo: Geometry, codes: Sequence[Sequence[int]], cfg: Token2WavConfig) -> list[Work]:
    """DiT and vocoder over these utterances."""
    count = len(codes)
    average = sum(len(c) for c in codes) / count
    dit, vocoder = cost.decode(geo, count, Lengths(average + 1, 0, 0), cfg)
    frames = count * average * geo.dit.frames_per_code
    forwards = cfg.passes / branches(cfg.guidance_scale) * math.ceil(count / cfg.batch_size)
    # queries, keys, values, the projection after them, and the two layers of the feed-forward
    values = cfg.passes * frames * geo.dit.layers * (8 * geo.dit.width + 2 * (geo.dit.width + geo.dit.inner))
    return [replace(dit, moved=(forwards * geo.dit.weights + values) * BYTES[cfg.dtype or "float32"]),
            replace(vocoder, moved=frames * geo.vocoder.moved * 4)]


def rollouts(
    geo: Geometry, conditionings: Sequence[Conditioning], candidates: int, codes: int, dtype: str
) -> list[Work]:
    """Candidates of so many codes, all rows at a time."""
    count = len(conditionings)
    at = Lengths(codes, sum(len(c.prefix) for c in conditionings) / count, 0)
    return cost.rollouts(geo, count, candidates, at, count * candidates, dtype)


def training(
    geo: Geometry, pairs: Sequence[Pair], prefixes: dict[str, int], epochs: int, batch: int, dtype: str,
    lora: LoraSettings,
) -> tuple[list[Work], list[Work]]:
    """(the reference's forward, the training): pairs with prefixes of so many positions by prompt id."""
    reference, steps, positions = 0.0, 0.0, 0.0
    for pair in pairs:
        at = Lengths((pair.chosen.steps + pair.rejected.steps) / 2, prefixes[pair.prompt_id], 0)
        positions += at.prefix + 2 * (at.codes - 1)
        reference += cost.reference(geo, 1, at, batch, dtype)[0].flops
        steps += cost.training(geo, 1, at, batch, dtype, lora, recompute=False)[0].flops
    weights = math.ceil(len(pairs) / batch) * geo.talker.weights
    forward = BYTES[dtype] * (weights + positions * sum(x.inputs + x.outputs for x in geo.talker.linears))
    return [Work(reference, dtype, forward)], [Work(epochs * steps, dtype, 2 * epochs * forward)]
