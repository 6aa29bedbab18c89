"""A trained Talker goes back into a Qwen2.5-Omni."""

from __future__ import annotations

from typing import Any

from talker_rl.speech.config import ModelConfig
from talker_rl.speech.merging import Merge
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni


def _talker(model: ModelConfig) -> Any:
    return load_omni(model, parts=("talker",)).talker


MERGE = Merge(_talker, "Qwen2_5OmniForConditionalGeneration.from_pretrained", "spk_dict.pt")
