"""A loss of one's own, named by its import path."""

from __future__ import annotations

import difflib
import inspect
from importlib import import_module

from talker_rl.base.errors import ConfigError
from talker_rl.losses.config import CustomLossConfig
from talker_rl.losses.types import LossOutput, PairBatch


class CustomLoss:
    """Calls ``function(batch, **kwargs)`` and checks what comes back."""

    def __init__(self, config: CustomLossConfig) -> None:
        self.config = config
        where = f"loss.import_path={config.import_path}"
        module_name, _, attribute = config.import_path.partition(":")
        try:
            module = import_module(module_name)
        except ModuleNotFoundError as error:
            # A module that the user's own file misses is named as such, not taken for the user's file.
            raise ConfigError(
                f"Module `{module_name}` cannot be imported: {error}.", where=where, fix="put it on PYTHONPATH"
            ) from error
        function = getattr(module, attribute, None)
        if not callable(function):
            near = difflib.get_close_matches(attribute, [n for n in dir(module) if callable(getattr(module, n))], n=1)
            fix = f"did you mean `{module_name}:{near[0]}`?" if near else f"define `{attribute}` in {module_name}"
            raise ConfigError(f"`{module_name}` has no function `{attribute}`.", where=where, fix=fix)
        try:
            inspect.signature(function).bind(None, **config.kwargs)
        except TypeError as error:
            raise ConfigError(
                f"`{config.import_path}` does not take these kwargs: {error}.",
                where="loss.kwargs",
                fix=f"it is called as {attribute}(batch, **kwargs), and is {attribute}{inspect.signature(function)}",
            ) from None
        self.function = function
        self.needs_reference: bool = getattr(function, "needs_reference", True)

    def __call__(self, batch: PairBatch) -> LossOutput:
        out = self.function(batch, **self.config.kwargs)
        if not isinstance(out, LossOutput):
            problem = f"returned {type(out).__name__}"
        elif out.loss.ndim != 0 or out.per_pair.shape != (len(batch),) or out.margin.shape != (len(batch),):
            shapes = tuple(out.loss.shape), tuple(out.per_pair.shape), tuple(out.margin.shape)
            problem = f"returned loss, per_pair, margin of shapes {shapes}, not (), ({len(batch)},), ({len(batch)},)"
        else:
            return out
        raise ConfigError(
            f"Custom loss `{self.config.import_path}` {problem}.",
            where="loss.import_path",
            fix="return talker_rl.losses.LossOutput(loss=per_pair.mean(), per_pair=..., margin=..., metrics={})",
        )
