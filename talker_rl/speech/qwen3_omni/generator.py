"""A loaded Qwen3-Omni as a generator (:class:`talker_rl.speech.protocol.Generator`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from talker_rl.base.errors import ConfigError, TalkerRLError
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ConditioningConfig, LoraSettings, Token2WavConfig
from talker_rl.speech.mel import log_mel, spectrum
from talker_rl.speech.policies import Policies
from talker_rl.speech.protocol import Progress, Utterance
from talker_rl.speech.qwen3_omni.checkpoint import Qwen3
from talker_rl.speech.qwen3_omni.code2wav import decode
from talker_rl.speech.qwen3_omni.conditioning import Conditioning, compute_conditioning, conditioning_key
from talker_rl.speech.qwen3_omni.family import part_named
from talker_rl.speech.qwen3_omni.policy import TalkerPolicy, adapted


class Qwen3Generator(Policies[TalkerPolicy]):
    """The parts that were loaded, behind the protocol.

    Args:
        model: what :func:`talker_rl.speech.qwen3_omni.checkpoint.load_qwen3` gave.
    """

    def __init__(self, model: Qwen3) -> None:
        self.model = model
        self.settings = model.settings
        self.device = model.device
        self.codec = model.codec

    @property
    def speakers(self) -> list[str]:
        return sorted(self.model.speakers)

    def condition(
        self, prompts: Sequence[Prompt], cfg: ConditioningConfig | None = None, *,
        errors: dict[str, TalkerRLError] | None = None, progress: Progress | None = None,
    ) -> list[Conditioning]:
        self.part("conditioner")
        return compute_conditioning(self.model, prompts, cfg, errors=errors, progress=progress)

    def conditioning_key(self, prompt: Prompt, cfg: ConditioningConfig) -> str:
        return conditioning_key(self.model, prompt, cfg)

    def policy_of(self, module: Any) -> TalkerPolicy:
        return TalkerPolicy(module, residual_weight=self.settings.residual_weight,
                            replay_experts=self.settings.replay_experts)

    def adapted(self, settings: LoraSettings) -> LoraSettings:
        return adapted(settings, self.settings.residual_weight)

    def decode(
        self, utterances: Sequence[Utterance], settings: Token2WavConfig | None = None, *,
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        for utterance in utterances:
            self.model.speaker(utterance.speaker)
        return decode(self.part("decoder"), [u.codes for u in utterances], self.codec,
                      (settings or Token2WavConfig()).batch_size, progress=progress)

    def similarity(self, sound: np.ndarray, speaker: str) -> float | None:
        return None

    def voice(self, sound: np.ndarray) -> Mapping[str, np.ndarray]:
        return {"spectrum": spectrum(log_mel(torch.from_numpy(sound)))}

    def reference_voice(self, speaker: str) -> np.ndarray:
        raise ConfigError("this family has no encoder of speakers", where="speakers",
                          fix="compare voices by their spectrum")

    def identity(self, part: str) -> str:
        return self.model.hash_of(part_named(part))

    def part(self, part: str) -> Any:
        """A loaded part; ConfigError where it is not."""
        module = getattr(self.model, part_named(part))
        if module is None:
            raise ConfigError(f"The {part} was not loaded", fix=f'load(..., parts=[..., "{part}"])')
        return module
