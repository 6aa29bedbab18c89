"""What an earlier version called otherwise: its files, ``key=value`` and manifests are read as what is written now.

    dev: {checkpoints: last}                   checkpoint: {tried: last}
    train: {dpo: {...}, ipo: {...}}            variants: {dpo: {...}, ipo: {...}}
    train: {select: best, patience: 3}         checkpoint: {select: best, early_stopping_patience: 3}
    train.default.loss.beta=0.2                train.loss.beta=0.2

All of it stands here. What was read so is noted (old -> new), for one line of advice.
"""

from __future__ import annotations

import sys
from typing import Any

from talker_rl.base.errors import ConfigError
from talker_rl.config_files import merge
from talker_rl.train.config import TrainConfig
from talker_rl.variants import ALONE, over

Moved = dict[str, str]
"""Key as it was -> as it is."""

_TRAINING = set(TrainConfig.model_fields)
_CHOICE = {"checkpoints": "tried"}
"""Of ``dev``, which is ``checkpoint``."""
_SELECTION = {"select": "select", "select_metric": "metric_for_best_model", "patience": "early_stopping_patience"}
"""Of a training."""
_SHOWN = 4


def modern(data: dict[str, Any], moved: Moved, at: str = "") -> dict[str, Any]:
    """Plain data of a run or a sweep, as one source gives it, with today's keys.

    Raises:
        ConfigError: ``train`` holds settings and variants by name.
    """
    data = dict(data)
    if isinstance(data.get("run"), dict) and not at:
        data["run"] = modern(data["run"], moved, "run.")
    if isinstance(data.get("dev"), dict):
        told = {_CHOICE.get(key, key): value for key, value in data.pop("dev").items()}
        moved[f"{at}dev"] = f"{at}checkpoint"
        moved |= {f"{at}dev.{old}": f"{at}checkpoint.{new}" for old, new in _CHOICE.items() if new in told}
        data["checkpoint"] = merge(told, data.get("checkpoint") or {})
    train, named = data.get("train"), {}
    if isinstance(train, dict) and (named := _named(train, at)):
        del data["train"]
        moved |= {f"{at}train.{name}": f"{at}variants.{name}" for name in named}
        data["variants"] = merge(named, data.get("variants") or {})
    elif isinstance(train, dict) and train.keys() & _SELECTION.keys():
        inner = _variant(train, moved, f"{at}train", f"{at}checkpoint")
        data["checkpoint"] = merge(inner.pop("checkpoint"), data.get("checkpoint") or {})
        data["train"] = inner
    if isinstance(data.get("variants"), dict):
        data["variants"] = {
            name: _variant(own, moved, f"{at}{'train' if name in named else 'variants'}.{name}",
                           f"{at}variants.{name}.checkpoint") for name, own in data["variants"].items()}
    return data


def settled(data: dict[str, Any], moved: Moved) -> dict[str, Any]:
    """All sources merged, where the only variant is called as if it had no name: its settings are ``train``."""
    if "run" in data or "arms" in data:  # a sweep
        return {**data, "run": settled(data["run"], moved)} if isinstance(data.get("run"), dict) else data
    variants = data.get("variants")
    if "train" in data or not isinstance(variants, dict) or list(variants) != [ALONE] or not isinstance(
            variants[ALONE], dict):
        return data
    for old, new in moved.items():
        moved[old] = new.replace(f"variants.{ALONE}.checkpoint", "checkpoint").replace(f"variants.{ALONE}", "train")
    train = dict(variants[ALONE])
    checkpoint = merge(data.get("checkpoint") or {}, train.pop("checkpoint", {}))
    return {key: value for key, value in data.items() if key != "variants"} | {"train": train} | (
        {"checkpoint": checkpoint} if checkpoint else {})


def recorded(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A manifest's configuration with today's keys, and its variants, each complete."""
    config = settled(modern(config, {}), {})
    return config, over(config, config.get("variants"))


def assignments(data: dict[str, Any], path: list[str], value: Any, moved: Moved) -> list[tuple[list[str], Any]]:
    """What ``dotted.key=value`` sets, over data that has today's keys."""
    at, node = (["run"], data.get("run")) if path[0] == "run" and len(path) > 1 else ([], data)
    own = path[len(at):]
    variants = (node.get("variants") if isinstance(node, dict) else None) or {}
    if own[0] in ("train", "dev") and len(own) == 1 and isinstance(value, dict):
        inner = modern({own[0]: value}, moved, "run." if at else "")
        if own[0] == "train" and list(inner.get("variants", ())) == [ALONE] and ALONE not in variants:
            inner = settled(inner, moved)
        return [([*at, key], part) for key, part in inner.items()]
    new = own
    if own[0] == "dev" and len(own) > 1:
        new = ["checkpoint", _CHOICE.get(own[1], own[1]), *own[2:]]
    elif own[0] == "train" and len(own) > 1 and own[1] not in _TRAINING and (
            own[2] in _TRAINING if len(own) > 2 else isinstance(value, dict)):
        new = ["train", *own[2:]] if own[1] == ALONE and ALONE not in variants else ["variants", *own[1:]]
    if new[0] == "train" and len(new) > 1 and new[1] in _SELECTION:
        new = ["checkpoint", _SELECTION[new[1]], *new[2:]]
    elif new[0] == "variants" and len(new) > 2 and new[2] in _SELECTION:
        new = ["variants", new[1], "checkpoint", _SELECTION[new[2]], *new[3:]]
    elif new[0] == "variants" and len(new) == 2:
        value = _variant(value, moved, ".".join(path), ".".join([*at, *new, "checkpoint"]))
    if new != own:
        moved[".".join(path)] = ".".join([*at, *new])
    return [([*at, *new], value)]


def tell(moved: Moved, where: str) -> None:
    """One line of advice on stderr, where something was read so."""
    if moved:
        told = [f"{new} (not {old})" for old, new in moved.items()]
        more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        print(f"note: {where}: keys of an earlier version are read as what they were; write now: "
              f"{', '.join(told[:_SHOWN])}{more}", file=sys.stderr)


def _named(train: dict[str, Any], at: str) -> dict[str, Any]:
    """The variants that ``train`` holds by name; {} where it holds settings."""
    named = {name: own for name, own in train.items()
             if name not in _TRAINING and isinstance(own, dict) and (own.keys() & _TRAINING or not own)}
    given = sorted(train.keys() & _TRAINING)
    if named and given:
        name = next(iter(named))
        raise ConfigError(f"`{at}train.{given[0]}` is of every training, and `{at}train.{name}` of one",
                          fix=f"write what is {name}'s own as {at}variants.{name}")
    return named if len(named) == len(train) else {}


def _variant(own: Any, moved: Moved, old: str, new: str) -> Any:
    """A training's settings, with what selects its checkpoint in a block."""
    if not isinstance(own, dict) or not own.keys() & _SELECTION.keys():
        return own
    told = {_SELECTION[key]: value for key, value in own.items() if key in _SELECTION}
    moved |= {f"{old}.{key}": f"{new}.{_SELECTION[key]}" for key in own if key in _SELECTION}
    rest = {key: value for key, value in own.items() if key not in _SELECTION}
    return {**rest, "checkpoint": merge(told, rest.get("checkpoint") or {})}
