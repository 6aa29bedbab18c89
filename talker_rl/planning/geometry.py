"""The shapes that cost depends on, read off transformers' own classes on the meta device: nothing is loaded.

A weight of a linear layer is one multiply-add a position; so FLOPs follow from parameter counts, and those are the
real classes', not a formula's.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from talker_rl.base.errors import ConfigError
from talker_rl.speech.config import LoraSettings

SHIPPED = ("qwen2.5-omni-7b", "qwen2.5-omni-3b")
"""Geometries that the package holds: the checkpoints' own config.json."""
PUBLISHER = "qwen/"
"""Whose hub names these are; another's model of the same name may be of another geometry."""


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
        return [x for x in self.adaptable if _is_target(x.name, targets)]


def _is_target(name: str, targets: list[str] | str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == t or name.endswith(f".{t}") for t in targets)


def read_geometry(name: str) -> Geometry:
    """A shipped geometry's name, alone or as the publisher's hub name, ``micro``, a folder, or another hub name.

    Of a hub name that is not shipped, config.json alone is fetched.

    Raises:
        ConfigError: none of these.
        CheckpointError: no such folder or hub name, or its config.json cannot be used.
    """
    from talker_rl.speech.locate import resolve_model_path
    from talker_rl.speech.quiet import quiet_transformers
    from talker_rl.speech.qwen2_5_omni.checkpoint import read_config

    short = name.lower().removeprefix(PUBLISHER)
    if Path(name).expanduser().is_dir() or name == "micro" or ("/" in name and short not in SHIPPED):
        return measure(name, read_config(resolve_model_path(name, ["config.json"])))
    if short not in SHIPPED:
        near = difflib.get_close_matches(short, [*SHIPPED, "micro"], n=1)
        raise ConfigError(f"There is no geometry {name!r}", where="--geometry",
                          fix=(f"did you mean {near[0]}? " if near else "")
                          + f"give one of {', '.join(SHIPPED)}, micro, or a folder with a config.json")
    from transformers import Qwen2_5OmniConfig

    text = resources.files("talker_rl.speech.qwen2_5_omni").joinpath("geometry", f"{short}.json").read_text()
    with quiet_transformers():
        config = Qwen2_5OmniConfig.from_dict(json.loads(text))
    return measure(short, config)


def measure(name: str, config: Any) -> Geometry:
    """The geometry of transformers' Qwen2_5OmniConfig."""
    from talker_rl.speech.qwen2_5_omni.published import meta_parts

    parts = meta_parts(config, name)
    text = config.thinker_config.text_config
    return Geometry(
        name=name,
        parameters={part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()},
        thinker=_stack(parts["thinker"].model, text, text.hidden_size // text.num_attention_heads),
        **of_talker(parts["talker"]),
        **of_token2wav(parts["token2wav"]),
    )


def of_talker(talker: Any) -> dict[str, Any]:
    """What of a `Geometry` transformers' Talker decides, by field."""
    config = talker.config
    return {"talker": _stack(talker.model, config, config.head_dim), "adaptable": _linears(talker, ""),
            "embedding": config.embedding_size, "vocabulary": config.vocab_size}


def of_token2wav(token2wav: Any) -> dict[str, Any]:
    """What of a `Geometry` transformers' token2wav decides, by field."""
    return {"dit": _flow(token2wav.code2wav_dit_model), "vocoder": _vocoder(token2wav.code2wav_bigvgan_model)}


def _stack(model: Any, config: Any, head_dim: int) -> Stack:
    layers = getattr(model, "language_model", model).layers
    return Stack(
        layers=len(layers), width=config.hidden_size, inner=config.intermediate_size, heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads, head_dim=head_dim, linears=_linears(layers, "layers."),
    )  # fmt: skip


def _linears(module: Any, prefix: str) -> tuple[Linear, ...]:
    from torch import nn

    return tuple(Linear(prefix + name, m.in_features, m.out_features) for name, m in module.named_modules()
                 if isinstance(m, nn.Linear))


def _flow(dit: Any) -> Flow:
    blocks = dit.transformer_blocks
    per_frame = [x for block in blocks for part in (block.attn, block.ff) for x in _linears(part, "")]
    mel = 2 * dit.config.mel_dim * dit.config.hidden_size  # in and out
    looks = [1 + int(b.look_backward_block) + int(b.look_ahead_block) for b in blocks]
    return Flow(
        layers=len(blocks), width=dit.config.hidden_size, inner=blocks[0].ff.ff[0].out_features,
        weights=mel + sum(x.inputs * x.outputs for x in per_frame), keys=sum(looks) * dit.block_size,
        block=dit.block_size, seen=max(looks), mel=dit.config.mel_dim, frames_per_code=dit.repeats,
    )  # fmt: skip


def _vocoder(vocoder: Any) -> Vocoder:
    samples, widest = 1, 0
    macs = vocoder.conv_pre.weight.numel()
    moved = sum(vocoder.conv_pre.weight.shape[:2])
    branches = vocoder.num_residual_blocks
    for i, (up,) in enumerate(vocoder.ups):
        macs += up.weight.numel() * samples  # a transposed convolution: every weight meets every input sample
        moved += samples * (up.weight.shape[0] + up.stride[0] * up.weight.shape[1])
        samples *= up.stride[0]
        channels = up.weight.shape[1]
        widest = max(widest, channels * samples)
        for block in vocoder.resblocks[i * branches : (i + 1) * branches]:
            macs += samples * sum(conv.weight.numel() for conv in (*block.convs1, *block.convs2))
            macs += samples * channels * sum(_taps(a) for a in block.activations)
            moved += 2 * samples * channels * (len(block.convs1) + len(block.convs2) + len(block.activations))
    macs += samples * (vocoder.conv_post.weight.numel() + channels * _taps(vocoder.activation_post))
    moved += samples * (3 * channels + 1)  # the last activation and the last convolution
    return Vocoder(macs, widest, moved)


def _taps(activation: Any) -> int:
    """Of the filters that double the rate before a nonlinearity and halve it after."""
    return sum(filter_.shape[-1] for _, filter_ in activation.named_buffers())
