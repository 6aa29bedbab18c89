"""The shapes that cost depends on. A family reads them off its real classes on the meta device: nothing is loaded.

A weight of a linear layer is one multiply-add a position; so FLOPs follow from parameter counts, and those are the
real classes', not a formula's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from talker_rl.records.codec import Codec
from talker_rl.speech.config import LoraSettings


@dataclass(frozen=True)
class Linear:
    """One linear layer, by its name in its part."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Stack:
    """A decoder-only transformer without embeddings and head."""

    layers: int
    width: int
    inner: int
    """Width of the gated feed-forward."""
    heads: int
    kv_heads: int
    head_dim: int
    linears: tuple[Linear, ...]

    @property
    def weights(self) -> int:
        """Of all linear layers, which every position passes once."""
        return sum(x.inputs * x.outputs for x in self.linears)

    @property
    def kv_width(self) -> int:
        """Values that the KV cache keeps a position, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Flow:
    """The DiT, by mel frame."""

    layers: int
    width: int
    inner: int
    """Width of the feed-forward."""
    weights: int
    """Which every frame passes in every evaluation; modulations, voice and codes are computed once, not here."""
    keys: int
    """Keys that a frame meets, summed over the layers: its own block, and the neighbors in those that look there."""
    block: int
    """Frames of a block."""
    seen: int
    """Blocks that one layer's frame meets at most: its own, and those before and after it where a layer looks there."""
    mel: int
    """Values of a mel frame."""
    frames_per_code: int


@dataclass(frozen=True)
class Vocoder:
    """BigVGAN, by mel frame."""

    macs: int
    """Multiply-adds of convolutions and anti-aliasing filters."""
    values: int
    """Of the widest layer's output."""
    moved: int
    """Values that convolutions and activations read and write, each of them once."""


@dataclass(frozen=True)
class Batching:
    """How the family's code cuts its work."""

    cache_block: int
    """Positions by which the KV cache grows."""
    prefill_prompts: int
    """Prefixes that are computed together, and kept."""
    decoder_values: int
    """Values of a layer that pass together on a CPU."""


@dataclass(frozen=True)
class Geometry:
    """Everything that cost depends on."""

    name: str
    parameters: dict[str, int]
    """By part: thinker (with its audio and vision towers), talker, token2wav."""
    thinker: Stack
    talker: Stack
    adaptable: tuple[Linear, ...]
    """Every linear layer of the Talker, the stack's and those around it."""
    embedding: int
    """Width of conditioning: the Thinker's."""
    vocabulary: int
    """Of the Talker's head."""
    dit: Flow
    vocoder: Vocoder
    codec: Codec
    batching: Batching
    frame_macs: float = 0.0
    """Multiply-adds of a sampled frame beside the Talker's own position: a code predictor's, of all its codes."""
    frame_layers: int = 0
    """Layers that run one after the other for it."""
    targets: str | None = None
    """What an adapter is put on whose settings name what every transformer has; None: just that."""

    @property
    def head(self) -> int:
        """Weights of the Talker's head."""
        return self.talker.width * self.vocabulary

    @property
    def projection(self) -> int:
        """Weights between the Thinker's width and the Talker's."""
        return self.embedding * self.talker.width

    def adapters(self, settings: LoraSettings) -> int:
        """Parameters of LoRA on the Talker (targets by PEFT's rule: a name's end, or a whole regular expression)."""
        return sum(settings.r * (x.inputs + x.outputs) for x in self.adapted(settings))

    def adapted(self, settings: LoraSettings) -> list[Linear]:
        """The Talker's linear layers that get an adapter."""
        targets = settings.target_modules
        if self.targets is not None and targets == LoraSettings().target_modules:
            targets = self.targets
        return [x for x in self.adaptable if _is_target(x.name, targets)]


def _is_target(name: str, targets: list[str] | str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == t or name.endswith(f".{t}") for t in targets)
