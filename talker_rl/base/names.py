"""What is made to be shared names things, not places: a folder's path holds a user's name and a machine's layout.

Imports nothing heavy. The run folder's own manifest keeps whole paths: it is what the run goes on from.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PureWindowsPath
from typing import Any

from talker_rl.base.places import SHIPPED_MODELS

_FREE_TEXT = {"instruction", "system_prompt", "title", "text", "content"}
"""Keys whose values are what somebody wrote, never a path."""


def hub_name(path: str) -> str | None:
    """``owner/name`` of a hub name, or of a folder in the hub's cache; else None."""
    cached = re.search(r"models--([^/]+)--([^/]+)/snapshots/", f"{path}/")
    if cached:
        return f"{cached[1]}/{cached[2]}"
    plain = re.fullmatch(r"\w[\w.-]*/[\w.-]+", path) and not Path(path).exists()
    return path if plain else None


def model_name(path: str | Path) -> str:
    """What a model is called: ``micro`` and its like, its name on the hub, or its folder's name."""
    given = str(path)
    return given if given in SHIPPED_MODELS else hub_name(given) or folder_name(given)


def folder_name(path: str | Path) -> str:
    """The last part of a path; of a run's adapter from the run's folder on (``demo/train/default``)."""
    given = str(path)
    if re.match(r"^([A-Za-z]:)?\\", given):
        return PureWindowsPath(given).name
    place = Path(os.path.abspath(os.path.expanduser(given)))  # (a link is called as it is, not as what it leads to)
    inside = re.search(r"([^/]+)/((round\d+/)?train/[^/]+(/checkpoint-\d+)?)$", str(place))
    return f"{inside[1]}/{inside[2]}" if inside else place.name


def without_paths(text: str) -> str:
    """A message of another library's, in which only the last part of each path is left."""
    return re.sub(r"(?<![\w/:.])(?:~|\.{1,2})?(?:/[^\s'\"`,;:()<>]+)+", lambda found: folder_name(found[0]), text)


def without_places(value: Any) -> Any:
    """Plain data, with names in the place of paths of this machine."""
    if isinstance(value, dict):
        return {key: item if key in _FREE_TEXT and isinstance(item, str) else without_places(item)
                for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(item) for item in value]
    return _named(value) if isinstance(value, str) else value


def _named(text: str) -> str:
    """A string of a configuration: a path becomes a name; with what stands before and after it in a prompt source."""
    if "\n" in text or not text.strip():
        return text
    head, colon, rest = text.partition(":")
    if colon and head in ("hf", "file") and _is_place(rest.removeprefix("//")):
        return f"{head}:{_named(rest.removeprefix('//'))}"
    if not _is_place(text):
        return text
    if hub := hub_name(text):
        return hub
    path, mark, column = text.partition("#")
    return folder_name(path) + mark + column


def _is_place(text: str) -> bool:
    """Whether a string is a path of a machine: a whole one, or one that is there."""
    if re.match(r"^(/|~|\.\.?/|[A-Za-z]:\\|\\\\)", text):
        return len(text) > 1
    return "/" in text and "://" not in text and os.path.exists(text)
