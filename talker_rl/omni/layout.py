"""Token layout of the Talker: what stands at which position, for teacher forcing.

Every position is a sum in the Thinker's width, projected to the Talker's (facts of
``Qwen2_5OmniForConditionalGeneration.generate``):

    position        thinker side                      codec side
    0 .. P-3        prompt token (hidden + embedding)  nothing
    P-2             speaker's text-bos embedding       codec-pad
    P-1             first reply token                  codec-bos      -> predicts code 0
    P-1+t, t >= 1   reply_stream[min(t-1, R-1)]        code t-1       -> predicts code t

so teacher forcing is one forward over the whole sum, and needs no model code of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from talker_rl.errors import DataError

if TYPE_CHECKING:
    from talker_rl.omni.conditioning import Conditioning

NO_CODE = -1
"""Codec side of a position that has none."""


@dataclass
class TalkerExample:
    """One sequence to score: its conditioning and its ids, the stop id last if it was sampled."""

    conditioning: Conditioning
    codes: list[int]


@dataclass
class TalkerBatch:
    """Right-padded: causal attention never looks at padding, so no attention mask is needed.

    S = longest prefix + completion - 1 (the last id is predicted, never read), T = longest completion.
    """

    thinker_BSE: torch.Tensor
    """Thinker side of the sum; padding may hold anything."""
    codec_ids_BS: torch.Tensor
    """Codec side: special placeholders resolved by :func:`talker_inputs`; NO_CODE where there is none."""
    mask_BS: torch.Tensor
    """True at real positions."""
    position_ids_3BS: torch.Tensor
    """Rotary positions of the three axes, equal for text."""
    codes_BT: torch.Tensor
    """Completion ids; 0 at padding, which is a real code, so use the mask."""
    completion_mask_BT: torch.Tensor
    """True on completion ids, the stop included."""
    predictor_BT: torch.Tensor
    """Position in S whose output predicts the id; 0 at padding."""

    def to(self, device: torch.device | str) -> TalkerBatch:
        moved = {k: v.to(device) for k, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **moved)

    def __len__(self) -> int:
        return self.codes_BT.shape[0]


# Placeholders of the two special codec ids of the prefix, so that a batch can be built without the model.
PAD_SLOT, BOS_SLOT = -2, -3


def reply_rows(reply_stream_RE: torch.Tensor, steps: int) -> torch.Tensor:
    """The stream's rows for steps 1..``steps``: (steps, E); the last row repeats for ever."""
    index = torch.arange(steps, device=reply_stream_RE.device).clamp(max=reply_stream_RE.shape[0] - 1)
    return reply_stream_RE[index]


def collate(examples: Sequence[TalkerExample]) -> TalkerBatch:
    """Stack examples into a right-padded batch.

    Raises:
        DataError: an example without ids, or a prefix shorter than the two rows that end it.
    """
    if not examples:
        raise DataError("an empty batch cannot be collated")
    rows: list[dict[str, torch.Tensor]] = []
    for example in examples:
        prefix, stream = example.conditioning.prefix, example.conditioning.reply_stream
        steps, width = len(example.codes), prefix.shape[0]
        if steps == 0:
            raise DataError("a sequence without ids has no log-probs", where=example.conditioning.prompt_id)
        if width < 2 or stream.shape[0] < 1:
            where = example.conditioning.prompt_id
            raise DataError("a conditioning needs two prefix rows and one reply row", where=where)
        codes = torch.tensor(example.codes, dtype=torch.long)
        codec = torch.full((width + steps - 1,), NO_CODE, dtype=torch.long)
        codec[width - 2], codec[width - 1], codec[width:] = PAD_SLOT, BOS_SLOT, codes[:-1]
        rows.append(
            {
                "thinker": torch.cat([prefix, reply_rows(stream, steps - 1)]),
                "codec": codec,
                "codes": codes,
                "predictor": torch.arange(width - 1, width - 1 + steps),
            }
        )
    seq_len = torch.tensor([len(r["codec"]) for r in rows])
    code_len = torch.tensor([len(r["codes"]) for r in rows])
    S, T = int(seq_len.max()), int(code_len.max())
    return TalkerBatch(
        thinker_BSE=_stack([r["thinker"] for r in rows], S, 0.0),
        codec_ids_BS=_stack([r["codec"] for r in rows], S, NO_CODE),
        mask_BS=torch.arange(S)[None] < seq_len[:, None],
        position_ids_3BS=torch.arange(S).expand(3, len(rows), S).contiguous(),
        codes_BT=_stack([r["codes"] for r in rows], T, 0),
        completion_mask_BT=torch.arange(T)[None] < code_len[:, None],
        predictor_BT=_stack([r["predictor"] for r in rows], T, 0),
    )


def _stack(rows: list[torch.Tensor], length: int, value: float) -> torch.Tensor:
    out = rows[0].new_full((len(rows), length, *rows[0].shape[1:]), value)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def unwrap_talker(model: nn.Module) -> Any:
    """The transformers Talker inside DDP, DeepSpeed and PEFT wrappers (LoRA layers stay in it)."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module):
            model = model.module  # type: ignore[assignment]
        else:
            return model


def stop_ids(talker: nn.Module) -> tuple[int, int]:
    """The codec ids that end speech: pad and eos."""
    inner = unwrap_talker(talker)
    return int(inner.codec_pad_token), int(inner.codec_eos_token)


def prefix_inputs(talker: Any, prefix_PE: torch.Tensor) -> torch.Tensor:
    """A prefix (P, E) with the embeddings of codec-pad and codec-bos added to its last two rows."""
    inner = unwrap_talker(talker)
    special = torch.tensor([inner.codec_pad_token, inner.codec_bos_token], device=prefix_PE.device)
    return torch.cat([prefix_PE[:-2], prefix_PE[-2:] + inner.get_input_embeddings()(special)])


def talker_inputs(talker: Any, batch: TalkerBatch) -> torch.Tensor:
    """The summed inputs (B, S, E) in the Talker's dtype; padding is 0 whatever the batch holds there, NaN included."""
    inner = unwrap_talker(talker)
    embed = inner.get_input_embeddings()
    ids = batch.codec_ids_BS
    ids = torch.where(ids == PAD_SLOT, inner.codec_pad_token, ids)
    ids = torch.where(ids == BOS_SLOT, inner.codec_bos_token, ids)
    has_code = ((ids >= 0) & batch.mask_BS)[..., None]
    codec = torch.where(has_code, embed(ids.clamp(0, inner.codebook_size - 1)), 0.0)
    thinker = torch.where(batch.mask_BS[..., None], batch.thinker_BSE, 0.0)
    return thinker.to(codec.dtype) + codec
