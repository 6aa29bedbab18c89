"""talker_rl: preference and RL fine-tuning of speech generators, Qwen2.5-Omni's Talker first.

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
    from talker_rl.records.codec import Codec
    from talker_rl.records.prompt import Prompt
    from talker_rl.records.speech import Speech
    from talker_rl.reward.asr.registry import build_recognizer
    from talker_rl.reward.config import RecognizerConfig, RewardConfig
    from talker_rl.reward.scorer import ScoreItem, Scorer
    from talker_rl.speech.config import LoraSettings, ModelConfig, SamplingConfig, Token2WavConfig
    from talker_rl.speech.protocol import SampleRequest, TalkerSequence, Utterance
    from talker_rl.speech.registry import load
    from talker_rl.stages.pipeline import run

_HOME = {
    "Candidate": "records.candidate",
    "Codec": "records.codec",
    "LoraSettings": "speech.config",
    "ModelConfig": "speech.config",
    "PairBatch": "losses",
    "Prompt": "records.prompt",
    "RecognizerConfig": "reward.config",
    "RewardConfig": "reward.config",
    "SampleRequest": "speech.protocol",
    "SamplingConfig": "speech.config",
    "ScoreItem": "reward.scorer",
    "Scorer": "reward.scorer",
    "Speech": "records.speech",
    "TalkerSequence": "speech.protocol",
    "Token2WavConfig": "speech.config",
    "Utterance": "speech.protocol",
    "build_loss": "losses",
    "build_recognizer": "reward.asr.registry",
    "load": "speech.registry",
    "run": "stages.pipeline",
}

__all__ = [
    "Candidate", "Codec", "LoraSettings", "ModelConfig", "PairBatch", "Prompt", "RecognizerConfig", "RewardConfig",
    "SampleRequest", "SamplingConfig", "ScoreItem", "Scorer", "Speech", "TalkerSequence", "Token2WavConfig",
    "Utterance", "build_loss", "build_recognizer", "load",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"talker_rl.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
