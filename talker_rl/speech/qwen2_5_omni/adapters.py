"""Adapters asked of a Qwen2_5OmniConfig alone: whether one fits its Talker, whether one could be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from talker_rl.speech.adapter_check import check_adapter_of_class, on_meta
from talker_rl.speech.config import LoraSettings
from talker_rl.speech.lora import attach_lora
from talker_rl.speech.qwen2_5_omni.checkpoint import part_class


def meta_talker(config: Any) -> Any:
    """The Talker of a Qwen2_5OmniConfig on the meta device."""
    return on_meta(*_talker_of(config))


def _talker_of(config: Any) -> tuple[type, Any]:
    """Class and config of the Talker that a Qwen2_5OmniConfig describes."""
    cls, attribute = part_class("talker")
    return cls, getattr(config, attribute)


def check_adapter_of(config: Any, folder: Path) -> None:
    """:func:`talker_rl.speech.adapter_check.check_adapter` for the Talker that a Qwen2_5OmniConfig describes."""
    check_adapter_of_class(*_talker_of(config), folder)


def check_lora_of(config: Any, settings: LoraSettings) -> None:
    """Whether :func:`attach_lora` would take these settings, on the Talker of a Qwen2_5OmniConfig; no weights are read.

    Raises:
        ConfigError: as there.
    """
    with torch.device("meta"):
        attach_lora(meta_talker(config), settings, base_model="")
