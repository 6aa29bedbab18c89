"""Settings of who speaks which text, a part of ``prompts:``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from talker_rl.base.settings import Settings

Assignment = Literal["as_given", "shuffled", "all"]
SETS = ("train", "dev", "eval")


class SetSpeakers(Settings):
    """Who speaks the texts of each set."""

    train: Assignment = Field("as_given", description="as_given: whom each prompt names. shuffled: one of the speakers "
                              "by seed, so that no voice hangs on certain texts. all: each text by each speaker.")
    dev: Assignment = Field("as_given", description="Likewise.")
    eval: Assignment = Field("as_given", description="Likewise; all compares speakers on the same texts.")


class SpeakerSettings(Settings):
    """Who speaks, and under which instruction."""

    speakers: list[str] | None = Field(
        None, min_length=1, description="Speakers that speaker_assignment assigns; null is all of the checkpoint."
    )
    speaker_assignment: Assignment | SetSpeakers | None = Field(
        None, description="Who speaks which text: as_given (null as well), shuffled (one of `speakers` by seed) or all "
        "(each text by each of them, after `limit`); one word for the three sets, or one per set: {train: shuffled, "
        "eval: all}."
    )
    instructions: list[str] | None = Field(
        None, min_length=1, description="User messages, {text} in them is the prompt's: prompts without messages get "
        "one each by seed, whoever speaks, so that the Talker hears the style that is asked for and not one wording. "
        "null: model.instruction for all."
    )

    def assignment(self, which: str) -> Assignment:
        """Who speaks the texts of a set."""
        how = self.speaker_assignment
        found: Assignment = getattr(how, which) if isinstance(how, SetSpeakers) else how or "as_given"
        return found

    @model_validator(mode="after")
    def _speakers_are_assigned(self) -> SpeakerSettings:
        if self.speakers and all(self.assignment(name) == "as_given" for name in SETS):
            raise ValueError("speakers are named but not assigned: set speaker_assignment to shuffled or all")
        if self.instructions and not all("{text}" in text for text in self.instructions):
            raise ValueError("each of the instructions must hold {text}, where the prompt's text goes")
        return self
