"""Ids and seeds: equal parts give equal ones on every machine."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def stable_hash(*parts: Any) -> str:
    """Hex SHA-256 of JSON-serializable parts; equal parts give equal ids on every machine."""
    blob = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(blob.encode("utf-8", "surrogatepass")).hexdigest()


class Fingerprint(str):
    """A hash that knows what it is of, so that a refusal can name the part that changed. Hashes among the parts are for
    people: their first digits do."""

    parts: dict[str, Any]

    def __new__(cls, value: str, parts: dict[str, Any]) -> Fingerprint:
        made = super().__new__(cls, value)
        made.parts = parts
        return made


def derive_seed(*parts: Any) -> int:
    """A seed in [0, 2**31) from parts, e.g. ``derive_seed(run_seed, prompt_id, k)``."""
    return int(stable_hash("seed", *parts)[:8], 16) & 0x7FFFFFFF
