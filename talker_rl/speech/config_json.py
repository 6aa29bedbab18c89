"""``config.json`` of a checkpoint: read, and refused where no model could be built from it or where it asks for code.

The rules here cost milliseconds, so every verb applies them. What can only be seen by building the model, even without
memory, takes seconds, and is a family's own to refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talker_rl.base.errors import CheckpointError, told
from talker_rl.speech.files import read_json, refuse_code, require_file
from talker_rl.speech.other_folders import other_model
from talker_rl.speech.quiet import quiet_transformers

IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
"""Keys, also with ``_`` before and ``_internal`` behind, by which transformers may fetch a kernel from the hub."""
PLAIN = ("eager", "sdpa", "flash_attention_2")
SIZES = ("vocab_size", "embedding_size", "hidden_size", "intermediate_size", "num_hidden_layers",
         "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "d_model",
         "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins", "n_window",
         "max_source_positions", "output_dim", "depth", "num_heads", "in_channels", "patch_size",
         "spatial_merge_size", "temporal_patch_size", "window_size", "out_hidden_size", "ff_mult", "emb_dim",
         "block_size", "repeats", "num_embeds", "mel_dim", "enc_emb_dim", "enc_dim", "enc_attention_channels",
         "enc_res2net_scale", "enc_se_channels", "upsample_initial_channel")
"""Of any section: at least 1."""


@dataclass(frozen=True)
class Rules:
    """What a family's config.json has to be."""

    model_type: str
    title: str
    """What such a model is called."""
    example: str
    """What to give instead of another."""
    config_class: str
    """transformers' name."""
    sections: tuple[str, ...]
    """Where sizes and activations stand."""
    divided: tuple[tuple[str, str, tuple[str, ...]], ...]
    """(a multiple, of what, in which sections)."""
    rotary: tuple[str, ...]
    """Sections of models whose positions have three axes."""


def read_config(folder: Path, rules: Rules) -> Any:
    """transformers' config of a checkpoint's folder.

    Attention and the like are chosen by ``model.attn_implementation``; what the file says of them is dropped.

    Raises:
        CheckpointError: config.json is missing, of another model, or cannot be used; or the folder asks for its own
            code, or for code from the hub.
    """
    import transformers

    file = require_file(folder, "config.json", "the model's geometry")
    refuse_code(folder)
    raw = read_json(file)
    if raw.get("model_type") != rules.model_type:
        what = other_model(raw.get("model_type"))
        raise CheckpointError(
            f"config.json is not a {rules.title}'s: model_type is {raw.get('model_type')!r}, not {rules.model_type!r}"
            + (f" ({what})" if what else ""),
            where=str(file),
            fix=f"give a {rules.title} checkpoint ({rules.example})",
        )
    for place, section in _objects(raw):
        if section.get("quantization_config"):
            raise CheckpointError(
                f"config.json has a {place}quantization_config: quantized checkpoints cannot be trained",
                where=str(file),
                fix="use the original checkpoint; model.thinker_quantization: 4bit makes its Thinker smaller",
            )
        _drop_implementations(section, place, file)
    try:
        with quiet_transformers():
            config = getattr(transformers, rules.config_class).from_dict(raw)
        problem = _problem(config, rules)
    except Exception as error:  # transformers validates with types of its own, which share no base
        problem = told(error)
        raise CheckpointError(f"config.json cannot be used: {problem}", where=str(file), fix="restore it") from error
    if problem:
        raise CheckpointError(f"config.json cannot be used: {problem}", where=str(file), fix="restore it")
    return config


def _objects(raw: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The configuration and all objects in it, each with its place (``talker_config.``)."""
    found = [("", raw)]
    while found:
        place, section = found.pop(0)
        yield place, section
        found += [(f"{place}{key}.", value) for key, value in section.items() if isinstance(value, dict)]


def _drop_implementations(section: dict[str, Any], place: str, file: Path) -> None:
    for name in IMPLEMENTATIONS:
        for key in (name, f"_{name}", f"_{name}_internal"):
            value = section.pop(key, None)
            if value is not None and value not in PLAIN:
                raise CheckpointError(
                    f"config.json asks for an implementation of its own: {place}{key} is {value!r}; it is never "
                    "fetched or run",
                    where=str(file),
                    fix=f"remove {key}, and choose by model.attn_implementation",
                )


def _problem(config: Any, rules: Rules) -> str | None:
    """What of the sizes, activations and rotary positions no model can be built with; None if nothing is wrong."""
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for name in rules.sections:
        section = _at(config, name)
        for key in SIZES:
            value = getattr(section, key, None)
            if isinstance(value, int) and value < 1:
                return f"{name}.{key} is {value}"
        for key in ("hidden_act", "activation_function"):
            value = getattr(section, key, None)
            if value is not None and value not in ACT2FN:
                return f"{name}.{key} is {value!r}, which is no activation"
    for many, one, names in rules.divided:
        for name in names:
            section = _at(config, name)
            if getattr(section, many) % getattr(section, one):
                return f"{name}.{many} {getattr(section, many)} is no multiple of {one} {getattr(section, one)}"
    for name in rules.rotary:
        section = _at(config, name)
        rope = section.rope_parameters or {}
        kind = rope.get("rope_type", "default")
        if kind != "default" and kind not in ROPE_INIT_FUNCTIONS:
            return f"{name}.rope_scaling has the type {kind!r}, which is none of {['default', *ROPE_INIT_FUNCTIONS]}"
        half = (getattr(section, "head_dim", None) or section.hidden_size // section.num_attention_heads) // 2
        parts = rope.get("mrope_section")
        if not (isinstance(parts, list) and len(parts) == 3 and all(isinstance(n, int) and n >= 0 for n in parts)
                and sum(parts) == half):
            return f"{name}.rope_scaling.mrope_section is {parts}; needed are three numbers whose sum is {half}"
    return None


def _at(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config
