"""From a configuration to a callable loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from talker_rl.base.errors import ConfigError
from talker_rl.losses.config import LossConfig, parse_loss
from talker_rl.losses.types import LossOutput, PairBatch, SampleBatch


class Loss:
    """A loss ready to call: ``loss(batch) -> LossOutput``; of a policy gradient the batch is a ``SampleBatch``.

    Attributes:
        config: the parsed configuration.
        needs_reference: whether batches must carry reference log-probabilities.
    """

    def __init__(self, config: LossConfig, function: Callable[[Any], LossOutput]) -> None:
        self.config = config
        self._function = function
        self.needs_reference: bool = getattr(function, "needs_reference", config.needs_reference)

    def __call__(self, batch: PairBatch | SampleBatch) -> LossOutput:
        if self.needs_reference and isinstance(batch, PairBatch) and batch.ref_chosen_logps is None:
            raise ConfigError(
                f"Loss `{self.config.type}` compares the policy with a reference, and the batch has no reference "
                "log-probabilities.",
                where=f"loss.type={self.config.type}",
                fix="compute reference log-probs, or take a loss without one (simpo, sft)",
            )
        return self._function(batch)

    def __repr__(self) -> str:
        return f"Loss({self.config.model_dump()})"


def build_loss(config: Mapping[str, Any] | LossConfig, where: str = "loss") -> Loss:
    """Build a loss from its dictionary.

    Args:
        config: a dictionary such as ``{"type": "dpo", "beta": 0.1}``, or a parsed configuration.
        where: place of the dictionary in the whole configuration, for messages.

    Raises:
        ConfigError: unknown type or key, value out of range, or a custom function that cannot be imported.

    >>> build_loss({"type": "ld_dpo", "alpha": 0.4})(batch).loss.backward()
    """
    parsed = parse_loss(config, where)
    module, _, name = parsed.implementation.partition(":")
    target: Any = getattr(import_module(module), name)
    # Most losses are functions of (batch, config); those with parts to prepare once are classes.
    is_class = inspect.isclass(target)
    return Loss(parsed, target(parsed) if is_class else partial(target, config=parsed))
