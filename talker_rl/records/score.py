"""Scores of candidates, and what can be asked of their components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


def nothing_recognized(components: dict[str, float | None]) -> bool:
    """Whether score components say that the transcript was empty; False where they count no words."""
    words = components.get("ref_words")
    if not words:
        return False
    return words - (components.get("deletions") or 0.0) + (components.get("insertions") or 0.0) <= 0.0


def nothing_right(components: dict[str, float | None]) -> bool:
    """Whether score components say that no word of the text was recognized, though others may have been: what a
    recognizer hears in noise. False where they count no words."""
    right = right_words(components)
    return right is not None and right <= 0.0


def right_words(components: dict[str, float | None]) -> float | None:
    """Words of the text that were recognized; None where score components count no words."""
    words = components.get("ref_words")
    if not words:
        return None
    return words - (components.get("substitutions") or 0.0) - (components.get("deletions") or 0.0)


def counted_errors(components: Mapping[str, Any]) -> float:
    """Substitutions, deletions and insertions of score components or of a flat row; 0 where words were not counted."""
    return sum(components.get(name) or 0.0 for name in ("substitutions", "deletions", "insertions"))


@dataclass
class ScoreRow:
    """The score of one candidate: a value with components, or a failure. Never both."""

    prompt_id: str
    candidate_id: str
    status: Literal["ok", "failed"]
    reward: float | None = None
    components: dict[str, float | None] = field(default_factory=dict)
    transcript: list[str] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of each transcript token, seconds."""
    errors: str = ""
    """JSON alignment: list of [op, ref, hyp], op in = S D I."""
    error_code: str | None = None
    error_message: str | None = None
    retryable: bool = False
