"""Which experts the Talker's routers chose: written down while it samples, and followed while it is trained.

A router takes the best k of its experts. In half precision the same position, computed in another batch, may take
others, and its log-prob is then off by tenths of a nat. Replaying the rollout's choice in training takes that part of
the difference away (Ma et al. 2025, "Stabilizing MoE Reinforcement Learning by Aligning Training and Inference
Routers", arXiv 2510.11370): weights of the chosen experts are still the router's of the moment, so that gradients
reach it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from talker_rl.base.errors import ConfigError, DataError

_GIVEN = "talker_rl_experts"
_MOVED = "talker_rl_moved"
MOST_EXPERTS = 256
"""A choice is written down in one byte."""


def routers(inner: Any) -> list[Any]:
    """The routers of a Talker, one a layer."""
    return [layer.mlp.gate for layer in inner.model.layers]


class Recorder:
    """What the routers chose in the last forward."""

    def __init__(self, layers: int) -> None:
        self._seen: list[torch.Tensor | None] = [None] * layers

    def hook(self, layer: int) -> Any:
        """For a router's forward."""
        def see(_gate: Any, _args: Any, out: tuple[torch.Tensor, ...]) -> None:
            self._seen[layer] = out[2]
        return see

    def taken(self) -> np.ndarray:
        """(rows, layers, k) uint8."""
        seen = [one for one in self._seen if one is not None]
        return torch.stack(seen, dim=1).to(torch.uint8).cpu().numpy()


@contextmanager
def recording(inner: Any) -> Iterator[Recorder]:
    """Write down what the routers choose.

    Raises:
        ConfigError: there are more experts than a byte can name.
    """
    gates = routers(inner)
    if (experts := gates[0].num_experts) > MOST_EXPERTS:
        raise ConfigError(f"experts are written down in one byte, and there are {experts}",
                          where="model.replay_experts", fix="leave it false")
    recorder = Recorder(len(gates))
    handles = [gate.register_forward_hook(recorder.hook(i)) for i, gate in enumerate(gates)]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def replay(inner: Any, chosen_LC: torch.Tensor | None) -> None:
    """Have the routers choose these experts from now on; None: their own.

    It holds until the next call and not until a forward ends, since gradient checkpointing computes a layer again in
    the backward pass.

    Args:
        chosen_LC: (positions, layers x k) of a packed row; a position with -1 chooses for itself.
    """
    gates = routers(inner)
    chosen_LYK = None if chosen_LC is None else chosen_LC.view(len(chosen_LC), len(gates), -1)
    for i, gate in enumerate(gates):
        if chosen_LYK is not None and not hasattr(gate, _GIVEN):
            gate.register_forward_hook(_follow)
        if chosen_LYK is not None or hasattr(gate, _GIVEN):
            setattr(gate, _GIVEN, None if chosen_LYK is None else chosen_LYK[:, i].long())


def rerouted(inner: Any) -> float | None:
    """Share of (position, layer) of the last forward in which a router would have chosen others than it was given; None
    where nothing was given."""
    moved = [value for gate in routers(inner) if (value := getattr(gate, _MOVED, None)) is not None]
    return float(torch.stack(moved).mean()) if moved else None


def _follow(gate: Any, _args: Any, out: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    given: torch.Tensor | None = getattr(gate, _GIVEN)
    if given is None:
        setattr(gate, _MOVED, None)
        return None
    logits, weights, own = out
    if len(given) != len(own):
        raise DataError(f"experts of {len(given)} positions were given for {len(own)}")
    told = given[:, :1] >= 0
    chosen = torch.where(told, given, own)
    kept = logits.softmax(dim=-1, dtype=torch.float).gather(-1, chosen)
    if gate.norm_topk_prob:
        kept = kept / kept.sum(dim=-1, keepdim=True)
    other = (chosen.sort(-1).values != own.sort(-1).values).any(-1) & told[:, 0]
    setattr(gate, _MOVED, other.sum() / told.sum().clamp(min=1))
    return logits, kept.to(weights.dtype), chosen
