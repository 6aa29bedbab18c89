"""A Thinker in 4 bits (bitsandbytes), for cards that the whole one does not fit."""

from __future__ import annotations

from typing import Any

import torch

from talker_rl.base.errors import ConfigError
from talker_rl.speech.config import ModelConfig

UNQUANTIZED = [r"(model\.)?audio_tower", r"(model\.)?visual", "lm_head"]
"""Modules of the Thinker that a 4-bit one holds in ``model.dtype``: regular expressions of a name's beginning."""


def four_bit(model: ModelConfig, device: torch.device) -> Any:
    """transformers' BitsAndBytesConfig of the Thinker's language model: nf4, computing in ``model.dtype``.

    The towers of audio and vision and the head keep their precision: a seventh of the weights, and all of the contexts.

    Raises:
        ConfigError: bitsandbytes is not installed, or the device is not CUDA.
    """
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ConfigError("bitsandbytes is not installed: a 4-bit Thinker needs it", where="model.thinker_quantization",
                          fix='pip install "talker-rl[4bit]", or thinker_quantization: null')
    if device.type != "cuda":
        raise ConfigError(f"a 4-bit Thinker needs CUDA, and the device is {device.type}",
                          where="model.thinker_quantization", fix="model.device: cuda, or thinker_quantization: null")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=getattr(torch, model.dtype), llm_int8_skip_modules=UNQUANTIZED)
