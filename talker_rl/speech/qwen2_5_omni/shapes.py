"""Qwen2.5-Omni's shapes (:class:`talker_rl.speech.shapes.Geometry`), read off transformers' own classes."""

from __future__ import annotations

import difflib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from talker_rl.base.errors import ConfigError
from talker_rl.speech.locate import resolve_model_path
from talker_rl.speech.quiet import quiet_transformers
from talker_rl.speech.qwen2_5_omni.codec import CODEC
from talker_rl.speech.qwen2_5_omni.config_json import read_config
from talker_rl.speech.qwen2_5_omni.dit import CPU_VALUES
from talker_rl.speech.qwen2_5_omni.published import meta_parts
from talker_rl.speech.row_cache import CACHE_BLOCK
from talker_rl.speech.rows import PREFILL_PROMPTS
from talker_rl.speech.shapes import Batching, Flow, Geometry, Linear, Stack, Vocoder

SHIPPED = ("qwen2.5-omni-7b", "qwen2.5-omni-3b")
"""Geometries that the package holds: the checkpoints' own config.json."""
PUBLISHER = "qwen/"
"""Whose hub names these are; another's model of the same name may be of another geometry."""


def read_geometry(name: str) -> Geometry:
    """A shipped geometry's name, alone or as the publisher's hub name, ``micro``, a folder, or another hub name.

    Of a hub name that is not shipped, config.json alone is fetched.

    Raises:
        ConfigError: none of these.
        CheckpointError: no such folder or hub name, or its config.json cannot be used.
    """
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
    parts = meta_parts(config, name)
    text = config.thinker_config.text_config
    return Geometry(
        name=name,
        parameters={part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()},
        thinker=_stack(parts["thinker"].model, text, text.hidden_size // text.num_attention_heads),
        **of_talker(parts["talker"]),
        **of_token2wav(parts["token2wav"]),
        codec=CODEC,
        batching=Batching(CACHE_BLOCK, PREFILL_PROMPTS, CPU_VALUES),
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
