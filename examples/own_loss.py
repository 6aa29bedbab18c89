"""A preference loss of one's own: DPO whose margin counts each code of the longer side less.

    PYTHONPATH=examples talker-rl run -c demo train.loss='{type: custom, import_path: own_loss:damped_dpo}'
    python examples/own_loss.py          (checks it by hand: loss ln 2 at the reference, and a gradient)

A loss is a pure function of per-token log-probs: `talker_rl.losses.PairBatch` says what comes in, `LossOutput` what
goes out. The mask counts the stop; what stands at padding must never be read.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import logsigmoid

from talker_rl.losses import LossOutput, PairBatch, build_loss


def damped_dpo(batch: PairBatch, beta: float = 0.1, damp: float = 0.5) -> LossOutput:
    """-log sigmoid(beta (r_w - r_l)), r the mean log-ratio times length ** (1 - damp): damp 0 is DPO, 1 a mean."""
    assert batch.ref_chosen_logps is not None and batch.ref_rejected_logps is not None

    def reward(policy: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ratio = torch.where(mask, policy - reference, 0.0)
        length = mask.sum(-1).clamp(min=1)
        return ratio.sum(-1) / length**damp

    chosen = reward(batch.policy_chosen_logps, batch.ref_chosen_logps, batch.chosen_mask)
    rejected = reward(batch.policy_rejected_logps, batch.ref_rejected_logps, batch.rejected_mask)
    margin = beta * (chosen - rejected)
    per_pair = -logsigmoid(margin)
    metrics = {"rewards/accuracies": (margin > 0).float().mean().detach()}
    return LossOutput(loss=per_pair.mean(), per_pair=per_pair, margin=margin, metrics=metrics)


if __name__ == "__main__":
    loss = build_loss({"type": "custom", "import_path": "own_loss:damped_dpo", "kwargs": {"beta": 0.1, "damp": 0.5}})
    policy = torch.full((2, 5), -2.0, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    out = loss(PairBatch(policy, policy.detach() - 0.0, policy.detach(), policy.detach(), mask, mask))
    out.loss.backward()
    print(f"loss at the reference {out.loss.item():.6f} (ln 2 = {math.log(2):.6f})")
    print("gradient of each code of the chosen", [round(g, 4) for g in policy.grad[:, 0].tolist()], "0 at padding:",
          policy.grad[1, 3:].tolist())
