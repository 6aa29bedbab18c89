"""A loaded Qwen2.5-Omni as a generator (:class:`talker_rl.speech.protocol.Generator`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from talker_rl.base.errors import ConfigError, TalkerRLError
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ConditioningConfig, Token2WavConfig
from talker_rl.speech.mel import log_mel, spectrum
from talker_rl.speech.policies import Policies
from talker_rl.speech.protocol import Progress, Utterance
from talker_rl.speech.qwen2_5_omni.checkpoint import Omni
from talker_rl.speech.qwen2_5_omni.codec import CODEC
from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning, compute_conditioning, conditioning_key
from talker_rl.speech.qwen2_5_omni.family import part_named
from talker_rl.speech.qwen2_5_omni.policy import TalkerPolicy
from talker_rl.speech.qwen2_5_omni.speaker import speaker_embedding, speaker_similarity
from talker_rl.speech.qwen2_5_omni.token2wav import decode


class OmniGenerator(Policies[TalkerPolicy]):
    """The parts that were loaded, behind the protocol.

    Args:
        omni: what :func:`talker_rl.speech.qwen2_5_omni.checkpoint.load_omni` gave.
    """

    codec = CODEC

    def __init__(self, omni: Omni) -> None:
        self.omni = omni
        self.settings = omni.settings
        self.device = omni.device

    @property
    def speakers(self) -> list[str]:
        return sorted(self.omni.speakers)

    def condition(
        self, prompts: Sequence[Prompt], cfg: ConditioningConfig | None = None, *,
        errors: dict[str, TalkerRLError] | None = None, progress: Progress | None = None,
    ) -> list[Conditioning]:
        self.part("conditioner")
        return compute_conditioning(self.omni, prompts, cfg, errors=errors, progress=progress)

    def conditioning_key(self, prompt: Prompt, cfg: ConditioningConfig) -> str:
        return conditioning_key(self.omni, prompt, cfg)

    def policy_of(self, module: Any) -> TalkerPolicy:
        return TalkerPolicy(module)

    def decode(
        self, utterances: Sequence[Utterance], settings: Token2WavConfig | None = None, *,
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        return decode(
            self.part("decoder"), [u.codes for u in utterances],
            [self.omni.speaker(u.speaker) for u in utterances], [_seed(u) for u in utterances], settings,
            progress=progress,
        )

    def similarity(self, sound: np.ndarray, speaker: str) -> float | None:
        return speaker_similarity(self.part("decoder"), sound, self.omni.speaker(speaker))

    def voice(self, sound: np.ndarray) -> dict[str, np.ndarray]:
        mel = log_mel(torch.from_numpy(sound))
        return {"spectrum": spectrum(mel), "embedding": speaker_embedding(self.part("decoder"), mel).numpy()}

    def reference_voice(self, speaker: str) -> np.ndarray:
        mel = self.omni.speaker(speaker)["ref_mel"][0]
        found: np.ndarray = speaker_embedding(self.part("decoder"), mel).numpy()
        return found

    def identity(self, part: str) -> str:
        return self.omni.hash_of(part_named(part))

    def part(self, part: str) -> Any:
        """A loaded part; ConfigError where it is not."""
        module = getattr(self.omni, part_named(part))
        if module is None:
            raise ConfigError(f"The {part} was not loaded", fix=f'load(..., parts=[..., "{part}"])')
        return module


def _seed(utterance: Utterance) -> int:
    if utterance.seed is None:
        raise ConfigError("this family's decoder draws noise: an utterance needs a seed", where="Utterance.seed",
                          fix="give one, e.g. derive_seed(seed, 'token2wav', prompt_id)")
    return utterance.seed
