"""The flow from noise to mel: time points, Runge-Kutta rules, and the integration of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from talker_rl.speech.config import Token2WavConfig
from talker_rl.speech.qwen2_5_omni.dit import CPU_VALUES, BlockDiT, Blocks


@dataclass(frozen=True)
class Rule:
    """A Butcher tableau: evaluation j is at time t + h nodes[j], from x + h sum(inner[j] k); x gains h sum(weights k).

    The k are the velocities that the step's evaluations gave so far.
    """

    nodes: tuple[float, ...]
    inner: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


RULES = {
    "rk4": Rule(  # Kutta's 3/8 rule, the one upstream uses
        (0, 1 / 3, 2 / 3, 1), ((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)
    ),
    "midpoint": Rule((0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    "euler": Rule((0,), ((),), (1,)),
}


@dataclass(frozen=True)
class Schedule:
    """Every evaluation of a decode, in order."""

    rule: Rule
    widths: tuple[float, ...]
    """h of each step."""
    times: Tensor
    """(evaluations,): step by step, the rule's nodes within a step."""

    @classmethod
    def of(cls, cfg: Token2WavConfig) -> Schedule:
        """Upstream's time points, with its sway."""
        rule = RULES[cfg.solver or "rk4"]
        points = torch.linspace(0, 1, cfg.num_steps)
        if cfg.sway_coefficient is not None:
            points = points + cfg.sway_coefficient * (torch.cos(torch.pi / 2 * points) - 1 + points)
        widths = points.diff()
        times = points[:-1, None] + widths[:, None] * torch.tensor(rule.nodes, dtype=torch.float32)
        return cls(rule, tuple(widths.tolist()), times.flatten())

    def point(self, at: int, x: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """Where evaluation ``at`` looks, from the step's start x and the step's slopes so far."""
        step, stage = divmod(at, len(self.rule.nodes))
        return _moved(x, self.widths[step], self.rule.inner[stage], slopes)

    def step(self, at: int, x: Tensor, slopes: Sequence[Tensor]) -> Tensor | None:
        """The state after the step that evaluation ``at`` completes; None where it does not."""
        step, stage = divmod(at, len(self.rule.nodes))
        return _moved(x, self.widths[step], self.rule.weights, slopes) if stage + 1 == len(self.rule.nodes) else None


def _moved(x: Tensor, width: float, factors: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    for factor, slope in zip(factors, slopes, strict=True):
        if factor:
            x = torch.add(x, slope, alpha=width * factor)
    return x


@torch.no_grad()
def network(dit: Any, cfg: Token2WavConfig) -> tuple[BlockDiT, Schedule]:
    """The DiT at the precision, guidance and times of these settings."""
    schedule = Schedule.of(cfg)
    return BlockDiT(dit, schedule.times, cfg.guidance_scale, getattr(torch, cfg.dtype or "float32")), schedule


@torch.no_grad()
def sample_mels(
    net: BlockDiT,
    schedule: Schedule,
    codes: Sequence[Sequence[int]],
    speakers: Sequence[dict[str, Any]],
    noise: Sequence[Tensor],
) -> list[Tensor]:
    """Integrate the flow from the noise: one natural-log amplitude mel (frames, mel_dim) per utterance.

    Args:
        net, schedule: of `network`.
        codes, speakers: of each utterance.
        noise: (frames, mel_dim) of each.
    """
    blocks = Blocks([len(n) for n in noise], net.dit.block_size)
    voices = net.voices(speakers)
    condition = blocks.pack([net.condition(c, v) for c, v in zip(codes, voices, strict=True)])
    a_block = net.branches * blocks.size * condition.shape[-1]
    size = max(1, CPU_VALUES // a_block) if net.device.type == "cpu" else blocks.count
    groups = [
        net.group(blocks, start, start + size, condition[start : start + size])
        for start in range(0, blocks.count, size)
    ]
    state = blocks.pack([n.to(net.device) for n in noise])
    return blocks.unpack(integrate(schedule, lambda x, at: net.velocity(x, at, groups), state))


def integrate(schedule: Schedule, velocity: Callable[[Tensor, int], Tensor], state: Tensor) -> Tensor:
    """The state at the last time point; ``velocity`` takes a state and the number of its time."""
    slopes: list[Tensor] = []
    for at in range(len(schedule.times)):
        slopes.append(velocity(schedule.point(at, state, slopes), at))
        moved = schedule.step(at, state, slopes)
        if moved is not None:
            state, slopes = moved, []
    return state
