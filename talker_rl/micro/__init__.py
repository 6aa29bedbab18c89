"""The micro world: a small, trained, real Qwen2.5-Omni checkpoint that ships with the package.

Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

import os
from pathlib import Path


def checkpoint_dir() -> Path:
    """The folder that holds ``omni/``, ``asr/reward``, ``asr/eval`` and ``prompts/``.

    The environment variable ``TALKER_RL_MICRO_DIR`` names another one (for instance a fresh ``talker-rl micro build``).
    """
    override = os.environ.get("TALKER_RL_MICRO_DIR")
    return Path(override).expanduser() if override else Path(__file__).resolve().parent / "checkpoint"
