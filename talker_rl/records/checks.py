"""What a field of a user's record may hold: ids that are file names, values that can be stored."""

from __future__ import annotations

import unicodedata
from typing import Any

MAX_ID_BYTES = 200
"""Files are named <id>_<piece>-<candidate>.opus, and most file systems take 255 bytes."""
_DEEPEST = 50
_RESERVED = frozenset('/\\*?[:"<>|')
"""Separators, what a pattern of names means something by, what some file systems do not take."""
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")


def as_id(value: Any) -> Any:
    """An id as it is kept: whole numbers, as a table's key is, become texts."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def why_no_file_name(name: str) -> str | None:
    """Why an id cannot be the beginning of a file's name, or None: kept speech lies under its candidate's id."""
    if not name.strip():
        return "it is empty"
    if name.startswith("."):
        return "it begins with a dot"
    for char in name:
        if char in _RESERVED:
            return f"it holds {char}"
        if unicodedata.category(char) in _UNPRINTABLE:
            return f"it holds the control character {char!r}"
    size = len(name.encode())
    return f"it has {size} bytes, and {MAX_ID_BYTES} are the most" if size > MAX_ID_BYTES else None


def why_not_stored(value: Any, depth: int = 0) -> str | None:
    """Why a value cannot be kept as JSON in UTF-8, or None."""
    if depth > _DEEPEST:
        return f"it is nested more than {_DEEPEST} deep"
    if isinstance(value, str):
        half = next((c for c in value if unicodedata.category(c) == "Cs"), None) if not value.isascii() else None
        return None if half is None else f"it holds half a character, the lone surrogate {half!r}"
    if isinstance(value, dict):
        parts = [*value, *value.values()]
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        return None if value is None or isinstance(value, bool | int | float) else f"it holds a {type(value).__name__}"
    return next((why for part in parts if (why := why_not_stored(part, depth + 1))), None)
