"""Pairs with their conditionings and reference log-probs, and the batch that one forward pass takes.

What the Trainer sees of a batch is deliberately little: `pair_index` (so that it can count), and one object that it
does not look into. A key named `labels` would change the scaling of the loss, and DeepSpeed casts every float
tensor that it finds in a batch to its own dtype, where a reference sum of -3000 nats moves by 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from talker_rl.base.errors import StageError
from talker_rl.base.figures import count
from talker_rl.records.pair import Pair
from talker_rl.speech.protocol import TalkerSequence
from talker_rl.speech.qwen2_5_omni.layout import TalkerBatch
from talker_rl.speech.qwen2_5_omni.layout import collate as collate_examples

if TYPE_CHECKING:
    from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning


@dataclass
class PairExample:
    """A pair ready to train on."""

    pair: Pair
    conditioning: Conditioning
    ref_chosen: Tensor
    """(len(pair.chosen),) float32 reference log-probs."""
    ref_rejected: Tensor
    """(len(pair.rejected),) float32 reference log-probs."""


class PairDataset(torch.utils.data.Dataset):
    """Examples by index; an item carries its index so that errors can name the pair."""

    def __init__(self, examples: Sequence[PairExample]) -> None:
        self.examples = list(examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[int, PairExample]:
        return index, self.examples[index]


@dataclass
class PreferenceBatch:
    """N pairs as S = 2N sequences: rows 0..N-1 are chosen, rows N..2N-1 rejected. Of completions there are S = N."""

    talker: TalkerBatch
    """S sequences, completions right-padded to T."""
    ref_logps: Tensor
    """(S, T) float32; 0 at padding."""
    seconds: Tensor
    """(S,) float32 durations, the stop not counted."""
    stopped: Tensor
    """(S,) bool: the sequence ends with its stop id (False: it was cut)."""
    pair_ids: list[str]

    def __len__(self) -> int:
        return len(self.pair_ids)

    @property
    def paired(self) -> bool:
        """Whether the rows have rejected ones."""
        return len(self.seconds) > len(self)

    def to(self, device: torch.device | str, **_: Any) -> PreferenceBatch:
        """The batch on a device; extra options such as `non_blocking` are taken and not needed."""
        return replace(
            self,
            talker=self.talker.to(device),
            ref_logps=self.ref_logps.to(device),
            seconds=self.seconds.to(device),
            stopped=self.stopped.to(device),
        )


def collate_pairs(items: Sequence[tuple[int, PairExample]]) -> dict[str, Any]:
    """Data collator of the trainer: (index, example) items -> {"pair_index": (N,), "preference": PreferenceBatch}."""
    examples = [example for _, example in items]
    losers = [e for e in examples if e.pair.rejected.steps]
    if losers and len(losers) < len(examples):
        raise StageError("pairs and completions cannot share a batch", where=examples[0].pair.pair_id,
                         fix="train a variant on either")  # fmt: skip
    sequences = [TalkerSequence(e.conditioning, e.pair.chosen) for e in examples]
    sequences += [TalkerSequence(e.conditioning, e.pair.rejected) for e in losers]
    talker = collate_examples(sequences)
    mask = talker.completion_mask_BT
    references = torch.cat([e.ref_chosen for e in examples] + [e.ref_rejected for e in examples]).float()
    seconds = [e.pair.chosen_seconds for e in examples] + [e.pair.rejected_seconds for e in losers]
    batch = PreferenceBatch(
        talker=talker,
        ref_logps=torch.zeros(mask.shape).masked_scatter(mask.cpu(), references),
        seconds=torch.tensor(seconds, dtype=torch.float32),
        stopped=torch.tensor([s.speech.stopped for s in sequences]),
        pair_ids=[e.pair.pair_id for e in examples],
    )
    return {"pair_index": torch.tensor([index for index, _ in items]), "preference": batch}


def fit_length(pairs: Sequence[Pair], max_length: int | None) -> tuple[list[Pair], dict[str, int]]:
    """Pairs within `max_length` codes (the stop included), and what was done to the others.

    A longer rejected is cut (`rejected_cut`); a pair with a longer chosen is left out (`chosen_too_long`): a chosen
    that was cut would teach the Talker not to stop.
    """
    counts = {"chosen_too_long": 0, "rejected_cut": 0}
    if max_length is None:
        return list(pairs), counts
    kept: list[Pair] = []
    for pair in pairs:
        if pair.chosen.steps > max_length:
            counts["chosen_too_long"] += 1
            continue
        if pair.rejected.steps > max_length:
            counts["rejected_cut"] += 1
            pair = replace(pair, rejected=pair.rejected.cut(max_length))
        kept.append(pair)
    return kept, counts


def by_prompt(
    conditionings: Mapping[str, Conditioning] | Iterable[Conditioning], pairs: Iterable[Pair]
) -> dict[str, Conditioning]:
    """Conditioning by prompt id, for every prompt of the pairs.

    Raises:
        StageError: a prompt of the pairs has no conditioning.
    """
    values = conditionings.values() if isinstance(conditionings, Mapping) else conditionings
    found = {conditioning.prompt_id: conditioning for conditioning in values}
    missing = sorted({pair.prompt_id for pair in pairs} - set(found))
    if missing:
        raise StageError(
            f"no conditioning for {count(len(missing), 'prompt')} of the pairs, the first is {missing[0]}",
            where="conditioning",
            fix="run the conditioning stage on the prompts of these pairs",
        )
    return found
