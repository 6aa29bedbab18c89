"""The decoder's step as a CUDA graph: a host takes longer to launch its many small kernels than a GPU to run them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

ROWS = 8
"""Rows are rounded up to a multiple of it, so that few graphs serve a batch that shrinks."""

Step = Callable[[torch.Tensor, int], torch.Tensor]
"""Codes (N,) of the first N rows, slots of the cache to read -> hidden states (N, H). It reads and writes tensors that
stay where they are, and called again with the same codes it gives the same."""


class GraphedStep:
    """A step, captured once for a number of rows and slots, and replayed from then on.

    Rows beyond those that are there compute what nobody reads: theirs are rows of the cache that nobody owns. Where
    capturing fails, or a replay differs from the step itself, there is one warning, and steps run uncaptured.

    Args:
        rows: most rows at a time.
    """

    def __init__(self, rows: int) -> None:
        self._rows, self._slots, self.working = rows, 0, True
        self._clear()

    def _clear(self) -> None:
        self._graphs: dict[int, tuple[Callable[[], None], torch.Tensor, torch.Tensor]] = {}  # by rows
        self._pool: Any = None  # of the graphs' memory; a pool ends with its last graph

    def __call__(self, step: Step, codes_n: torch.Tensor, slots: int) -> torch.Tensor | None:
        """(n, H), which the next call overwrites; None where graphs do not work.

        ``slots`` are all that the cache has: with their number its tensors change, and the graphs are captured again.
        """
        if slots != self._slots:
            self._clear()
            self._slots = slots
        n = len(codes_n)
        rows = min(self._rows, -(-n // ROWS) * ROWS)
        if rows not in self._graphs:
            codes_N = torch.cat([codes_n, codes_n.new_zeros(rows - n)])
            try:
                replay, hidden_NH = self._capture(step, codes_N, slots)
            except RuntimeError as error:
                warnings.warn(f"rollouts go on without CUDA graphs: {error}", stacklevel=2)
                self._clear()
                self.working = False
                return None
            self._graphs[rows] = replay, codes_N, hidden_NH
        replay, codes_N, hidden_NH = self._graphs[rows]
        codes_N[:n] = codes_n
        replay()
        return hidden_NH[:n]

    def _capture(self, step: Step, codes_N: torch.Tensor, slots: int) -> tuple[Callable[[], None], torch.Tensor]:
        """(replay, where it leaves the hidden states); ``codes_N`` is where it reads the codes."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up in their first calls, which cannot be captured
            for _ in range(2):
                expected_NH = step(codes_N, slots)
        torch.cuda.current_stream().wait_stream(stream)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may decode meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            hidden_NH = step(codes_N, slots)
        graph.replay()
        if not torch.allclose(hidden_NH, expected_NH, rtol=1e-2, atol=1e-2):
            raise RuntimeError("a replayed step differs from the step")
        return graph.replay, hidden_NH
