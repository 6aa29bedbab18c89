"""A trained Talker goes back into a Qwen3-Omni, whose files hold each expert by itself."""

from __future__ import annotations

from typing import Any

from talker_rl.speech.config import ModelConfig
from talker_rl.speech.merging import Merge
from talker_rl.speech.qwen3_omni.checkpoint import load_qwen3, split


def _talker(model: ModelConfig) -> Any:
    return load_qwen3(model, ("talker",)).talker


MERGE = Merge(_talker, "Qwen3OmniMoeForConditionalGeneration.from_pretrained", stored=split)
