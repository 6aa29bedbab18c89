"""The published layout of the weights: under which name, in which precision and of which shape a tensor is stored.

transformers holds the Thinker's parts one level deeper than the published files, computes the DiT's rotary frequencies
itself, and finds its place for both when it loads. Here is the way back, for a checkpoint that is written, and the list
that a checkpoint is held against before its weights are read.
"""

from __future__ import annotations

from typing import Any

from talker_rl.base.errors import CheckpointError, told

ROTARY = "token2wav.code2wav_dit_model.rotary_embed.inv_freq"
"""Stored by the publisher, (head_dim / 2,); transformers computes it."""

_UP = {f"thinker.model.{inside}.": f"thinker.{stored}." for inside, stored in
       (("audio_tower", "audio_tower"), ("visual", "visual"), ("language_model", "model"))}  # fmt: skip


def stored_name(name: str) -> str:
    """A parameter's name in the published files, from its name in transformers' whole model."""
    for inside, stored in _UP.items():
        if name.startswith(inside):
            return stored + name.removeprefix(inside)
    return name


def stored_dtype(name: str) -> str:
    """safetensors' word for the precision in which the publisher stores a tensor."""
    return "F32" if name.startswith("token2wav.") else "BF16"


def meta_parts(config: Any, where: str | None = None) -> dict[str, Any]:
    """The three parts of a Qwen2_5OmniConfig on the meta device: every name and shape, no memory.

    Args:
        where: the folder that an error names.

    Raises:
        CheckpointError: transformers cannot build a part of this config.
    """
    import torch

    from talker_rl.speech.quiet import quiet_transformers
    from talker_rl.speech.qwen2_5_omni.checkpoint import PARTS, part_class

    parts = {}
    with torch.device("meta"), quiet_transformers():
        for part in PARTS:
            cls, attribute = part_class(part)
            try:
                parts[part] = cls(getattr(config, attribute))
            except Exception as error:  # a wrong value fails wherever transformers first computes with it
                raise CheckpointError(
                    f"config.json cannot be used: the {part} cannot be built from it: {told(error)}",
                    where=where,
                    fix="restore it",
                ) from error
    return parts


def stored_shapes(config: Any, where: str | None = None) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this config stores, in the publisher's order: its name and shape.

    Args and errors: as :func:`meta_parts`.
    """
    shapes = {stored_name(f"{part}.{name}"): tuple(value.shape)
              for part, module in meta_parts(config, where).items() for name, value in module.state_dict().items()}
    shapes[ROTARY] = (config.token2wav_config.dit_config.head_dim // 2,)
    return shapes
