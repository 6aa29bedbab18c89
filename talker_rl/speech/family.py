"""What can be asked of a kind of speech generator before, or without, loading one. A family is a module with these
names: ``speech/<family>/family.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from talker_rl.base.findings import Finding
from talker_rl.records.codec import Codec
from talker_rl.speech.config import LoraSettings, ModelConfig
from talker_rl.speech.exporting import Exporter
from talker_rl.speech.protocol import Conditioning, Generator, NewSpeaker
from talker_rl.speech.shapes import Geometry
from talker_rl.speech.usage import Usage

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Encoder(Protocol):
    """What gives codes of sound."""

    def encode(self, sounds: Sequence[np.ndarray]) -> list[list[int]]:
        """Flat codes of each sound (float32 at the codec's rate), frame by frame; what is left of a frame at the end is
        dropped."""
        ...


class Family(Protocol):
    """A kind of speech generator."""

    NAME: str
    TITLE: str
    """What it is called in a text."""
    CODEC: Codec

    def load(
        self, settings: ModelConfig, parts: Sequence[str] = ..., *, tokenizer: bool | None = None
    ) -> Generator:
        """The asked parts (``conditioner``, ``talker``, ``decoder``), frozen and in eval mode."""
        ...

    def conditioning(
        self, prompt_id: str, speaker: str, reply_text: str, tensors: Mapping[str, Tensor], codec: str = ...
    ) -> Conditioning:
        """The conditioning of one prompt from its stored tensors; ``codec`` is its codec's name."""
        ...

    def identity(self, settings: ModelConfig, part: str) -> str:
        """Content hash of what a part depends on."""
        ...

    def files_identity(self, settings: ModelConfig, *parts: str) -> str:
        """Content hash of the checkpoint's own files that these parts are read from."""
        ...

    def speakers(self, settings: ModelConfig) -> Sequence[str]:
        """Names of the speakers, sorted."""
        ...

    def own_speakers(self, settings: ModelConfig) -> Sequence[str]:
        """Those of the checkpoint itself."""
        ...

    def speaker_rows(self, settings: ModelConfig) -> list[dict[str, Any]]:
        """What ``speaker list`` shows of each."""
        ...

    def check_speakers_target(self, settings: ModelConfig, out: Path, overwrite: bool) -> None:
        """Refuse a place where no speakers may be written."""
        ...

    def new_speaker(self, settings: ModelConfig, options: argparse.Namespace) -> NewSpeaker:
        """The speaker that the options of ``speaker add`` ask for."""
        ...

    def encoder(self, settings: ModelConfig, path: str | None) -> Encoder:
        """What gives codes of recordings; None is the family's usual one. ConfigError where there is none."""
        ...

    def check_adapter(self, settings: ModelConfig, folder: Path) -> None:
        """Refuse an adapter that is not whole, or not of this model's Talker."""
        ...

    def check_lora(self, settings: ModelConfig, lora: LoraSettings) -> None:
        """Refuse settings of a new adapter that do not fit this model's Talker."""
        ...

    def check_model(self, folder: Path) -> Iterator[Finding]:
        """What can be said of a checkpoint's folder without reading its weights."""
        ...

    def check_loading(self, settings: ModelConfig, *, load: bool) -> Iterator[Finding]:
        """Whether the weights can be loaded."""
        ...

    def read_geometry(self, name: str) -> Geometry:
        """Shapes of a model that need not be here."""
        ...

    def speaking_code(self, usage: Usage, *, adapter: bool) -> str:
        """A model card's code: speaking without this package."""
        ...

    def exporter(self) -> Exporter:
        """What puts a trained Talker back into its checkpoint."""
        ...
