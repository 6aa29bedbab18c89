"""``config.json`` of a Qwen2.5-Omni."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from talker_rl.speech import config_json

RULES = config_json.Rules(
    model_type="qwen2_5_omni", title="Qwen2.5-Omni", example="Qwen/Qwen2.5-Omni-7B or Qwen/Qwen2.5-Omni-3B",
    config_class="Qwen2_5OmniConfig",
    sections=("thinker_config.text_config", "thinker_config.audio_config", "thinker_config.vision_config",
              "talker_config", "token2wav_config.dit_config", "token2wav_config.bigvgan_config"),
    divided=(("hidden_size", "num_attention_heads", ("thinker_config.text_config", "thinker_config.vision_config")),
             ("d_model", "encoder_attention_heads", ("thinker_config.audio_config",)),
             ("num_attention_heads", "num_key_value_heads", ("thinker_config.text_config", "talker_config"))),
    rotary=("thinker_config.text_config", "talker_config"),
)


def read_config(folder: Path) -> Any:
    """The Qwen2_5OmniConfig of a checkpoint's folder; to build the model, even without memory, takes seconds:
    :func:`talker_rl.speech.qwen2_5_omni.published.meta_parts` refuses what is left.

    Raises:
        CheckpointError: as :func:`talker_rl.speech.config_json.read_config`.
    """
    return config_json.read_config(folder, RULES)
