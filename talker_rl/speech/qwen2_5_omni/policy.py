"""Qwen2.5-Omni's Talker as a policy (:class:`talker_rl.speech.protocol.Policy`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from talker_rl.records.candidate import Candidate
from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.policy_weights import PolicyWeights
from talker_rl.speech.protocol import Compared, Ended, Progress, SampleRequest, TalkerSequence
from talker_rl.speech.qwen2_5_omni.codec import CODEC
from talker_rl.speech.qwen2_5_omni.layout import TalkerBatch, collate
from talker_rl.speech.qwen2_5_omni.logps import compared, processed_logps, token_and_stop_logps, token_logps
from talker_rl.speech.qwen2_5_omni.rollouts import sample_candidates
from talker_rl.speech.sequence import SequenceGroup, check_heads
from talker_rl.speech.unwrap import unwrap_talker


class TalkerPolicy(PolicyWeights):
    """A Talker, bare or with an adapter.

    Args:
        module: transformers' Talker, or a ``peft.PeftModel`` around it.
    """

    codec = CODEC
    sparse = False
    terms = 1
    sequence: SequenceGroup | None = None

    def share_rows(self, size: int) -> None:
        config = unwrap_talker(self.module).config
        check_heads(config.num_attention_heads, config.num_key_value_heads, size)
        self.sequence = SequenceGroup.of(size)

    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingConfig, *, batch_size: int = 64,
        progress: Progress | None = None, ended: Ended | None = None,
    ) -> list[Candidate]:
        return sample_candidates(self.module, [r.conditioning for r in requests], [r.seeds for r in requests], sampling,
                                 batch_size=batch_size, progress=progress, ended=ended)

    def collate(self, sequences: Sequence[TalkerSequence]) -> TalkerBatch:
        return collate(sequences)

    def logps(self, batch: TalkerBatch, module: nn.Module | None = None) -> Tensor:
        return token_logps(module if module is not None else self.module, batch, self.sequence)

    def logps_and_stops(self, batch: TalkerBatch) -> tuple[Tensor, Tensor]:
        return token_and_stop_logps(self.module, batch)

    def compared(self, batch: TalkerBatch) -> Compared:
        self.require_reference()
        return compared(self, batch)

    @torch.no_grad()
    def code_logps(self, batch: TalkerBatch) -> Tensor:
        return token_logps(self.module, batch)[..., None]

    @torch.no_grad()
    def processed_logps(self, batch: TalkerBatch, sampling: SamplingConfig) -> Tensor:
        return processed_logps(self.module, batch, sampling)
