"""What code ids mean: a family's codec. No number of a codec stands anywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from typing import TYPE_CHECKING

from talker_rl.base.errors import DataError

if TYPE_CHECKING:
    from talker_rl.records.speech import Speech

FIRST = "qwen2_5_omni"
"""The codec of records that name none: they are from before there was another."""


@dataclass(frozen=True)
class Codec:
    """What ids mean. Codes lie flat and frame by frame: of one group (a codebook) each code is a frame.

    >>> generator.codec.seconds([12, 7, 7, 31])    # 0.08 at 50 codes per second
    """

    name: str
    groups: int
    """Codebooks, so ids of a frame."""
    sizes: tuple[int, ...]
    """Codes of each group: ids from 0 on."""
    stops: tuple[int, ...]
    """Ids that end speech, said in the place of a frame's first code; the first of them is the one to write."""
    frame_rate: Fraction
    """Frames per second."""
    sample_rate: int
    """Of the decoded sound, Hz."""
    noisy: bool
    """Whether decoding draws noise, so that an utterance needs a seed."""

    @property
    def stop(self) -> int:
        """The stop id to write where data leaves it out."""
        return self.stops[0]

    @property
    def rate(self) -> float:
        """Frames per second, as a float."""
        return float(self.frame_rate)

    def frames(self, codes: Sequence[int]) -> int:
        """Frames of codes (no stop among them).

        Raises:
            DataError: the last frame is not whole.
        """
        if len(codes) % self.groups:
            raise DataError(f"{len(codes)} codes are no whole frames of {self.groups}", where=f"codec {self.name}",
                            fix="codes lie flat, frame by frame")
        return len(codes) // self.groups

    def seconds(self, codes: Sequence[int]) -> float:
        """Duration of codes."""
        return self.seconds_of(self.frames(codes))

    def seconds_of(self, frames: int) -> float:
        """Duration of so many frames."""
        return frames * self.frame_rate.denominator / self.frame_rate.numerator

    def invalid(self, codes: Sequence[int]) -> int | None:
        """The first id that is no code of its group; None where all are."""
        sizes = self.sizes
        return next((c for at, c in enumerate(codes) if not 0 <= c < sizes[at % self.groups]), None)

    def refuse_other(self, name: str, where: str) -> None:
        """DataError where data is of another codec."""
        if name != self.name:
            raise DataError(f"Codes of {name}, where those of {self.name} are spoken", where=where,
                            fix="use data of the model's own family")

    def speech(self, ids: Sequence[int]) -> Speech:
        """Ids whose last one may be a stop, told apart."""
        from talker_rl.records.speech import Speech

        if len(ids) and ids[-1] in self.stops:
            return Speech(list(ids[:-1]), int(ids[-1]), self)
        return Speech(list(ids), None, self)


def codec_named(name: str | None) -> Codec:
    """The codec of a record. A family is found by its name, as Python finds an encoding: ``speech/<name>/codec.py``.
    What stands behind a hyphen names a variant of the family's, of other sizes.

    Raises:
        DataError: this version has no such family.
    """
    name = name or FIRST
    family, _, variant = name.partition("-")
    try:
        module = import_module(f"talker_rl.speech.{family}.codec")
        codec: Codec = module.variant(variant) if variant else module.CODEC
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise DataError(f"Unknown codec {name!r}", where="codec",
                        fix="upgrade talker-rl, or name the family that the data is of") from error
    return codec
