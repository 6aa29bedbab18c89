"""Tiny generators of both families behind the part of the protocol that parity uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import omni_factory
import qwen3_factory
import torch

from talker_rl.speech.config import LoraSettings, ModelConfig, SamplingConfig
from talker_rl.speech.lora import attach_lora
from talker_rl.speech.qwen2_5_omni.policy import TalkerPolicy as OmniPolicy
from talker_rl.speech.qwen3_omni.policy import TalkerPolicy as Qwen3Policy
from talker_rl.speech.qwen3_omni.policy import lora_targets

FAMILIES = ("qwen2_5_omni", "qwen3_omni", "qwen3_omni, all codes")
PROMPTS = [(7, 4), (12, 6), (5, 2)]
STEPS = 12


class TinyGenerator:
    """A family's Talker at random weights.

    Args:
        name: of the family; "all codes" counts the residual ones.
        dtype: of the weights; buffers stay as they are, as from a checkpoint.
    """

    device = "cpu"

    def __init__(self, name: str, dtype: str = "float32") -> None:
        self.settings = ModelConfig(path=f"tiny {name}", dtype=dtype)
        self.weight = 1.0 if name.endswith("all codes") else 0.0
        factory: Any = {"qwen2_5_omni": omni_factory, "qwen3_omni": qwen3_factory}[name.partition(",")[0]]
        self.omni = factory is omni_factory
        self.talker = omni_factory.tiny_omni().talker if self.omni else qwen3_factory.tiny_talker(stop=1.5)
        for value in self.talker.parameters():
            value.data = value.data.to(getattr(torch, dtype))
        self.conditionings = factory.random_conditionings(PROMPTS)
        self.codec = self.made(self.talker).codec
        self.sampling = SamplingConfig(temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.05,
                                       min_new_tokens=6, max_new_tokens=STEPS,
                                       exponential_decay_length_penalty=(6, 2.0))
        self.lora = LoraSettings(r=4, lora_alpha=8)
        if not self.omni:
            self.lora = self.lora.model_copy(update={"target_modules": lora_targets(self.weight)})

    def made(self, module: Any) -> Any:
        """A policy of the family."""
        return OmniPolicy(module) if self.omni else Qwen3Policy(module, residual_weight=self.weight)

    @contextmanager
    def policy(self, weights: Any = None, *, train: LoraSettings | None = None, **_: Any) -> Iterator[Any]:
        if train is None and weights is None:
            yield self.made(self.talker)
            return
        model = attach_lora(self.talker, train or self.lora, base_model="tiny")
        if weights is not None:  # whatever their name: an adapter that changes much
            shake(model, 0.1)
        try:
            yield self.made(model)
        finally:
            model.unload()
            self.talker.eval().requires_grad_(False)


def shake(model: Any, spread: float) -> None:
    """Give an adapter something to do."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_B." in name:
                value.copy_(spread * torch.randn(value.shape, generator=generator))


@cache
def tiny(name: str, dtype: str = "float32") -> TinyGenerator:
    """One of each kind."""
    return TinyGenerator(name, dtype)


def seeds(per_prompt: int = 2) -> list[list[int]]:
    """Of all prompts' candidates."""
    return [[100 * i + k for k in range(per_prompt)] for i in range(len(PROMPTS))]
