"""Typed records that flow between stages, joined by ids and never by row number."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from talker_rl.data.messages import identity

CODE_RATE_HZ = 50
"""Codec tokens per second: one code is 2 mel frames of 240 samples at 24 kHz."""

NUM_CODES = 8194
"""Rows of the DiT's code table; any sampled id at or above it (a stop id aside) is invalid."""

EndReason = Literal["eos", "max_tokens", "invalid_code", "empty"]


def stable_hash(*parts: Any) -> str:
    """Hex SHA-256 of JSON-serializable parts; equal parts give equal ids on every machine."""
    blob = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(blob.encode("utf-8", "surrogatepass")).hexdigest()


def derive_seed(*parts: Any) -> int:
    """A seed in [0, 2**31) from parts, e.g. ``derive_seed(run_seed, prompt_id, k)``."""
    return int(stable_hash("seed", *parts)[:8], 16) & 0x7FFFFFFF


@dataclass
class Prompt:
    """A reply text to speak, with its context."""

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


@dataclass
class Candidate:
    """One sampled sequence of codes. Masks and losses include the stop, durations do not."""

    prompt_id: str
    candidate_id: str
    """``<prompt_id>-<k>``."""
    speaker: str
    seed: int
    codes: list[int]
    """Sampled ids < 8194, the stop id excluded (an invalid id that ended the sequence is excluded too)."""
    stop_id: int | None
    """The sampled stop id; None if the sequence was cut."""
    end_reason: EndReason
    token_logps: list[float]
    """Raw natural-log probabilities; len(codes) + 1 entries if stopped, the stop last."""
    processed_logps: list[float] = field(default_factory=list)
    """Log-probs under the processed sampling distribution, same length."""

    @property
    def duration(self) -> float:
        """Seconds of speech."""
        return len(self.codes) / CODE_RATE_HZ

    @property
    def codes_with_stop(self) -> list[int]:
        """Codes with the stop id last if it was sampled: what pairs, masks and losses count."""
        return with_stop(self.codes, self.stop_id)


def with_stop(codes: list[int], stop_id: int | None) -> list[int]:
    """Codes with the stop id last if it was sampled."""
    return codes + ([] if stop_id is None else [stop_id])


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


@dataclass
class Pair:
    """Chosen and rejected candidate of one prompt. A completion to imitate has none to beat: its rejected is empty."""

    prompt_id: str
    pair_id: str
    text: str
    speaker: str
    chosen_id: str
    rejected_id: str
    chosen: list[int]
    """Codes with the stop id last if it was sampled: what masks, losses and lengths count."""
    rejected: list[int]
    chosen_reward: float
    rejected_reward: float
    margin: float
    chosen_seconds: float
    rejected_seconds: float


@dataclass
class Completion:
    """Codes to imitate: a row of supervised training (TRL's prompt-completion data)."""

    prompt_id: str
    completion_id: str
    text: str
    speaker: str
    codes: list[int]
    """With the stop id last, always: codes that were cut would teach the Talker not to stop."""
    seconds: float
    """Of speech, the stop not counted."""
    origin: str
    """A candidate's id, or ``<file>:<row>``."""
    reward: float | None = None
    """None where no scorer judged it."""
    rank: int | None = None
    """1 is the best candidate of its prompt; None for given codes."""
    best_of: int | None = None
    """Finished and scored candidates that it was chosen among."""

    def as_pair(self) -> Pair:
        """What the trainer takes: a pair without a rejected."""
        reward = self.reward or 0.0
        return Pair(self.prompt_id, self.completion_id, self.text, self.speaker, self.origin, "", self.codes, [],
                    reward, 0.0, 0.0, self.seconds, 0.0)


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
