"""A weighted sum of losses."""

from __future__ import annotations

import torch
from torch import Tensor

from talker_rl.losses.build import build_loss
from talker_rl.losses.config import MixLossConfig
from talker_rl.losses.types import LossOutput, PairBatch, SampleBatch


class MixLoss:
    """loss = sum of weight * loss over the terms, and likewise ``per_pair``.

    ``margin`` and the metrics are those of the first term that compares the two completions; each term's own loss is
    in the metric ``loss/<type>`` (``loss/<type>_2`` for a second one of that type).
    """

    def __init__(self, config: MixLossConfig) -> None:
        self.terms = [(term.weight, build_loss(term.loss)) for term in config.terms]
        self.needs_reference = any(loss.needs_reference for _, loss in self.terms)
        self.names: list[str] = []
        for _, loss in self.terms:
            seen = sum(name.split(".")[0] == loss.config.type for name in self.names)
            self.names.append(loss.config.type if not seen else f"{loss.config.type}.{seen + 1}")

    def __call__(self, batch: PairBatch | SampleBatch) -> LossOutput:
        outputs: list[LossOutput] = []
        for weight, loss in self.terms:
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight != 0):
                outputs.append(loss(batch))
        # A term of weight 0 is only watched; leaving it out keeps 0 * inf from the sum.
        active = [(weight, out) for (weight, _), out in zip(self.terms, outputs, strict=True) if weight != 0]
        total = sum((weight * out.loss for weight, out in active), outputs[0].loss.new_zeros(()))
        per_pair = sum((weight * out.per_pair for weight, out in active), torch.zeros_like(outputs[0].per_pair))
        main = next((out for out in outputs if "rewards/margins" in out.metrics), outputs[0])
        metrics: dict[str, Tensor] = dict(main.metrics)
        skipped = [out.metrics["loss/skipped_pairs"] for out in outputs if "loss/skipped_pairs" in out.metrics]
        if skipped:
            metrics["loss/skipped_pairs"] = torch.stack(skipped).max()
        for name, out in zip(self.names, outputs, strict=True):
            metrics[f"loss/{name.replace('.', '_')}"] = out.loss.detach()
            for key, value in out.metrics.items():
                metrics.setdefault(key, value)
        return LossOutput(loss=total, per_pair=per_pair, margin=main.margin, metrics=metrics)
