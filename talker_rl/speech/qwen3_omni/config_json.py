"""``config.json`` of a Qwen3-Omni."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from talker_rl.base.errors import CheckpointError
from talker_rl.speech import config_json

_TALKER, _PREDICTOR = "talker_config.text_config", "talker_config.code_predictor_config"
RULES = config_json.Rules(
    model_type="qwen3_omni_moe", title="Qwen3-Omni", example="Qwen/Qwen3-Omni-30B-A3B-Instruct",
    config_class="Qwen3OmniMoeConfig",
    sections=("thinker_config.text_config", _TALKER, _PREDICTOR, "code2wav_config"),
    divided=(("num_attention_heads", "num_key_value_heads", ("thinker_config.text_config", _TALKER, _PREDICTOR)),),
    rotary=("thinker_config.text_config", _TALKER),
)


def read_config(folder: Path) -> Any:
    """The Qwen3OmniMoeConfig of a checkpoint's folder.

    Raises:
        CheckpointError: as :func:`talker_rl.speech.config_json.read_config`; or the parts' codebooks do not agree.
    """
    config = config_json.read_config(folder, RULES)
    talker, sound = config.talker_config, config.code2wav_config
    for what, counts in {
        "codebooks": {"talker": talker.num_code_groups, "code predictor": talker.code_predictor_config.num_code_groups,
                      "code2wav": sound.num_quantizers},
        "codes of a book": {"code predictor": talker.code_predictor_config.vocab_size, "code2wav": sound.codebook_size},
    }.items():
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{part} {number}" for part, number in counts.items())
            raise CheckpointError(f"config.json cannot be used: the parts differ in {what} ({told})",
                                  where=str(folder / "config.json"), fix="restore it")
    return config
