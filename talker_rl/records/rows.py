"""Records as flat rows of a table, and back."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

JSON_FIELDS = ("messages", "components", "spans", "provenance")
"""Fields that are JSON text in a table."""

_LATER_FIELDS = ("max_seconds", "category", "provenance")
"""Optional fields of prompts that came later: absent from a row where they are null, so that it hashes as it did."""


def to_row(record: Any) -> dict[str, Any]:
    """A flat row for Parquet; nested dicts become JSON strings."""
    row = asdict(record)
    for key in _LATER_FIELDS:
        if row.get(key, 0) is None:
            del row[key]
    for key in JSON_FIELDS:
        if key in row:
            row[key] = json.dumps(row[key], ensure_ascii=False)
    return row


def from_row(cls: type, row: dict[str, Any]) -> Any:
    """The inverse of :func:`to_row`."""
    names = {f.name for f in fields(cls)}
    data = {k: v for k, v in row.items() if k in names}
    for key in JSON_FIELDS:
        if key in data and isinstance(data[key], str):
            data[key] = json.loads(data[key])
    return cls(**data)
