"""Preference losses: pure functions of per-token log-probabilities.

``build_loss({"type": "dpo", "beta": 0.1})`` returns a callable ``loss(batch: PairBatch) -> LossOutput``.
Definitions and defaults: :mod:`talker_rl.losses.config`. Names are resolved on first use, so that reading a
configuration (:func:`parse_loss`) does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from talker_rl.losses.build import Loss, build_loss
    from talker_rl.losses.config import LossConfig, loss_types, parse_loss, register
    from talker_rl.losses.types import LossOutput, PairBatch, SampleBatch, Share

_HOME = {
    "Loss": "build",
    "build_loss": "build",
    "LossConfig": "config",
    "loss_types": "config",
    "parse_loss": "config",
    "register": "config",
    "LossOutput": "types",
    "PairBatch": "types",
    "SampleBatch": "types",
    "Share": "types",
}

__all__ = [
    "Loss", "LossConfig", "LossOutput", "PairBatch", "SampleBatch", "Share", "build_loss", "loss_types", "parse_loss",
    "register",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"talker_rl.losses.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
