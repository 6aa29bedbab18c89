"""Examples, and the batch of them that one forward pass takes.

What the Trainer sees of a batch is deliberately little: `index` (so that it can count), and one object that it does not
look into. A key named `labels` would change the scaling of the loss, and DeepSpeed casts every float tensor that it
finds in a batch to its own dtype, where a reference sum of -3000 nats moves by 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from talker_rl.base.errors import StageError
from talker_rl.losses.types import Share
from talker_rl.speech.protocol import Policy, PolicyBatch, TalkerSequence
from talker_rl.train.processes import part


@dataclass
class Example:
    """A record ready to train on: the sequences of one group."""

    name: str
    """The pair's or the completion's id."""
    sequences: list[TalkerSequence]
    """The chosen, and the rejected if there is one."""
    ref_logps: list[Tensor] | None = None
    """(steps,) float32 of each sequence; None: the trainer computes them where they are needed."""
    behaviour_logps: list[Tensor] | None = None
    """(steps,) float32 of each sequence, as sampling recorded them."""
    classes: list[Tensor] | None = None
    """(steps,) int64 of each sequence: places in ``token_classes.CLASSES``."""
    advantages: list[Tensor] | None = None
    """(steps,) float32 of each sequence, where it was judged."""
    weights: list[Tensor] | None = None
    """(steps,) float32 of each sequence: what its steps count for; None is 1."""
    imitate: float = 0.0
    """What it counts for in a term that imitates (``SampleBatch.imitate``)."""


class Examples(torch.utils.data.Dataset):
    """Examples by index; an item carries its index."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[int, Example]:
        return index, self.examples[index]


@dataclass
class Batch:
    """N groups as S sequences, all chosen first: S = 2N of pairs, S = N of completions."""

    talker: PolicyBatch
    ref_logps_ST: Tensor | None
    """(S, T) float32, 0 at padding."""
    behaviour_logps_ST: Tensor | None
    """(S, T) float32, 0 at padding."""
    class_ST: Tensor | None
    """(S, T) int64: places in ``token_classes.CLASSES``, 0 at padding."""
    advantage_ST: Tensor | None
    """(S, T) float32, 0 at padding."""
    weight_ST: Tensor | None
    """(S, T) float32, 0 at padding; None: 1."""
    imitate_S: Tensor
    """(S,) float32."""
    group_S: Tensor
    """(S,) int64, in [0, N)."""
    side_S: Tensor
    """(S,) int64: see :mod:`talker_rl.train.rows`."""
    seconds_S: Tensor
    """(S,) float32 durations, the stop not counted."""
    stopped_S: Tensor
    """(S,) bool: the sequence ends with its stop id (False: it was cut)."""
    names: list[str]
    """Of the groups."""
    whole: list[str] = field(default_factory=list)
    """Of the groups of the batch that this is a share of; in a single process the same."""
    share: Share | None = None
    """None in a single process."""
    weight: float = 1.0
    """The mean over processes of (mean over a share x weight) is the mean over the whole batch. 0: the batch had too
    few groups, and this share only fills this process's turn; it is not counted anywhere."""
    mean_steps: float | None = None
    """Mean steps of a sequence over all batches of this optimizer step; None: this batch is all of it."""
    fresh: bool = False
    """Whether the policy is the one that these were sampled from, to the last bit of its weights."""

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str, **_: Any) -> Batch:
        """The batch on a device; extra options such as `non_blocking` are taken and not needed."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self)
                 if torch.is_tensor(getattr(self, f.name))}
        return replace(self, talker=self.talker.to(device), **moved)


class Collator:
    """Data collator of the trainer: (index, example) items -> {"index": (n,), "batch": Batch}.

    Every process is given the items of the same whole batch, which is the one that a single process would take, and
    packs its own contiguous share. So all know what the batch holds, and nothing has to be asked of the others.

    Args:
        policy: packs the sequences.
        world, rank: processes, and which of them this is.
    """

    def __init__(self, policy: Policy, world: int = 1, rank: int = 0) -> None:
        self._pack = policy.collate
        self.world, self.rank = world, rank

    def __call__(self, items: Sequence[tuple[int, Example]]) -> dict[str, Any]:
        everything = [example for _, example in items]
        sides = len(everything[0].sequences)
        if any(len(example.sequences) != sides for example in everything):
            raise StageError("pairs and completions cannot share a batch", where=everything[0].name,
                             fix="train a variant on either")
        own = part(len(items), self.world, self.rank)
        examples = everything[own]
        weight = len(examples) * self.world / len(items)
        examples = examples or everything[:1]
        sequences = [e.sequences[side] for side in range(sides) for e in examples]
        talker = self._pack(sequences)
        batch = Batch(
            talker=talker,
            ref_logps_ST=_in_place(talker.mask_ST, [e.ref_logps for e in examples], sides),
            behaviour_logps_ST=_in_place(talker.mask_ST, [e.behaviour_logps for e in examples], sides),
            class_ST=_in_place(talker.mask_ST, [e.classes for e in examples], sides, torch.int64),
            advantage_ST=_in_place(talker.mask_ST, [e.advantages for e in examples], sides),
            weight_ST=_in_place(talker.mask_ST, [e.weights for e in examples], sides),
            imitate_S=torch.tensor([e.imitate for _ in range(sides) for e in examples], dtype=torch.float32),
            group_S=torch.arange(len(examples)).repeat(sides),
            side_S=torch.arange(sides).repeat_interleave(len(examples)),
            seconds_S=torch.tensor([s.speech.seconds for s in sequences], dtype=torch.float32),
            stopped_S=torch.tensor([s.speech.stopped for s in sequences]),
            names=[e.name for e in examples],
            whole=[e.name for e in everything],
            share=_share(everything, own.start) if self.world > 1 else None,
            weight=weight,
        )
        return {"index": torch.tensor([index for index, _ in items]), "batch": batch}


def _in_place(
    mask_ST: Tensor, of_groups: list[list[Tensor] | None], sides: int, dtype: torch.dtype = torch.float32
) -> Tensor | None:
    """Numbers a step of each sequence, where the mask has its steps: (S, T); None where a group has none."""
    given = [numbers for numbers in of_groups if numbers is not None]
    if len(given) < len(of_groups):
        return None
    values = torch.cat([numbers[side] for side in range(sides) for numbers in given]).to(dtype)
    return torch.zeros(mask_ST.shape, dtype=dtype).masked_scatter(mask_ST.cpu(), values)


def _share(everything: Sequence[Example], first: int) -> Share:
    steps = [[s.speech.steps for s in example.sequences] for example in everything]
    return Share(first, len(everything), sum(own[0] for own in steps), max(map(max, steps)))
