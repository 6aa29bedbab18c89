"""Rows of a rollout: a cache in which they stand at different positions, and how they close ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

CACHE_BLOCK = 256
"""Positions the cache grows by: what it holds is copied once in so many steps."""


class RowCache:
    """Keys and values of all layers, (rows, heads, capacity, head_dim) each; a row's n-th input is in slot n.

    Serves as ``past_key_values`` of a forward over one position a row: of the cache's interface the model calls
    ``update`` alone, since positions and mask are given to it.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self._at: tuple[torch.Tensor, torch.Tensor] | None = None
        self._length = 0

    @property
    def capacity(self) -> int:
        """Slots of a row."""
        return self.keys[0].shape[2]

    def reserve(self, length: int) -> None:
        """Make room for ``length`` slots."""
        for tensors in (self.keys, self.values):
            for i, tensor in enumerate(tensors):
                tensors[i] = self._grown(tensor, length)

    def place(self, slots_B: torch.Tensor, length: int) -> None:
        """Where the next forward writes: row b at ``slots_B[b]``; it reads the first ``length`` slots, reserved."""
        self._at, self._length = (torch.arange(len(slots_B), device=slots_B.device), slots_B), length

    def update(
        self, keys_BH1D: torch.Tensor, values_BH1D: torch.Tensor, layer: int, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a position of every row; returns the filled part, (B, H, length, D) views."""
        assert self._at is not None, "place comes first"
        self.keys[layer][self._at[0], :, self._at[1]] = keys_BH1D[:, :, 0]
        self.values[layer][self._at[0], :, self._at[1]] = values_BH1D[:, :, 0]
        part = (slice(len(keys_BH1D)), slice(None), slice(self._length))
        return self.keys[layer][part], self.values[layer][part]

    def fill(self, rows: Sequence[int], prefix: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Give rows the keys and values of a prefix, one pair (H, P, D) a layer."""
        length = prefix[0][0].shape[1]
        if not self.keys:
            self.keys = [k.new_zeros(self.rows, len(k), 0, k.shape[2]) for k, _ in prefix]
            self.values = [v.new_zeros(self.rows, len(v), 0, v.shape[2]) for _, v in prefix]
        self.reserve(length)
        index = torch.tensor(rows, device=prefix[0][0].device)
        for i, (keys, values) in enumerate(prefix):
            self.keys[i][index, :, :length] = keys
            self.values[i][index, :, :length] = values

    def move(self, source: torch.Tensor, target: torch.Tensor, length: int) -> None:
        """Copy the first ``length`` slots of rows over others."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]

    @staticmethod
    def _grown(tensor: torch.Tensor, length: int) -> torch.Tensor:
        missing = length - tensor.shape[2]
        if missing <= 0:
            return tensor
        # zeros: attention multiplies what no row has written by zero, so it must be finite
        return torch.nn.functional.pad(tensor, (0, 0, 0, -(-missing // CACHE_BLOCK) * CACHE_BLOCK))


def moves_of(rows: Sequence[int], count: int) -> tuple[list[tuple[int, int]], int]:
    """(moves (from, to), rows left): how the last of ``count`` rows close the gaps that ``rows`` leave."""
    gone = set(rows)
    left = count - len(gone)
    stay = [row for row in range(left, count) if row not in gone]
    return list(zip(stay, sorted(row for row in gone if row < left), strict=True)), left
