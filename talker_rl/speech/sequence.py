"""Sequence parallelism (DeepSpeed-Ulysses, Jacobs et al. 2023) for packed rows: one row over the processes of a group.

Each process holds a stretch of the row. Projections, feed-forward and head see their own positions alone; around
attention two exchanges give each process the whole row for its share of the heads, and back. The packed attention
itself does not know of it, no mask is built, and no loss sees less than whole sequences: log-probs are summed over the
group, where each process has zeros beyond its stretch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from talker_rl.base.errors import ConfigError
from talker_rl.speech.packing import Packing

_WHERE = "train.engine.sequence_parallel"


@dataclass(frozen=True)
class SequenceGroup:
    """Neighboring processes that share each row."""

    group: Any
    rank: int
    """Of this process in it."""
    size: int

    @classmethod
    def of(cls, size: int) -> SequenceGroup | None:
        """This process's, where rows are shared by ``size``; all processes must ask. None: every one has whole rows.

        Raises:
            ConfigError: the processes cannot be divided so.
        """
        if size == 1:
            return None
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if world % size:
            raise ConfigError(f"{world} processes cannot share rows by {size}", where=_WHERE,
                              fix=f"start a multiple of {size}")
        mine = None
        for first in range(0, world, size):
            ranks = list(range(first, first + size))
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                mine = cls(group, dist.get_rank() - first, size)
        return mine

    def summed(self, x: Tensor) -> Tensor:
        """The group's sum, in each of its processes. All compute the same loss of it and each the gradient of its own
        part, times the group's size: engines take the mean over all processes."""
        return _Sum.apply(x, self.group, self.size)  # type: ignore[no-untyped-call, no-any-return]


def check_heads(heads: int, key_heads: int, size: int) -> None:
    """Whether each process of a group gets whole groups of heads with their keys.

    Raises:
        ConfigError: it does not.
    """
    if heads % size or key_heads % size:
        fitting = [n for n in range(1, key_heads + 1) if heads % n == 0 and key_heads % n == 0]
        raise ConfigError(f"{heads} heads with {key_heads} of keys cannot be shared by {size} processes", where=_WHERE,
                          fix=f"one of {', '.join(map(str, fitting))}")


@dataclass
class SharedPacking(Packing):
    """A packing whose row lies over a group."""

    sequence: SequenceGroup | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
        """As ``Packing.attend``, of a stretch: (1, H, l, D) -> (1, l, H, D)."""
        assert self.sequence is not None
        q, k, v = (_Exchange.apply(x, self.sequence, True) for x in (query, key, value))  # type: ignore[no-untyped-call]
        out_1LHD = super().attend(q, k, v, scale, dropout)
        back = _Exchange.apply(out_1LHD.transpose(1, 2), self.sequence, False)  # type: ignore[no-untyped-call]
        return back.transpose(1, 2)  # type: ignore[no-any-return]


def shared(packing: Packing, length: int, sequence: SequenceGroup) -> tuple[SharedPacking, int, slice]:
    """A row over a group: its packing, how many positions fill it up to a multiple of the group (as a prompt of their
    own, which nobody looks at), and this process's stretch of it."""
    more = -length % sequence.size
    own = (length + more) // sequence.size
    prompts: Sequence[tuple[int, list[int]]] = [*packing.prompts, *([(more, [])] if more else [])]
    return SharedPacking(list(prompts), sequence=sequence), more, slice(own * sequence.rank, own * (sequence.rank + 1))


def stretch(x: Tensor, dim: int, more: int, own: slice, fill: float = 0) -> Tensor:
    """A row's stretch along a dimension, the row filled up."""
    shape = list(x.shape)
    shape[dim] = more
    whole = torch.cat([x, x.new_full(shape, fill)], dim) if more else x
    return whole.narrow(dim, own.start, own.stop - own.start).contiguous()


class _Exchange(torch.autograd.Function):
    """(1, H, l, D) of a stretch -> (1, H/P, L, D) of the whole row for this process's heads, or back; its gradient is
    the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sequence: SequenceGroup, to_heads: bool) -> Tensor:
        ctx.sequence, ctx.to_heads = sequence, to_heads
        return _exchanged(x, sequence, to_heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _exchanged(grads[0], ctx.sequence, not ctx.to_heads), None, None


def _exchanged(x: Tensor, sequence: SequenceGroup, to_heads: bool) -> Tensor:
    _, heads, length, width = x.shape
    size = sequence.size
    if to_heads:
        sent = x[0].unflatten(0, (size, heads // size)).contiguous()  # (P, H/P, l, D): to each process its heads
    else:
        sent = x[0].unflatten(1, (size, length // size)).transpose(0, 1).contiguous()  # to each its stretch
    got = torch.empty_like(sent)
    dist.all_to_all_single(got, sent, group=sequence.group)
    if to_heads:
        return got.transpose(0, 1).reshape(1, heads // size, size * length, width)
    return got.reshape(1, size * heads, length // size, width)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, scale: float) -> Tensor:
        ctx.scale = scale
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.scale, None, None
