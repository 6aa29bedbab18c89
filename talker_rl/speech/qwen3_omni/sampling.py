"""How a frame is drawn: codebook 0 by the Talker's options, then fifteen residual codes by the predictor's, each from a
uniform of the candidate's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.generation import logits_process as hf

from talker_rl.speech.qwen3_omni.config import ResidualSampling
from talker_rl.speech.sampling import draw, uniforms


class ResidualSampler:
    """Warpers and draw of residual codes, in transformers' order.

    Args:
        options: of the predictor.
        do_sample: the Talker's: False takes the best codes.
    """

    def __init__(self, options: ResidualSampling, do_sample: bool) -> None:
        self.warpers = hf.LogitsProcessorList()
        if not do_sample:
            return
        if options.temperature != 1.0:
            self.warpers.append(hf.TemperatureLogitsWarper(options.temperature))
        if options.top_k:
            self.warpers.append(hf.TopKLogitsWarper(options.top_k))
        if options.top_p < 1.0:
            self.warpers.append(hf.TopPLogitsWarper(options.top_p))

    def scores(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """Processed scores (B, C)."""
        scores: torch.Tensor = self.warpers(None, logits_BC)
        return scores

    def choose(
        self, logits_BC: torch.Tensor, uniforms_B: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next codes (B,) and their log-probs (B,) float64 under the processed scores."""
        pick, logps = draw(self.scores(logits_BC), uniforms_B)
        return pick.squeeze(-1), logps.squeeze(-1)


class FrameUniforms:
    """Of each row the uniforms of all its codes, a frame's one behind the other: a candidate depends on its seed alone.

    Args:
        rows: most rows at a time.
        steps: most frames a row.
        groups: codes of a frame.
    """

    def __init__(self, rows: int, steps: int, groups: int, device: torch.device) -> None:
        self._all = torch.zeros(rows, steps, groups, dtype=torch.float64, device=device)

    def join(self, first: int, seeds: list[int]) -> None:
        """Draw those of new rows, from row ``first`` on."""
        steps, groups = self._all.shape[1:]
        self._all[first : first + len(seeds)] = uniforms(seeds, steps * groups).view(-1, steps, groups).to(
            self._all.device)

    def of(self, steps: list[int]) -> torch.Tensor:
        """(n, groups) of the rows that are there, each at its own step."""
        n = torch.arange(len(steps), device=self._all.device)
        return self._all[n, torch.tensor(steps, device=self._all.device)]

    def leave(self, moves: Sequence[tuple[int, int]]) -> None:
        """Make the moves (from, to)."""
        for a, b in moves:
            self._all[b] = self._all[a]
