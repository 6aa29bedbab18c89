"""The micro world: a small, trained, real Qwen2.5-Omni checkpoint that ships with the package.

Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

from talker_rl.base.places import micro_dir as checkpoint_dir

__all__ = ["checkpoint_dir"]
