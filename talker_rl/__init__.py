"""talker_rl: preference and RL fine-tuning of the Qwen2.5-Omni Talker.

The names below are what a script needs (README.md shows them in fifteen lines). They are resolved on first use, so
that ``import talker_rl``, and the help of the command line, import no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from talker_rl.losses import PairBatch, build_loss
    from talker_rl.records.candidate import Candidate
    from talker_rl.records.prompt import Prompt
    from talker_rl.reward.config import RecognizerConfig, RewardConfig
    from talker_rl.reward.scorer import ScoreItem, Scorer
    from talker_rl.speech.config import ModelConfig, SamplingConfig
    from talker_rl.speech.protocol import TalkerSequence
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
    from talker_rl.speech.qwen2_5_omni.conditioning import compute_conditioning
    from talker_rl.speech.qwen2_5_omni.layout import collate
    from talker_rl.speech.qwen2_5_omni.logps import token_logps
    from talker_rl.speech.qwen2_5_omni.rollouts import sample_candidates
    from talker_rl.speech.qwen2_5_omni.token2wav import decode

_HOME = {
    "Candidate": "records.candidate",
    "Prompt": "records.prompt",
    "PairBatch": "losses",
    "build_loss": "losses",
    "load_omni": "speech.qwen2_5_omni.checkpoint",
    "compute_conditioning": "speech.qwen2_5_omni.conditioning",
    "ModelConfig": "speech.config",
    "SamplingConfig": "speech.config",
    "TalkerSequence": "speech.protocol",
    "collate": "speech.qwen2_5_omni.layout",
    "token_logps": "speech.qwen2_5_omni.logps",
    "sample_candidates": "speech.qwen2_5_omni.rollouts",
    "decode": "speech.qwen2_5_omni.token2wav",
    "RecognizerConfig": "reward.config",
    "RewardConfig": "reward.config",
    "ScoreItem": "reward.scorer",
    "Scorer": "reward.scorer",
}

__all__ = ["Candidate", "ModelConfig", "PairBatch", "Prompt", "RecognizerConfig", "RewardConfig", "SamplingConfig",
           "ScoreItem", "Scorer", "TalkerSequence", "build_loss", "collate", "compute_conditioning", "decode",
           "load_omni", "sample_candidates", "token_logps"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"talker_rl.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
