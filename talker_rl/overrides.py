"""``dotted.key=value`` over what was read, with the keys of an earlier version."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from talker_rl.base.errors import ConfigError
from talker_rl.config_files import merge, parse_value, without_preset
from talker_rl.older_keys import Moved, assignments, modern, settled, tell


def with_overrides(
    data: dict[str, Any], overrides: Sequence[str], where: str, moved: Moved | None = None
) -> dict[str, Any]:
    """The data with every ``dotted.key=value`` set; keys of an earlier version are told.

    Args:
        moved: those that were found before.
    """
    moved = {} if moved is None else moved
    data = copy.deepcopy(settled(modern(data, moved), moved))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"Not an override: {override!r}", fix="write dotted.key=value, e.g. pairs.margin=0.1")
        for path, part in assignments(data, key.strip().split("."), parse_value(value, override), moved):
            _set(data, path, part, override)
            _refuse_without_effect(data, path, override)
    tell(moved, where)
    return data


def _refuse_without_effect(data: dict[str, Any], path: list[str], override: str) -> None:
    """Raise where every variant has its own value of what is set for all."""
    own = path[1:] if path[0] == "train" else path[2:] if path[:2] == ["run", "train"] else []
    variants = data.get("variants")
    if own and isinstance(variants, dict) and variants and all(_holds(one, own) for one in variants.values()):
        raise ConfigError(f"{override!r} changes nothing: every variant has its own",
                          fix=f"write variants.{next(iter(variants))}.{'.'.join(own)}=...")


def _holds(data: Any, path: list[str]) -> bool:
    """Whether a value stands at a path."""
    return not path or (isinstance(data, dict) and path[0] in data and _holds(data[path[0]], path[1:]))


def _set(data: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    node = data
    for key in path[:-1]:
        child = node.setdefault(key, {})
        if child is None:
            child = node[key] = {}
        if isinstance(child, list) or not isinstance(child, dict):
            raise ConfigError(f"`{key}` in {override!r} has no keys of its own", fix="give the whole value in YAML")
        node = child
    if isinstance(value, dict) and isinstance(node.get(path[-1]), dict):
        value = merge(node[path[-1]], value, tuple(path))
    kept = without_preset(node, {path[-1]: value})
    node.clear()
    node.update({**kept, path[-1]: value})
