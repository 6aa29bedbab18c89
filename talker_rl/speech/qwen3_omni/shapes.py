"""Qwen3-Omni's shapes (:class:`talker_rl.speech.shapes.Geometry`), read off transformers' own classes.

What a text prompt takes of the Thinker is its embedding table: its layers cost nothing, and are not counted. A position
of the Talker passes its shared expert and as many routed ones as are chosen.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from talker_rl.base.errors import CheckpointError, ConfigError, told
from talker_rl.base.places import SHIPPED_MODELS
from talker_rl.speech.locate import resolve_model_path
from talker_rl.speech.quiet import quiet_transformers
from talker_rl.speech.qwen3_omni.checkpoint import part_class
from talker_rl.speech.qwen3_omni.codec import of_size
from talker_rl.speech.qwen3_omni.config_json import read_config
from talker_rl.speech.qwen3_omni.policy import lora_targets
from talker_rl.speech.row_cache import CACHE_BLOCK
from talker_rl.speech.rows import PREFILL_PROMPTS
from talker_rl.speech.shapes import Batching, Flow, Geometry, Linear, Stack, Vocoder

SHIPPED = ("qwen3-omni-30b-a3b",)
"""Geometries that the package holds."""
NAMES = {"qwen3-omni-30b-a3b-instruct": SHIPPED[0]}
"""Hub names, without the publisher's, of models of these geometries."""


def read_geometry(name: str) -> Geometry:
    """A shipped geometry's name, alone or as the publisher's hub name, a folder, or another hub name.

    Raises:
        ConfigError: none of these.
        CheckpointError: no such folder or hub name, or its config.json cannot be used.
    """
    short = name.lower().removeprefix("qwen/")
    short = NAMES.get(short, short)
    if name in SHIPPED_MODELS or Path(name).expanduser().is_dir() or ("/" in name and short not in SHIPPED):
        return measure(name, read_config(resolve_model_path(name, ["config.json"])))
    if short not in SHIPPED:
        raise ConfigError(f"There is no geometry {name!r}", where="--geometry",
                          fix=f"give {', '.join(SHIPPED)}, or a folder with a config.json")
    return measure(short, shipped_config(short))


def shipped_config(name: str = SHIPPED[0]) -> Any:
    """The Qwen3OmniMoeConfig of a shipped geometry."""
    from transformers import Qwen3OmniMoeConfig

    text = resources.files("talker_rl.speech.qwen3_omni").joinpath("geometry", f"{name}.json").read_text()
    held = json.loads(text)
    with quiet_transformers():
        return Qwen3OmniMoeConfig.from_dict(held.get("config", held))


def meta_part(config: Any, part: str, where: str | None = None) -> Any:
    """A part of a Qwen3OmniMoeConfig on the meta device: every name and shape, no memory.

    Raises:
        CheckpointError: transformers cannot build it of this config.
    """
    import torch

    cls, attribute = part_class(part)
    with torch.device("meta"), quiet_transformers():
        try:
            return cls(getattr(config, attribute))
        except Exception as error:  # a wrong value fails wherever transformers first computes with it
            raise CheckpointError(f"config.json cannot be used: the {part} cannot be built from it: {told(error)}",
                                  where=where, fix="restore it") from error


def measure(name: str, config: Any) -> Geometry:
    """The geometry of transformers' Qwen3OmniMoeConfig."""
    talker, sound = meta_part(config, "talker", name), meta_part(config, "code2wav", name)
    text, spoken = config.thinker_config.text_config, config.talker_config.text_config
    predictor = talker.code_predictor
    groups = config.talker_config.num_code_groups
    return Geometry(
        name=name,
        parameters={"thinker": text.vocab_size * text.hidden_size, "talker": _count(talker),
                    "token2wav": _count(sound)},
        thinker=Stack(0, text.hidden_size, 0, 1, 1, 1, ()),
        talker=Stack(
            layers=spoken.num_hidden_layers, width=spoken.hidden_size,
            inner=spoken.shared_expert_intermediate_size + spoken.num_experts_per_tok * spoken.moe_intermediate_size,
            heads=spoken.num_attention_heads, kv_heads=spoken.num_key_value_heads, head_dim=spoken.head_dim,
            linears=(*_linears(talker.model.layers, "layers."), *_experts(spoken))),
        adaptable=_linears(talker, ""), embedding=text.hidden_size, vocabulary=spoken.vocab_size,
        dit=Flow(layers=0, width=1, inner=0, weights=0, keys=0, block=1, seen=1, mel=0, frames_per_code=1),
        vocoder=_sound(sound, config.code2wav_config),
        codec=of_size(groups, config.talker_config.code_predictor_config.vocab_size),
        batching=Batching(CACHE_BLOCK, PREFILL_PROMPTS, 1),
        frame_macs=(groups * sum(x.inputs * x.outputs for x in _linears(predictor.model, ""))
                    + sum(head.weight.numel() for head in predictor.lm_head)),
        frame_layers=(groups - 1) * len(predictor.model.layers),
        targets=lora_targets(),
    )


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _linears(module: Any, prefix: str) -> tuple[Linear, ...]:
    from torch import nn

    return tuple(Linear(prefix + name, m.in_features, m.out_features) for name, m in module.named_modules()
                 if isinstance(m, nn.Linear))


def _experts(text: Any) -> list[Linear]:
    """Of each layer its router, and its chosen experts as one."""
    chosen = 3 * text.num_experts_per_tok * text.moe_intermediate_size
    return [Linear(f"layers.{i}.mlp.{name}", text.hidden_size, outputs) for i in range(text.num_hidden_layers)
            for name, outputs in (("gate", text.num_experts), ("experts", chosen))]


def _sound(code2wav: Any, config: Any) -> Vocoder:
    """code2wav, by frame: its transformer, and its convolutions at the rates that they work at."""
    from torch import nn

    macs = float(sum(x.inputs * x.outputs for x in _linears(code2wav.pre_transformer, "")))
    macs += 2 * config.num_hidden_layers * config.sliding_window * config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    rate, widest, moved = 1, 0, 0.0
    for module in nn.ModuleList([*(b for blocks in code2wav.upsample for b in blocks), *code2wav.decoder]).modules():
        if isinstance(module, nn.ConvTranspose1d):
            macs += module.weight.numel() * rate
            rate *= module.stride[0]
            channels = module.out_channels
        elif isinstance(module, nn.Conv1d):
            macs += module.weight.numel() * rate
            channels = module.out_channels
        elif isinstance(module, nn.Linear):
            macs += module.weight.numel() * rate
            channels = module.out_features
        else:
            continue
        widest, moved = max(widest, channels * rate), moved + 2 * channels * rate
    return Vocoder(int(macs), widest, int(moved))
