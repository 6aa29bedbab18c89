"""Token layout of the Talker: what stands at which position, for teacher forcing.

Every position is a sum in the Thinker's width, projected to the Talker's (facts of
``Qwen2_5OmniForConditionalGeneration.generate``):

    position        thinker side                      codec side
    0 .. P-3        prompt token (hidden + embedding)  nothing
    P-2             speaker's text-bos embedding       codec-pad
    P-1             first reply token                  codec-bos      -> predicts code 0
    P-1+t, t >= 1   reply_stream[min(t-1, R-1)]        code t-1       -> predicts code t

so teacher forcing is one forward over the whole sum. P is the prefix; what follows it is the completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from talker_rl.base.errors import DataError
from talker_rl.speech.hashes import by_conditioning
from talker_rl.speech.packing import Packing
from talker_rl.speech.protocol import TalkerSequence
from talker_rl.speech.qwen2_5_omni.codec import CODEC
from talker_rl.speech.sampling import CodeIds
from talker_rl.speech.sequence import SequenceGroup, shared, stretch
from talker_rl.speech.unwrap import unwrap_talker as unwrap_talker

if TYPE_CHECKING:
    from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning

NO_CODE = -1
"""Codec side of a position that has none."""


@dataclass
class TalkerBatch:
    """B sequences in one packed row without padding: see :mod:`talker_rl.speech.packing`.

    L = positions of all prefixes, each once, and of all completions but their last ids, which are predicted and never
    read; T = longest completion.
    """

    thinker_LE: torch.Tensor
    """Thinker side of the sum."""
    codec_ids_L: torch.Tensor
    """Codec side: special placeholders resolved by :func:`talker_inputs`; NO_CODE where there is none."""
    position_ids_3L: torch.Tensor
    """Rotary positions (time, height, width), equal for text; each completion goes on from its prefix."""
    packing: Packing
    """Which positions belong together."""
    codes_BT: torch.Tensor
    """Completion ids in the order of the examples; 0 at padding, which is a real code, so use the mask."""
    completion_mask_BT: torch.Tensor
    """True on completion ids, the stop included."""
    predictor_BT: torch.Tensor
    """Position in L whose output predicts the id; 0 at padding."""

    def to(self, device: torch.device | str) -> TalkerBatch:
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **moved)

    @property
    def mask_ST(self) -> torch.Tensor:
        """``completion_mask_BT`` under the protocol's name."""
        return self.completion_mask_BT

    def __len__(self) -> int:
        return self.codes_BT.shape[0]


def stretch_of(batch: TalkerBatch, sequence: SequenceGroup) -> TalkerBatch:
    """This process's stretch of a batch's row; its mask holds the ids that are predicted there."""
    packing, more, own = shared(batch.packing, len(batch.thinker_LE), sequence)
    here_BT = (batch.predictor_BT >= own.start) & (batch.predictor_BT < own.stop)
    return replace(
        batch,
        thinker_LE=stretch(batch.thinker_LE, 0, more, own),
        codec_ids_L=stretch(batch.codec_ids_L, 0, more, own, NO_CODE),
        position_ids_3L=stretch(batch.position_ids_3L, 1, more, own),
        packing=packing,
        completion_mask_BT=batch.completion_mask_BT & here_BT,
        predictor_BT=batch.predictor_BT - own.start,
    )


# Placeholders of the two special codec ids of the prefix, so that a batch can be built without the model.
PAD_SLOT, BOS_SLOT = -2, -3


def reply_rows(reply_stream_RE: torch.Tensor, steps: int) -> torch.Tensor:
    """The stream's rows for steps 1..``steps``: (steps, E); the last row repeats for ever."""
    index = torch.arange(steps, device=reply_stream_RE.device).clamp(max=reply_stream_RE.shape[0] - 1)
    return reply_stream_RE[index]


def prefix_positions(conditioning: Conditioning) -> torch.Tensor:
    """Rotary positions (3, P) of a prefix."""
    if conditioning.position_ids is None:
        return torch.arange(len(conditioning.prefix)).expand(3, -1)
    return conditioning.position_ids


def collate(examples: Sequence[TalkerSequence]) -> TalkerBatch:
    """Pack examples into one row; those with the same conditioning share its prefix.

    Raises:
        DataError: an example without ids, or a prefix shorter than the two rows that end it.
    """
    if not examples:
        raise DataError("an empty batch cannot be collated")
    for example in examples:
        _check(example)
    thinker: list[torch.Tensor] = []
    codec: list[torch.Tensor] = []
    positions: list[torch.Tensor] = []
    predictors: dict[int, torch.Tensor] = {}
    prompts, at = [], 0
    codes = [torch.tensor(example.speech.ids, dtype=torch.long) for example in examples]
    for members in by_conditioning(examples):
        spoken = examples[members[0]].conditioning
        prefix, following = spoken.prefix, spoken.next_position
        width = prefix.shape[0]
        ids = torch.full((width,), NO_CODE)
        ids[-2:] = torch.tensor([PAD_SLOT, BOS_SLOT])
        thinker, codec, positions = [*thinker, prefix], [*codec, ids], [*positions, prefix_positions(spoken)]
        last, at = at + width - 1, at + width
        for b in members:
            steps = len(codes[b]) - 1
            thinker.append(reply_rows(examples[b].conditioning.reply_stream, steps))
            codec.append(codes[b][:-1])
            positions.append(torch.arange(following, following + steps).expand(3, -1))
            predictors[b] = torch.cat([torch.tensor([last]), torch.arange(at, at + steps)])
            at += steps
        prompts.append((width, [len(codes[b]) - 1 for b in members]))
    return TalkerBatch(
        thinker_LE=torch.cat(thinker),
        codec_ids_L=torch.cat(codec),
        position_ids_3L=torch.cat(positions, dim=1),
        packing=Packing(prompts),
        codes_BT=pad_sequence(codes, batch_first=True),
        completion_mask_BT=pad_sequence([torch.ones_like(c, dtype=torch.bool) for c in codes], batch_first=True),
        predictor_BT=pad_sequence([predictors[b] for b in range(len(examples))], batch_first=True),
    )


def _check(example: TalkerSequence) -> None:
    where = example.conditioning.prompt_id
    if not example.speech.ids:
        raise DataError("a sequence without ids has no log-probs", where=where)
    CODEC.refuse_other(example.speech.codec.name, where)
    if example.conditioning.prefix.shape[0] < 2 or example.conditioning.reply_stream.shape[0] < 1:
        raise DataError("a conditioning needs two prefix rows and one reply row", where=where)


def stop_ids(talker: nn.Module) -> tuple[int, int]:
    """The codec ids that end speech: pad and eos."""
    inner = unwrap_talker(talker)
    return int(inner.codec_pad_token), int(inner.codec_eos_token)


def code_ids(talker: nn.Module) -> CodeIds:
    """Upstream's prefix is one mask id per prompt token, then pad and bos: as a set and as a tail (what penalties,
    n-grams and biases look at) three ids are the same. Upstream always suppresses codec-bos."""
    inner = unwrap_talker(talker)
    start = (int(inner.codec_mask_token), int(inner.codec_pad_token), int(inner.codec_bos_token))
    return CodeIds(start, stop_ids(inner), start[-1:])


def prefix_inputs(talker: Any, prefix_PE: torch.Tensor) -> torch.Tensor:
    """A prefix (P, E) with the embeddings of codec-pad and codec-bos added to its last two rows."""
    inner = unwrap_talker(talker)
    special = torch.tensor([inner.codec_pad_token, inner.codec_bos_token], device=prefix_PE.device)
    return torch.cat([prefix_PE[:-2], prefix_PE[-2:] + inner.get_input_embeddings()(special)])


def talker_inputs(talker: Any, batch: TalkerBatch) -> torch.Tensor:
    """The summed inputs (1, L, E) in the Talker's dtype."""
    inner = unwrap_talker(talker)
    embed = inner.get_input_embeddings()
    ids = batch.codec_ids_L
    ids = torch.where(ids == PAD_SLOT, inner.codec_pad_token, ids)
    ids = torch.where(ids == BOS_SLOT, inner.codec_bos_token, ids)
    codec = torch.where((ids >= 0)[:, None], embed(ids.clamp(min=0)), 0.0)
    return (batch.thinker_LE.to(codec.dtype) + codec)[None]
