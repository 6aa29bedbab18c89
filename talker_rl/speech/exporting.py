"""How a trained Talker goes back into its checkpoint: what every family's ``merge`` module gives, and what it tells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from talker_rl.speech.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Rounding:
    """What storing the merged weights in the checkpoint's precision costs: sums of squares over merged tensors."""

    update: float = 0.0
    """Of merged (float32) minus original."""
    error: float = 0.0
    """Of stored minus merged (float32)."""
    merged: int = 0
    """Tensors that the trained weights hold an update of, or another value for."""
    changed: int = 0
    """Of these, the ones whose stored value is not the original's: an update may be zero, or be rounded away."""
    dtypes: set[str] = field(default_factory=set)
    """Precisions in which the merged tensors are stored, in safetensors' words."""

    @property
    def share(self) -> float:
        """Norm of the rounding error over the norm of the update; 0 where nothing was rounded."""
        return math.sqrt(self.error / self.update) if self.update else 0.0


@dataclass(frozen=True)
class Entry:
    """A file of the written checkpoint."""

    name: str
    how: str
    """``merge`` (a copy with changed tensors), ``keep`` (weights as they are) or ``copy`` (small files)."""
    size: int
    """Bytes."""


class Exporter(Protocol):
    """A family's way back into the published layout."""

    LOADS_WITH: str
    """What loads the written checkpoint."""

    def merged_tensors(self, base: Path, weights: Path, model: ModelConfig) -> set[str]:
        """Names, as stored, of the tensors that merging may change."""
        ...

    def base_talker(self, model: ModelConfig) -> Any:
        """The Talker that is merged into: float32, on the CPU."""
        ...

    def merged_talker(self, weights: Path, model: ModelConfig) -> Any:
        """The Talker with trained weights: float32, on the CPU."""
        ...

    def entries(self, base: Path, merged: set[str], *, widen: bool = False) -> list[Entry]:
        """Files of the checkpoint to write."""
        ...

    def left_out(self, base: Path, written: list[Entry]) -> list[str]:
        """Files of the base that are not taken over."""
        ...

    def bytes_needed(self, base: Path, folder: Path, written: list[Entry], link: bool) -> int:
        """New bytes on the disk."""
        ...

    def write_checkpoint(
        self, base: Path, folder: Path, written: list[Entry], merged: set[str], talker: Mapping[str, Tensor], *,
        link: bool, widen: bool = False,
    ) -> Rounding:
        """Write the files."""
        ...

    def add_speakers(self, file: Path, folder: Path) -> None:
        """Put speakers of one's own, ``model.speakers``, into an exported folder: a checkpoint's or an adapter's."""
        ...
