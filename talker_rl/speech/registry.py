"""Families of speech generators, by the ``model_type`` of a checkpoint's config.json. Imports no torch.

A family is a folder here with two modules: ``codec`` (what ids mean) and ``family`` (everything else, found by name, so
that nothing is imported that is not used).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker_rl.base.errors import CheckpointError
from talker_rl.base.places import SHIPPED_MODELS
from talker_rl.records.codec import FIRST, Codec, codec_named
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.locate import resolve_model_path

if TYPE_CHECKING:
    from talker_rl.speech.family import Family
    from talker_rl.speech.protocol import Generator
    from talker_rl.speech.shapes import Geometry

MODEL_TYPES = {"qwen2_5_omni": "qwen2_5_omni", "qwen3_omni_moe": "qwen3_omni"}
"""model_type -> family."""
_PUBLISHED = {"qwen3-omni": "qwen3_omni"}
"""What names of published models begin with -> family, before a folder or a config.json is at hand."""


def family_named(name: str) -> Family:
    """The module of a family, or of the family of a codec.

    Raises:
        CheckpointError: this version has no such family, or not yet all of it.
    """
    try:
        found: Any = import_module(f"talker_rl.speech.{name.partition('-')[0]}.family")
    except ModuleNotFoundError as error:
        raise CheckpointError(f"This version of talker-rl cannot load models of the family {name!r}", where="codec",
                              fix="upgrade it, or use the data of another family") from error
    return found  # type: ignore[no-any-return]


def family_of(path: str | Path) -> Family:
    """The family of a model: "micro", a folder, or a hub name.

    Raises:
        CheckpointError: there is no such model, or it is of no family that is known here.
    """
    return family_named(_family_name(resolve_model_path(str(path))))


def load(model: str | Path | ModelConfig, parts: Sequence[str] = ("conditioner", "talker", "decoder")) -> Generator:
    """Load a speech generator, or parts of it, frozen and in eval mode.

    >>> generator = talker_rl.load("micro")                       # or a folder, or "Qwen/Qwen2.5-Omni-7B"
    >>> [seen] = generator.condition([talker_rl.Prompt("orange table.", speaker="Chelsie")])

    Args:
        model: "micro", a folder, a hub name, or settings.
        parts: ``conditioner``, ``talker`` and ``decoder``; only their weights are read.

    Raises:
        CheckpointError: there is no such model, it is of no family that is known, or a file is missing or damaged.
    """
    settings = model if isinstance(model, ModelConfig) else ModelConfig(path=str(model))
    return family_of(settings.path).load(settings, [parts] if isinstance(parts, str) else parts)


def read_geometry(name: str) -> Geometry:
    """Shapes of a model that need not be here: a shipped geometry's name, "micro", a folder, or a hub name, of which
    config.json alone is fetched.

    Raises:
        ConfigError: none of these.
        CheckpointError: no such folder or hub name, or its config.json cannot be used.
    """
    if name in SHIPPED_MODELS or Path(name).expanduser().is_dir():
        family = _family_name(resolve_model_path(name))
    else:
        family = _published_family(name)
    found: Geometry = family_named(family).read_geometry(name)
    return found


def _published_family(name: str) -> str:
    """By a hub name alone; the first family's where it tells nothing."""
    short = name.lower().rpartition("/")[2]
    return next((family for start, family in _PUBLISHED.items() if short.startswith(start)), FIRST)


def codec_of(model: ModelConfig) -> Codec:
    """The codec of a model as its settings name it, before anything is loaded or fetched: where the folder is not on
    this machine yet, that of the family that its name tells of."""
    folder = Path(model.path).expanduser()
    if model.path not in SHIPPED_MODELS and not (folder / "config.json").is_file():
        return codec_named(_published_family(model.path))
    try:
        found = resolve_model_path(model.path)
        codec: Codec = import_module(f"talker_rl.speech.{_family_name(found)}.codec").codec_of(_config_json(found))
    except (CheckpointError, ValueError, TypeError, AttributeError):  # told by whoever loads it
        return codec_named(FIRST)
    return codec


def _family_name(folder: Path) -> str:
    return MODEL_TYPES.get(str(_config_json(folder).get("model_type")), FIRST)  # whose reader says what is wrong


def _config_json(folder: Path) -> dict[str, Any]:
    """What config.json holds; nothing where it cannot be read."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
