"""What was said: codes and the stop, told apart."""

from __future__ import annotations

from dataclasses import dataclass, field

from talker_rl.records.codec import Codec


@dataclass(frozen=True)
class Speech:
    """One utterance in codes. Sound has ``codes``; masks, losses and lengths count ``ids``.

    >>> generator.codec.speech([12, 7, generator.codec.stop]).codes    # [12, 7]
    """

    codes: list[int]
    """Ids that are sound, flat and frame by frame; never a stop."""
    stop_id: int | None
    """The stop that was said; None if the sequence was cut."""
    codec: Codec
    experts: bytes | None = field(default=None, repr=False, compare=False)
    """Which experts routers chose while it was sampled, as the family writes it down; None where nobody did. Pairs and
    files do not keep it."""

    @property
    def ids(self) -> list[int]:
        """Codes with the stop last if it was said."""
        return self.codes if self.stop_id is None else [*self.codes, self.stop_id]

    @property
    def stopped(self) -> bool:
        """Whether it ended by itself."""
        return self.stop_id is not None

    @property
    def frames(self) -> int:
        """Frames of sound."""
        return self.codec.frames(self.codes)

    @property
    def steps(self) -> int:
        """What the Talker said one after the other: the frames, and the stop. One log-prob each."""
        return self.frames + self.stopped

    @property
    def seconds(self) -> float:
        """Duration; the stop has none."""
        return self.codec.seconds(self.codes)

    def cut(self, steps: int) -> Speech:
        """The first ``steps`` steps; itself where it is no longer."""
        if self.steps <= steps:
            return self
        return Speech(self.codes[: steps * self.codec.groups], None, self.codec)
