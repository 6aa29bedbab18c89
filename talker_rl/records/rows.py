"""Records as flat rows of a table, and back."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from dataclasses import Field, fields
from typing import Any

from talker_rl.records.codec import FIRST, codec_named
from talker_rl.records.speech import Speech

JSON_FIELDS = ("messages", "components", "spans", "provenance")
"""Fields that are JSON text in a table."""

_LATER_FIELDS = ("max_seconds", "category", "provenance", "chosen_classes", "rejected_classes", "experts")
"""Optional fields that came later: absent from a row where they are null, so that it hashes as it did."""


def to_row(record: Any) -> dict[str, Any]:
    """A flat row for Parquet: speech becomes its ids and the codec's name, nested dicts become JSON strings."""
    row: dict[str, Any] = {}
    for f in fields(record):
        value = getattr(record, f.name)
        if isinstance(value, Speech):
            row[column_of(f)], row["codec"] = list(value.ids), value.codec.name
        else:
            row[f.name] = deepcopy(value)
    row |= {name: getattr(record, name) for name in getattr(record, "COLUMNS", ())}
    for key in _LATER_FIELDS:
        if row.get(key, 0) is None:
            del row[key]
    for key in JSON_FIELDS:
        if key in row:
            row[key] = json.dumps(row[key], ensure_ascii=False)
    return row


def from_row(cls: type, row: dict[str, Any]) -> Any:
    """The inverse of :func:`to_row`."""
    data = {f.name: row[column_of(f)] for f in fields(cls) if column_of(f) in row}
    if data.get("codec", "") is None:
        del data["codec"]
    for f in fields(cls):
        if f.type == "Speech":
            data[f.name] = codec_named(row.get("codec")).speech(data[f.name])
        elif f.name in JSON_FIELDS and isinstance(data.get(f.name), str):
            data[f.name] = json.loads(data[f.name])
    return cls(**data)


def column_of(f: Field[Any]) -> str:
    """Name of a field's column."""
    return str(f.metadata.get("column", f.name))


def hashed(row: dict[str, Any]) -> dict[str, Any]:
    """What a row's content hash depends on: the first codec is not told, so that rows hash as they did without it."""
    told = {k: hashlib.sha256(v).hexdigest() if isinstance(v, bytes) else v for k, v in row.items()}
    return {k: v for k, v in told.items() if k != "codec"} if row.get("codec") in (FIRST, None) else told
