"""Qwen3-Omni's Talker as a policy (:class:`talker_rl.speech.protocol.Policy`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from talker_rl.base.errors import ConfigError
from talker_rl.base.ids import stable_hash
from talker_rl.records.candidate import Candidate
from talker_rl.speech.config import LoraSettings, SamplingConfig
from talker_rl.speech.policy_weights import PolicyWeights
from talker_rl.speech.protocol import Compared, Ended, Progress, SampleRequest, TalkerSequence
from talker_rl.speech.qwen3_omni.config import ResidualSampling
from talker_rl.speech.qwen3_omni.experts import rerouted
from talker_rl.speech.qwen3_omni.layout import Specials, TalkerBatch, codec_of, collate
from talker_rl.speech.qwen3_omni.logps import code_logps, compared, step_and_stop_logps, step_logps
from talker_rl.speech.qwen3_omni.processed import processed_logps
from talker_rl.speech.qwen3_omni.rollouts import sample_candidates
from talker_rl.speech.unwrap import unwrap_talker

TALKER = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.shared_expert\.(gate|up|down)_proj)"
PREDICTOR = r"code_predictor\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


def lora_targets(residual_weight: float = 0.0) -> str:
    """Modules that an adapter is put on: attention and the shared experts. The code predictor's own only where its
    codes count, since without they get no gradient; routed experts are no modules, and the router stays as it is."""
    return f"{TALKER}|{PREDICTOR}" if residual_weight else TALKER


def adapted(settings: LoraSettings, residual_weight: float = 0.0) -> LoraSettings:
    """The settings of a new adapter: where they name what every transformer has, which is the default, that is said of
    the modules that an adapter is put on here."""
    if settings.target_modules != LoraSettings().target_modules:
        return settings
    return settings.model_copy(update={"target_modules": lora_targets(residual_weight)})


class TalkerPolicy(PolicyWeights):
    """A Talker with its code predictor, bare or with an adapter.

    Args:
        module: transformers' Talker, or a ``peft.PeftModel`` around it.
        residual_weight: of the fifteen residual codes in a frame's log-prob, 0 to 1. With 0 a frame is its first code:
            words and length are decided there, and fifteen terms of acoustic detail would drown it.
        residual: how residual codes are drawn.
        replay_experts: whether rollouts write down which experts they went through, and scoring takes the same.
    """

    sparse = True
    sequence = None

    def share_rows(self, size: int) -> None:
        if size > 1:
            raise ConfigError("Qwen3-Omni's Talker does not share rows between processes",
                              where="train.engine.sequence_parallel", fix="leave it 1")

    def __init__(
        self, module: Any, *, residual_weight: float = 0.0, residual: ResidualSampling | None = None,
        replay_experts: bool = False,
    ) -> None:
        super().__init__(module)
        self.codec = codec_of(module)
        self.residual_weight, self.residual = residual_weight, residual or ResidualSampling()
        self.replay_experts = replay_experts
        self.terms = self.codec.groups if residual_weight else 1
        self._free = False
        """Whether routers choose for themselves, whatever a batch says."""

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Through its own experts: a record is of who sampled, whose rounding it takes out."""
        before, self._free = self._free, True
        try:
            with super().as_reference():
                yield
        finally:
            self._free = before

    def rerouted(self) -> float | None:
        return rerouted(unwrap_talker(self.module))

    def reference_identity(self) -> str:
        found = super().reference_identity()
        return stable_hash("residual", found, self.residual_weight) if self.residual_weight else found

    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingConfig, *, batch_size: int = 64,
        progress: Progress | None = None, ended: Ended | None = None,
    ) -> list[Candidate]:
        return sample_candidates(self.module, [r.conditioning for r in requests], [r.seeds for r in requests], sampling,
                                 self.residual, residual_weight=self.residual_weight, batch_size=batch_size,
                                 record_experts=self.replay_experts, progress=progress, ended=ended)

    def collate(self, sequences: Sequence[TalkerSequence]) -> TalkerBatch:
        return collate(sequences, Specials.of(self.module), experts=self.replay_experts)

    def logps(self, batch: TalkerBatch, module: nn.Module | None = None) -> Tensor:
        return step_logps(module if module is not None else self.module, self._routed(batch), self.residual_weight)

    def logps_and_stops(self, batch: TalkerBatch) -> tuple[Tensor, Tensor]:
        return step_and_stop_logps(self.module, self._routed(batch), self.residual_weight)

    def compared(self, batch: TalkerBatch) -> Compared:
        self.require_reference()
        return compared(self, replace(batch, experts_LC=None), self.residual_weight)

    @torch.no_grad()
    def code_logps(self, batch: TalkerBatch) -> Tensor:
        return code_logps(self.module, batch)

    @torch.no_grad()
    def processed_logps(self, batch: TalkerBatch, sampling: SamplingConfig) -> Tensor:
        return processed_logps(self.module, batch, sampling, self.residual, self.residual_weight)

    def _routed(self, batch: TalkerBatch) -> TalkerBatch:
        return replace(batch, experts_LC=None) if self._free else batch
