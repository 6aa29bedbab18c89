"""Utterances of the micro model's base Talker, and what recognizers hear when they are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from talker_rl.base.ids import derive_seed
from talker_rl.base.sound import resample
from talker_rl.base.text.alignment import align
from talker_rl.base.text.tokens import tokens_of
from talker_rl.data.prompts import read_prompts
from talker_rl.evaluation.bootstrap import bootstrap_ci, diff_of_ratios
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.reward.asr.base import Failure
from talker_rl.speech.config import ModelConfig, SamplingConfig, Token2WavConfig
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
from talker_rl.speech.qwen2_5_omni.conditioning import compute_conditioning
from talker_rl.speech.qwen2_5_omni.rollouts import sample_candidates
from talker_rl.speech.qwen2_5_omni.token2wav import decode


@dataclass
class Spoken:
    """Sampled codes of some texts."""

    omni: Any
    prompts: list[Prompt]
    candidates: list[Candidate]
    """One each, in the order of the prompts."""

    @property
    def seeds(self) -> list[int]:
        """The decoder's."""
        return [derive_seed(0, "token2wav", c.prompt_id) for c in self.candidates]

    def decode(self, cfg: Token2WavConfig, count: int | None = None) -> list[np.ndarray]:
        """The first ``count`` as speech."""
        chosen = self.candidates[:count]
        return decode(self.omni.token2wav, [c.codes for c in chosen], [self.omni.speaker(c.speaker) for c in chosen],
                      self.seeds[:count], cfg)


def spoken(count: int, which: str = "micro:eval") -> Spoken:
    """What the base Talker makes of the first texts; candidates that cannot be decoded are left out."""
    omni = load_omni(ModelConfig(path="micro", device="cpu"))
    prompts = read_prompts(which, speakers=omni.speakers, limit=count).prompts
    seeds = [[derive_seed(0, "rollouts", p.prompt_id)] for p in prompts]
    conditionings = compute_conditioning(omni, prompts)
    made = sample_candidates(omni.talker, conditionings, seeds, SamplingConfig(max_new_tokens=500))
    kept = [(p, c) for p, c in zip(prompts, made, strict=True) if c.codes and c.end_reason != "invalid_code"]
    return Spoken(omni, [p for p, _ in kept], [c for _, c in kept])


def errors(recognizer: Any, waves: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
    """(word errors, reference words) of each utterance; what cannot be recognized counts as all deleted."""
    heard = recognizer.transcribe([resample(w, 24_000, 16_000) for w in waves], "mixed")
    counts = [
        align(tokens_of(p.text), [] if isinstance(h, Failure) else h.tokens).counts
        for p, h in zip(prompts, heard, strict=True)
    ]
    return np.array([float(c.errors) for c in counts]), np.array([float(c.length) for c in counts])


def wer_change(
    before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float, float]:
    """Points of WER by which ``after`` is worse, with the ends of the paired bootstrap's 95 % interval."""
    data = (*before, *after)
    low, high = bootstrap_ci(data, diff_of_ratios) or (float("nan"), float("nan"))
    return 100 * float(diff_of_ratios(*data)), 100 * low, 100 * high
