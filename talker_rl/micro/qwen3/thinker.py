"""The small Qwen3-Omni's Thinker: transformers' class, trained to read aloud as the first model's is.

``python -m talker_rl.micro.qwen3.thinker``. A text prompt needs its embedding table alone; the rest is for plain
transformers, whose ``generate`` asks the Thinker what to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from talker_rl.micro import thinker
from talker_rl.micro.qwen3.config import BUILD_DIR, whole_config


def new_thinker(build: Path = BUILD_DIR) -> Any:
    """An untrained Thinker, float32."""
    from transformers import Qwen3OmniMoeThinkerForConditionalGeneration

    return Qwen3OmniMoeThinkerForConditionalGeneration(whole_config(build).thinker_config).float()


if __name__ == "__main__":
    thinker.main(new_thinker, BUILD_DIR)
