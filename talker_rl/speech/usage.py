"""What a model card's code is made of."""

from __future__ import annotations

from dataclasses import dataclass

from talker_rl.records.codec import FIRST


@dataclass(frozen=True)
class Usage:
    """What the code block of a card needs: it speaks with plain transformers."""

    folder: str
    """Name of the folder that the card is of."""
    base: str
    """The base's name on the hub, or of its folder; ``micro`` for the shipped one."""
    speaker: str
    system: str
    """System prompt."""
    user: str
    """User message."""
    own_speakers: bool = False
    """Whether the folder of an adapter holds speakers that take the place of the base's."""
    dtype: str = '"auto"'
    """Python for the precision to load the model in."""
    family: str = FIRST
    """Whose code it is."""
