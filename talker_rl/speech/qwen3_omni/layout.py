"""Token layout of the Talker: what stands at which position, for teacher forcing.

Every position is a sum in the Talker's width, with T(x) the Talker's projection of a text embedding (facts of
``Qwen3OmniMoeForConditionalGeneration.generate``):

    position        text side                                codec side
    0 .. U-1        T(token of the user's turns)             nothing
    +0 .. +2        T(<|im_start|>), T(assistant), T(\\n)     nothing
    +3 .. +6        T(tts_pad)                               nothink, think-bos, think-eos, speaker
    +7              T(tts_bos)                               codec-pad
    +8 = P-1        T(first reply token)                     codec-bos              -> predicts code 0 of frame 0
    P-1+t, t >= 1   stream[t-1]                              the 16 codes of frame t-1, each of its own table
                                                                                    -> predicts code 0 of frame t

The stream is the reply from its second token on, tts_eos once, then tts_pad for ever. The fifteen other codes of a
frame are the code predictor's, a row of 16 positions a frame: the hidden state that predicted the frame's first code,
then that code and the residual ones but the last; position k predicts code k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from talker_rl.base.errors import DataError
from talker_rl.records.codec import Codec
from talker_rl.speech.hashes import by_conditioning
from talker_rl.speech.packing import Packing
from talker_rl.speech.protocol import TalkerSequence
from talker_rl.speech.qwen3_omni.codec import CODEC, of_size
from talker_rl.speech.qwen3_omni.conditioning import BOS, EOS, MARKS, PAD, Conditioning
from talker_rl.speech.sampling import CodeIds
from talker_rl.speech.unwrap import unwrap_talker

NO_CODE = -1
"""Codec side of a position that has none, or has fewer than 16."""
SPECIALS = 1024
"""The last ids of the codec vocabulary, which upstream never lets be drawn, whatever the configuration says."""


@dataclass
class TalkerBatch:
    """S sequences in one packed row without padding: see :mod:`talker_rl.speech.packing`.

    L = positions of all prefixes, each once, and of the frames but where no step follows them; T = most steps; N =
    frames of all sequences, one sequence behind the other; G = 16.
    """

    text_RE: torch.Tensor
    """Text rows of the prompts, each once, before the projection."""
    text_L: torch.Tensor
    """Which of them stands at a position."""
    heard_R: torch.Tensor | None
    """Which of the rows are hidden states of sound, which have a projection of their own; None: none are."""
    codec_LG: torch.Tensor
    """Codec side: ids of each table; NO_CODE where there is none."""
    position_ids_3L: torch.Tensor
    """Rotary positions, equal on each axis but for images and video; each sequence's go on from its prefix."""
    packing: Packing
    """Which positions belong together."""
    first_ST: torch.Tensor
    """Codebook 0 of each step, or the stop; 0 at padding, which is a real code, so use the mask."""
    mask_ST: torch.Tensor
    """True on steps, the stop included."""
    framed_ST: torch.Tensor
    """True on steps that are frames."""
    predictor_ST: torch.Tensor
    """Position in L whose output predicts the step; 0 at padding."""
    frames_NG: torch.Tensor
    """All codes."""
    experts_LC: torch.Tensor | None = None
    """Experts that the rollout went through at each position, layer by layer, to be taken again (:mod:`.experts`); -1
    where nobody wrote them down."""

    def to(self, device: torch.device | str) -> TalkerBatch:
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **moved)

    def __len__(self) -> int:
        return self.first_ST.shape[0]


@dataclass(frozen=True)
class Specials:
    """Codec ids of the prefix, but for the speaker's; and the codec."""

    nothink: int
    think_bos: int
    think_eos: int
    pad: int
    bos: int
    codec: Codec = CODEC

    @classmethod
    def of(cls, talker: nn.Module) -> Specials:
        """As the Talker's configuration names them."""
        config = unwrap_talker(talker).config
        return cls(config.codec_nothink_id, config.codec_think_bos_id, config.codec_think_eos_id, config.codec_pad_id,
                   config.codec_bos_id, codec_of(talker))


def codec_of(talker: nn.Module) -> Codec:
    """The codec whose codes a Talker says."""
    config = unwrap_talker(talker).config
    return of_size(config.num_code_groups, config.code_predictor_config.vocab_size)


def code_ids(talker: nn.Module) -> CodeIds:
    """Upstream gives ``generate`` no ids, so penalties know sampled codes alone: codec-bos, which is never drawn,
    stands for what is not said yet."""
    inner = unwrap_talker(talker)
    size, stop = inner.config.text_config.vocab_size, int(inner.config.codec_eos_token_id)
    suppressed = tuple(i for i in range(size - SPECIALS, size) if i != stop)
    return CodeIds((int(inner.config.codec_bos_id),), (stop,), suppressed)


def text_rows(conditioning: Conditioning) -> torch.Tensor:
    """(6 + U + R, E): the rows that :func:`prefix_text` and :func:`stream_text` name."""
    return torch.cat([conditioning.marks, conditioning.user, conditioning.reply])


def heard_rows(conditioning: Conditioning) -> torch.Tensor:
    """(6 + U + R,) bool: which of them are hidden states."""
    out = torch.zeros(len(MARKS) + len(conditioning.user) + len(conditioning.reply), dtype=torch.bool)
    if conditioning.heard is not None:
        out[len(MARKS) : len(MARKS) + len(conditioning.user)] = conditioning.heard
    return out


def projected(inner: Any, rows_RE: torch.Tensor, heard_R: torch.Tensor | None) -> torch.Tensor:
    """(R, H): text rows, and hidden states of sound, in the Talker's width."""
    rows_RE = rows_RE.to(inner.codec_head.weight)
    out: torch.Tensor = inner.text_projection(rows_RE)
    if heard_R is None:
        return out
    return torch.where(heard_R.to(out.device)[:, None], inner.hidden_projection(rows_RE), out)


def prefix_text(conditioning: Conditioning) -> torch.Tensor:
    """Text rows of the prefix: (P,) indices."""
    user, first = len(conditioning.user), len(MARKS)
    fixed = [0, 1, 2, *[PAD] * 4, BOS, first + user]
    return torch.cat([torch.arange(first, first + user), torch.tensor(fixed)])


def prefix_codec(conditioning: Conditioning, specials: Specials) -> torch.Tensor:
    """Codec ids of the prefix: (P,), NO_CODE where there is none."""
    s = specials
    fixed = [NO_CODE] * 3 + [s.nothink, s.think_bos, s.think_eos, conditioning.speaker_id, s.pad, s.bos]
    return torch.cat([torch.full((len(conditioning.user),), NO_CODE), torch.tensor(fixed)])


def stream_text(conditioning: Conditioning, steps: int) -> torch.Tensor:
    """Text rows of the stream's first ``steps`` rows: (steps,) indices."""
    start = len(MARKS) + len(conditioning.user)
    rows = [*range(start + 1, start + len(conditioning.reply)), EOS][:steps]
    return torch.tensor(rows + [PAD] * (steps - len(rows)), dtype=torch.long)


def collate(examples: Sequence[TalkerSequence], specials: Specials, *, experts: bool = False) -> TalkerBatch:
    """Pack sequences into one row; those with the same conditioning share its prefix.

    Args:
        experts: take along which experts the rollouts went through.

    Raises:
        DataError: a sequence without ids or with another codec's, or a reply without tokens.
    """
    if not examples:
        raise DataError("an empty batch cannot be collated")
    groups = specials.codec.groups
    for example in examples:
        _check(example, specials.codec)
    frames = [torch.tensor(e.speech.codes, dtype=torch.long).view(-1, groups) for e in examples]
    first = [torch.cat([f[:, 0], _stop(e)]) for f, e in zip(frames, examples, strict=True)]
    rows: list[torch.Tensor] = []
    heard: list[torch.Tensor] = []
    text: list[torch.Tensor] = []
    codec: list[torch.Tensor] = []
    positions: list[torch.Tensor] = []
    predictors: dict[int, torch.Tensor] = {}
    chosen: list[tuple[int, bytes | None]] = []
    prompts, at, row = [], 0, 0
    for members in by_conditioning(examples):
        spoken = examples[members[0]].conditioning
        here, ids = text_rows(spoken), prefix_codec(spoken, specials)
        width, blank = len(ids), torch.full((len(ids), groups), NO_CODE)
        blank[:, 0] = ids
        text, codec = [*text, prefix_text(spoken) + row], [*codec, blank]
        placed = torch.arange(width).expand(3, -1) if spoken.position_ids is None else spoken.position_ids
        positions.append(placed)
        last, at = at + width - 1, at + width
        fed = [len(first[s]) - 1 for s in members]  # a frame is read where a step follows
        chosen += _chosen(width, fed, [examples[s].speech.experts for s in members]) if experts else []
        for s, steps in zip(members, fed, strict=True):
            text.append(stream_text(spoken, steps) + row)
            codec.append(frames[s][:steps])
            positions.append((torch.arange(steps) + spoken.next_position).expand(3, -1))
            predictors[s] = torch.cat([torch.tensor([last]), torch.arange(at, at + steps)])
            at += steps
        rows.append(here)
        heard.append(heard_rows(spoken))
        row += len(here)
        prompts.append((width, fed))
    return TalkerBatch(
        text_RE=torch.cat(rows),
        text_L=torch.cat(text),
        heard_R=torch.cat(heard) if any(e.conditioning.heard is not None for e in examples) else None,
        codec_LG=torch.cat(codec),
        position_ids_3L=torch.cat(positions, dim=1),
        packing=Packing(prompts),
        first_ST=pad_sequence(first, batch_first=True),
        mask_ST=_mask([len(f) for f in first]),
        framed_ST=_mask([len(f) for f in frames], max(len(f) for f in first)),
        predictor_ST=pad_sequence([predictors[s] for s in range(len(examples))], batch_first=True),
        frames_NG=torch.cat(frames),
        experts_LC=_together(chosen),
    )


def _chosen(width: int, fed: Sequence[int], told: Sequence[bytes | None]) -> list[tuple[int, bytes | None]]:
    """Positions of a prefix and of each sequence behind it, with the experts that were chosen there: those of the
    prefix are in every sequence's record, and the first that has one says them for all."""
    found: list[tuple[int, bytes | None]] = [(width, None)]
    for steps, one in zip(fed, told, strict=True):
        if one is None:
            found.append((steps, None))
            continue
        each, rest = divmod(len(one), width + steps)
        if rest or not each:
            raise DataError(f"the record of experts is of {len(one)} bytes, for {width + steps} positions",
                            fix="these rollouts are of another model: sample them again")
        if found[0][1] is None:
            found[0] = (width, one[: width * each])
        found.append((steps, one[width * each :]))
    return found


def _together(parts: Sequence[tuple[int, bytes | None]]) -> torch.Tensor | None:
    each = max((len(told) // positions for positions, told in parts if told), default=0)
    if not each:
        return None
    rows = [torch.full((positions, each), -1, dtype=torch.int16) if told is None else
            torch.from_numpy(np.frombuffer(told, np.uint8).reshape(positions, each).astype(np.int16))
            for positions, told in parts]
    return torch.cat(rows)


def _stop(example: TalkerSequence) -> torch.Tensor:
    stop = example.speech.stop_id
    return torch.tensor([] if stop is None else [stop], dtype=torch.long)


def _mask(lengths: Sequence[int], width: int | None = None) -> torch.Tensor:
    return torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]


def _check(example: TalkerSequence, codec: Codec) -> None:
    where, speech = example.conditioning.prompt_id, example.speech
    if not speech.ids:
        raise DataError("a sequence without ids has no log-probs", where=where)
    codec.refuse_other(speech.codec.name, where)
    if not len(example.conditioning.reply):
        raise DataError("a conditioning needs one reply row", where=where)
    if len(speech.codes) % codec.groups or codec.invalid(speech.codes) is not None:
        raise DataError(f"the codes are no frames of {codec.groups} codes each below {codec.sizes[0]}", where=where,
                        fix="codes lie flat, frame by frame")


def code_embeddings(talker: Any, codec_LG: torch.Tensor) -> torch.Tensor:
    """(L, H): the codec side. NO_CODE adds nothing; summed in one go, so that bfloat16 rounds once, as upstream."""
    inner = unwrap_talker(talker)
    tables = [inner.model.codec_embedding, *inner.code_predictor.model.codec_embedding]
    parts = [table(ids.clamp(min=0)).masked_fill((ids < 0)[:, None], 0.0)
             for table, ids in zip(tables, codec_LG.unbind(1), strict=False)]
    return torch.stack(parts, dim=1).sum(1)


def talker_inputs(talker: Any, batch: TalkerBatch) -> torch.Tensor:
    """The summed inputs (1, L, H) in the Talker's dtype."""
    inner = unwrap_talker(talker)
    text_RH = projected(inner, batch.text_RE, batch.heard_R)
    return (code_embeddings(inner, batch.codec_LG) + text_RH[batch.text_L])[None]
