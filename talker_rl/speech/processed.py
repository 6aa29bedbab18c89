"""Log-probs under the processed distribution that sampling draws from, of ids that were said: by teacher forcing."""

from __future__ import annotations

import torch

from talker_rl.speech.sampling import CodeSampler, Histories


@torch.no_grad()
def forced_processed(
    sampler: CodeSampler, logits_MV: torch.Tensor, ids_ST: torch.Tensor, mask_ST: torch.Tensor
) -> torch.Tensor:
    """(S, T) float32, what ``sampler.choose`` gives for these ids; 0 at padding, -inf where an id cannot be drawn.

    Args:
        sampler: with ``narrow=False``.
        logits_MV: of the M steps, row by row of the mask.
        ids_ST: what was said.
    """
    rows, steps = ids_ST.shape
    logits_MV = logits_MV.float()
    at_ST = (mask_ST.flatten().cumsum(0) - 1).view_as(ids_ST)
    histories = Histories(sampler.start_ids, rows, steps, ids_ST.device)
    histories.join([0] * rows)
    out = torch.zeros(rows, steps, device=ids_ST.device)
    for t in range(steps):
        scores, _ = sampler.scores(histories, logits_MV[at_ST[:, t].clamp(min=0)])
        out[:, t] = scores.double().log_softmax(-1).gather(-1, ids_ST[:, t : t + 1])[:, 0].float()
        histories.append(ids_ST[:, t])
    return out.masked_fill(~mask_ST, 0.0)
