"""`POST /get_reward`: the request that OpenRLHF sends to a remote reward model.

    {"query": [...], "labels": [...]}  ->  {"rewards": [...], "scores": [...], "extra_logs": {}}

``query[i]`` is JSON: a score item, or only its codes; ``labels[i]`` is JSON with the other fields of the item (text,
lang, speaker, seed). That protocol knows no failures, so one failed item makes the whole answer an error: no reward is
invented.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from talker_rl.reward.service.protocol import Item


class RewardRequest(BaseModel):
    """As OpenRLHF sends it; `prompts` and whatever else it adds are not looked at."""

    model_config = ConfigDict(extra="ignore")

    query: list[str] = Field(min_length=1, description="JSON of each score item, or of its codes.")
    labels: list[str | None] | None = Field(default=None, description="JSON of the items' other fields.")


class Rewards(BaseModel):
    """As OpenRLHF wants it."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]] = Field(default_factory=dict)


def items_of(request: RewardRequest) -> list[Item]:
    """The items of a request; those without an id are numbered.

    Raises:
        ValueError: says which query is wrong, and why.
    """
    labels = request.labels or [None] * len(request.query)
    if len(labels) != len(request.query):
        raise ValueError(f"{len(request.query)} queries, {len(labels)} labels")
    items = []
    for i, (query, label) in enumerate(zip(request.query, labels, strict=True)):
        try:
            fields: dict[str, Any] = {"id": str(i), **_object(label or "{}"), **_object(query)}
            items.append(Item.model_validate_json(json.dumps(fields)))
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"query {i}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except (ValueError, RecursionError):
            raise ValueError(f"query {i}: neither JSON of an item nor of a list of codes") from None
    if len({item.id for item in items}) != len(items):
        raise ValueError("two queries have the same id")
    return items


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if isinstance(value, list):
        return {"codes": value}
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value
