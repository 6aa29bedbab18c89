"""Prompts: a reply text to speak, with its context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from talker_rl.base.ids import stable_hash
from talker_rl.records.messages import identity


@dataclass
class Prompt:
    """A reply text to speak, with its context.

    >>> Prompt("orange table, happy river.", speaker="Chelsie")
    """

    text: str
    """What the Talker must say, with punctuation."""
    speaker: str
    lang: str = "en"
    """zh, en or mixed."""
    messages: list[dict[str, Any]] | None = None
    """Chat messages before the reply; None means the configured system prompt and instruction."""
    reference_seconds: float | None = None
    """Duration of a clean rendering of this text by this speaker, where one is known."""
    max_seconds: float | None = None
    """Stated limit on the duration, where there is one. Not part of the id: the Talker does not see it."""
    prompt_id: str = ""
    category: str | None = None
    """What makes this text hard, or any other group. Kept with the prompt; summaries do not group by it."""
    provenance: dict[str, Any] | None = None
    """What made this text: rule, seed, version."""

    def __post_init__(self) -> None:
        if not self.prompt_id:
            self.prompt_id = stable_hash("prompt", self.text, self.speaker, identity(self.messages))[:16]
