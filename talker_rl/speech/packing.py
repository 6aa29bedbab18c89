"""Packed rows: each prompt's prefix once, its completions behind it, no padding; and the attention that knows them.

All positions of a batch lie in one row,

    prefix 1 | completion 1a | completion 1b | prefix 2 | completion 2a | ...

A prefix sees itself, a completion its prompt's prefix and itself, both causally; rotary positions of a completion go
on from its prefix. So every position computes what it would in a row of its own, and each one is computed once: N
completions of a prompt share the forward and the backward pass of its prefix.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.nn.utils.rnn import pad_sequence

from talker_rl.base.errors import ConfigError

_NAME = "packed_"


@dataclass
class Packing:
    """How a row of L positions is divided. The attention of :func:`use_packed_attention` takes it as ``packing``."""

    prompts: list[tuple[int, list[int]]]
    """(positions of the prefix, positions of each of its completions) in the row's order; a completion may have 0."""
    _index: _Index | None = field(default=None, init=False, repr=False)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
        """Attention (1, L, H, D) of queries (1, H, L, D) to keys and values (1, K, L, D), H a multiple of K."""
        # A CPU wastes nothing on stretches of their own lengths; on a GPU so many small kernels take longer to launch
        # than the padding takes to compute.
        attention = self._stretch_by_stretch if query.device.type == "cpu" else self._padded
        return attention(query, key, value, scale, dropout)

    def _stretch_by_stretch(self, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float) -> Tensor:
        # One split and one cat: the gradient of a slice would be a whole row of zeros for each stretch.
        lengths = [n for prefix, completions in self.prompts for n in (prefix, *completions)]
        stretches = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
        masks = iter(self._tail_masks)
        out = []
        for _, completions in self.prompts:
            q, prefix_k, prefix_v = next(stretches)
            out.append(sdpa(q, prefix_k, prefix_v, None, dropout, True, scale=scale, enable_gqa=True))
            for _ in completions:
                (q, k, v), mask = next(stretches), next(masks)
                if q.shape[2]:
                    k, v = torch.cat([prefix_k, k], dim=2), torch.cat([prefix_v, v], dim=2)
                    out.append(sdpa(q, k, v, mask, dropout, scale=scale, enable_gqa=True))
        return torch.cat([x.transpose(1, 2) for x in out], dim=1)

    @cached_property
    def _tail_masks(self) -> list[Tensor]:
        """Of each completion (n, prefix + n) bool: True where a position may look."""
        return [
            torch.ones(n, prefix + n, dtype=torch.bool).tril(prefix)
            for prefix, completions in self.prompts
            for n in completions
        ]

    def _padded(self, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float) -> Tensor:
        """Two calls: all prefixes, right-padded, and all completions against their padded prefix and themselves."""
        if self._index is None:
            self._index = _Index.of(self.prompts).to(query.device)
        index = self._index
        q, k, v = (_take(x, index.prefix_UP) for x in (query, key, value))
        out = [sdpa(q, k, v, None, dropout, True, scale=scale, enable_gqa=True)]
        if index.completion_CT.numel():
            q, k, v = _take(query, index.completion_CT), _take(key, index.key_CS), _take(value, index.key_CS)
            # CUDA's kernels take a mask or grouped keys, not both.
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
            out.append(sdpa(q, k, v, index.mask_C1TS, dropout, scale=scale))
        flat = torch.cat([x.transpose(1, 2).flatten(0, 1) for x in out])
        return flat.index_select(0, index.back_L)[None]


@dataclass
class _Index:
    """Where the padded calls take their rows from, U prompts, C completions, S = P + T.

    Padding takes the prompt's first position: a NaN there spoils no other prompt, masked or not.
    """

    prefix_UP: Tensor
    completion_CT: Tensor
    key_CS: Tensor
    mask_C1TS: Tensor
    back_L: Tensor
    """Where the row's positions lie in the outputs of both calls, flattened one after the other."""

    @classmethod
    def of(cls, prompts: list[tuple[int, list[int]]]) -> _Index:
        lengths = [n for prefix, completions in prompts for n in (prefix, *completions)]
        stretches = iter(torch.arange(sum(lengths)).split(lengths))
        prefixes, completions, owner = [], [], []
        for u, (_, counts) in enumerate(prompts):
            prefixes.append(next(stretches))
            for _ in counts:
                completions.append(next(stretches))
                owner.append(u)
        first_U = torch.stack([x[0] for x in prefixes])
        prefix_UP, in_prefix_UP = _pad(prefixes, first_U)
        completion_CT, in_completion_CT = _pad(completions, first_U[owner])
        T = completion_CT.shape[1]
        before_CTP = in_prefix_UP[owner][:, None].expand(-1, T, -1)
        own_CTT = torch.ones(T, T, dtype=torch.bool).tril().expand(len(owner), T, T)
        taken = torch.cat([prefix_UP.flatten(), completion_CT.flatten()])
        real = torch.cat([in_prefix_UP.flatten(), in_completion_CT.flatten()]).nonzero()[:, 0]
        back_L = torch.empty(sum(lengths), dtype=torch.long)
        back_L[taken[real]] = real
        key_CS = torch.cat([prefix_UP[owner], completion_CT], dim=1)
        return cls(prefix_UP, completion_CT, key_CS, torch.cat([before_CTP, own_CTT], dim=2)[:, None], back_L)

    def to(self, device: torch.device) -> _Index:
        return _Index(*(x.to(device) for x in vars(self).values()))


def _pad(stretches: list[Tensor], fill_B: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S) right-padded with each row's fill, and True where there is no padding."""
    real = pad_sequence([torch.ones_like(x, dtype=torch.bool) for x in stretches], batch_first=True)
    return torch.where(real, pad_sequence(stretches, batch_first=True), fill_B[:, None]), real


def _take(x_1HLD: Tensor, index_BS: Tensor) -> Tensor:
    """Rows of L: (B, H, S, D)."""
    rows = x_1HLD[0].index_select(1, index_BS.flatten())
    return rows.unflatten(1, index_BS.shape).transpose(0, 1)


def refuse_sliding_window(talker: Any) -> None:
    """Neither packed rows nor the cache of rollouts know one; no published Talker has one.

    Raises:
        ConfigError: a Talker with sliding-window layers.
    """
    if getattr(talker.model, "has_sliding_layers", False):  # Qwen3-Omni's Talker cannot have any, and no word for it
        raise ConfigError(
            "A Talker with sliding-window attention", where="talker_config.use_sliding_window", fix="set it to false"
        )


def use_packed_attention(talker: Any) -> None:
    """From now on the Talker's attention obeys a ``packing`` given to its ``forward``; without one it is what it was.

    It stays so, because gradient checkpointing computes attention again in the backward pass.

    Args:
        talker: transformers' Talker, unwrapped.

    Raises:
        ConfigError: a Talker with sliding-window layers.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = talker.model.config
    name = config._attn_implementation
    if name.startswith(_NAME):
        return
    refuse_sliding_window(talker)
    # each model's file has its own; FSDP gives a module a class of torch's, with the model's among its bases
    eager = next(found for kind in type(talker).__mro__
                 if (found := getattr(sys.modules[kind.__module__], "eager_attention_forward", None)))
    ALL_ATTENTION_FUNCTIONS.register(_NAME + name, _obeying(ALL_ATTENTION_FUNCTIONS.get(name, eager)))
    if name in ALL_MASK_ATTENTION_FUNCTIONS:
        ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME + name, ALL_MASK_ATTENTION_FUNCTIONS[name])
    config._attn_implementation = _NAME + name


def _obeying(otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """transformers' attention interface, for packed rows; `otherwise` computes all others."""

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, packing: Packing | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if packing is None:
            result: tuple[Tensor, Tensor | None] = otherwise(module, query, key, value, mask, **options)
            return result
        return packing.attend(query, key, value, options["scaling"], options["dropout"]), None

    return attention
