"""What goes over the wire, version 1. Client and service share it; importing it needs neither's libraries."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import Base64Encoder, BaseModel, EncodedBytes, Field, model_validator

from talker_rl.base.settings import Settings
from talker_rl.records.candidate import EndReason

PROTOCOL = 1
"""Changes when an old client would misread an answer."""

TOKEN_VARIABLE = "TALKER_RL_TOKEN"
"""Environment variable with the bearer token, for service and client."""


class _StrictBase64(Base64Encoder):
    """pydantic's own leaves out what is no base64."""

    @classmethod
    def decode(cls, data: bytes) -> bytes:
        try:
            return base64.b64decode(data, validate=True)
        except ValueError as error:
            raise ValueError(f"no base64: {error}") from None


Sound = Annotated[bytes, EncodedBytes(encoder=_StrictBase64)]
Id = Annotated[str, Field(min_length=1, max_length=255)]


class Item(Settings):
    """One utterance to score: codes, or audio.

    Nothing that decides a score is drawn by the service: codes come with their speaker and the decoder's seed.
    """

    id: Id = Field(description="Comes back with the answer; unique within a request.")
    text: str = Field(max_length=4000, description="What should be said, with punctuation.")
    lang: str = Field(default="en", max_length=16, description="zh, en or mixed.")
    speaker: str | None = Field(default=None, max_length=200, description="Speaker of the codes.")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="Seed of the decoder's noise.")
    codes: list[int] | None = Field(default=None, max_length=100_000, description="Codec ids, the stop excluded.")
    codec: str | None = Field(default=None, max_length=64, description="Name of the codec; null: the service's.")
    audio: Sound | None = Field(default=None, description="A mono WAV, FLAC or OGG file, in base64.")
    end_reason: EndReason | None = Field(default=None, description="Why the codes ended.")
    reference_seconds: float | None = Field(
        default=None, gt=0, le=3600, allow_inf_nan=False, description="Duration of a clean rendering, where known."
    )
    prompt_id: str = Field(default="", max_length=255, description="Passed to components of one's own.")
    sample_seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="Seed the codes were sampled with; for components of one's own."
    )

    @model_validator(mode="after")
    def _codes_or_audio(self) -> Item:
        if (self.codes is None) == (self.audio is None):
            raise ValueError("give codes or audio, one of them")
        if self.codes is not None and (self.speaker is None or self.seed is None):
            raise ValueError("codes need a speaker and a seed: the service never draws them")
        return self


class ScoreRequest(Settings):
    """`POST /v1/score`."""

    items: list[Item] = Field(min_length=1, description="Answered in this order; no score depends on another item.")
    timeout_seconds: float | None = Field(
        default=None, gt=0, le=3600, allow_inf_nan=False,
        description="Deadline: items without a score by then fail as `deadline`, and no more work is done for them.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _distinct(self) -> ScoreRequest:
        if len({item.id for item in self.items}) != len(self.items):
            raise ValueError("two items have the same id")
        return self


class ItemError(BaseModel):
    """Why an item has no score."""

    code: str
    message: str
    retryable: bool = Field(description="The machine's fault, not the item's: the same item may succeed later.")


class ItemResult(BaseModel):
    """A score, or a failure; never both."""

    id: str
    status: Literal["ok", "failed"]
    reward: float | None = Field(default=None, allow_inf_nan=False)
    components: dict[str, float | None] = Field(default_factory=dict)
    transcript: list[str] = Field(default_factory=list)
    spans: list[tuple[float, float]] = Field(default_factory=list, description="Start and end of each token, seconds.")
    alignment: list[tuple[str, str, str]] = Field(
        default_factory=list, description="Errors: [op, reference token, transcript token], op in S D I."
    )
    notes: dict[str, str] = Field(default_factory=dict, description="Why a component is null.")
    timings: dict[str, float] = Field(default_factory=dict, description="Seconds waited, decoded, recognized.")
    error: ItemError | None = None

    @model_validator(mode="after")
    def _value_or_failure(self) -> ItemResult:
        if (self.status == "ok") != (self.reward is not None) or (self.status == "failed") != (self.error is not None):
            raise ValueError("an answer is a reward or an error")
        return self


class ScoreResponse(BaseModel):
    """Answer of `POST /v1/score`."""

    protocol: int = PROTOCOL
    fingerprint: str = Field(description="Changes whenever a score may change.")
    codec: str | None = Field(default=None, description="Name of the codec that codes are read as.")
    items: list[ItemResult]


class Limits(BaseModel):
    """What a client needs to know to stay welcome."""

    max_items: int
    max_seconds: float
    queue_seconds: float
    max_body_bytes: int


class Ready(BaseModel):
    """Answer of `GET /readyz`; status 503 while `ready` is false."""

    protocol: int = PROTOCOL
    ready: bool
    reason: str | None = None
    fingerprint: str | None = None
    parts: dict[str, str] = Field(default_factory=dict, description="What the fingerprint is made of.")
    speakers: list[str] = Field(default_factory=list)
    codec: str | None = Field(default=None, description="Name of the codec that codes are read as.")
    limits: Limits


class Problem(BaseModel):
    """Body of every answer that is no success."""

    error: ItemError


def failed(item_id: str, code: str, message: str, *, retryable: bool) -> dict[str, Any]:
    """An `ItemResult` that failed, as plain data."""
    return {"id": item_id, "status": "failed", "error": {"code": code, "message": message, "retryable": retryable}}
