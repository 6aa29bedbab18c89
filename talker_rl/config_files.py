"""Configuration files: YAML, files that extend others, and how mappings are merged. What keys mean is not known here.

    extends: common.yaml        # or a list; read first: files, relative to the one that names them, or shipped names
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from talker_rl.base.errors import ConfigError
from talker_rl.shipped import find, locate, nearest
from talker_rl.speech.config import PRESETS


class _Loader(yaml.SafeLoader):
    """YAML in which 5e-6 is a number (YAML 1.1 asks for a dot and a sign and takes it for a string)."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


Reading = Callable[[dict[str, Any]], dict[str, Any]]
"""What is made of one file's data before it is merged with others'."""


def read_files(files: Sequence[str | Path], reading: Reading = dict) -> dict[str, Any]:
    """YAML files, or shipped ones by name, merged left to right, as plain data; each over the files that it extends.

    Raises:
        ConfigError: a file that cannot be read, or that extends itself.
    """
    data: dict[str, Any] = {}
    for file in files:
        data = merge(data, _read_extended(locate(file), (), reading))
    return data


def _read_extended(path: Path, readers: tuple[Path, ...], reading: Reading) -> dict[str, Any]:
    """A file over the files that its ``extends`` names; ``readers`` are the files that led here."""
    if path.resolve() in readers:
        raise ConfigError("The configuration file extends itself", where=str(path), fix="take that `extends` out")
    data = _read_yaml(path)
    named = data.pop("extends", [])
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError("`extends` is a file, or a list of files", where=str(path),
                          fix="write e.g. extends: common.yaml, relative to the file it stands in")
    below: dict[str, Any] = {}
    for name in names:
        below = merge(below, _read_extended(locate(name, beside=path.parent), (*readers, path.resolve()), reading))
    return merge(below, reading(data))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(), _Loader)
    except FileNotFoundError:
        beside = {name: str(file) for file in path.parent.glob("*.y*ml") for name in (file.stem, file.name)}
        close = difflib.get_close_matches(path.name, beside, n=1)
        meant = path.stem if find(path.stem) else beside[close[0]] if close else nearest(path.name)
        raise ConfigError("There is no such configuration file", where=str(path),
                          fix=f"did you mean {meant}?" if meant else "talker-rl configs lists those that are shipped",
                          ) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"Cannot read the configuration file: {error}", where=str(path),
                          fix="correct the YAML at that place") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError("A configuration file holds a mapping of keys", where=str(path),
                          fix="talker-rl configs demo prints one")
    return data


def merge(old: dict[str, Any], new: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Mappings merge key by key; a loss of another type replaces the old one whole, a preset what it sets."""
    if path and path[-1] == "loss" and "type" in new and new["type"] != old.get("type"):
        return new
    merged = without_preset(old, new)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(key), dict)
        merged[key] = merge(old[key], value, (*path, key)) if both else value
    return merged


def without_preset(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The old keys but those that a preset in the new ones sets."""
    replaced = PRESETS.get(str(new.get("preset")), {})
    return {key: value for key, value in old.items() if key not in replaced}


def parse_value(text: str, override: str) -> Any:
    """The value of a ``key=value`` override, read as YAML.

    Raises:
        ConfigError: it is not YAML; ``override`` is shown.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"Cannot read the value of {override!r}: {error}", fix="quote it as in YAML") from None
