"""The adapter that a worker's model wears from one shard to the next.

To wrap a Talker in an adapter takes peft many times as long as to copy its tensors, and a worker mostly gets the same
adapter again, or the next version of it: it stays on, and another's tensors are put into the place of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from talker_rl.base.file_hash import cached_hash

if TYPE_CHECKING:
    from talker_rl.speech.protocol import Generator, Policy


@dataclass
class _Worn:
    settings: str
    weights: str
    """Hash of its file."""
    policy: Policy
    off: Callable[[], None]


_worn: WeakKeyDictionary[Any, _Worn] = WeakKeyDictionary()


@contextmanager
def policy_with(generator: Generator, weights: Path | None, reference: Path | None = None) -> Iterator[Policy]:
    """``generator.policy(weights, reference=reference)``, whose adapter may have been on and may stay so.

    Everything that asks this generator for a policy has to ask here. An adapter beside a reference, full weights and
    the base are as ever: alone, and gone at the end.
    """
    from talker_rl.speech.adapter_files import WEIGHTS, is_adapter

    if weights is None or reference is not None or not is_adapter(weights):
        take_off(generator)
        with generator.policy(weights, reference=reference) as policy:
            yield policy
        return
    settings, content = _settings(weights), cached_hash(weights / WEIGHTS) if (weights / WEIGHTS).is_file() else ""
    worn = _worn.get(generator)
    try:
        if worn is None or worn.settings != settings:
            take_off(generator)
            worn = _Worn(settings, content, *generator.wear(weights))
            _worn[generator] = worn
        elif worn.weights != content:
            worn.policy.exchange(weights)
            worn.weights = content
        yield worn.policy
    except BaseException:  # whatever state it is in, the next one begins at the base
        take_off(generator)
        raise


def take_off(generator: Generator) -> None:
    """Take the adapter off that a model wears, if it wears one."""
    if worn := _worn.pop(generator, None):
        worn.off()


def _settings(folder: Path) -> str:
    """What the wrapping depends on; not whose adapter it says it is."""
    from talker_rl.speech.adapter_check import adapter_settings

    return json.dumps(adapter_settings(folder) | {"base_model_name_or_path": None}, sort_keys=True)
