"""What is logged about a batch of pairs: TRL's names, and lengths, stops and drift, which TRL does not look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from talker_rl.losses.types import LossOutput
from talker_rl.train.collate import PreferenceBatch


class Window:
    """Sums over the batches of one logging window (or one evaluation), kept exactly enough to survive a resume."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def add(self, sums: Mapping[str, tuple[float, float]]) -> None:
        """Add (sum, weight) by metric name."""
        for name, (total, weight) in sums.items():
            entry = self.sums.setdefault(name, [0.0, 0.0])
            entry[0] += total
            entry[1] += weight

    def means(self) -> dict[str, float]:
        """Weighted means; `_corr/` sums become a correlation, `loss/skipped_pairs` stays a count."""
        moments = {name[6:]: total for name, (total, _) in self.sums.items() if name.startswith("_corr/")}
        result: dict[str, float] = {}
        for name, (total, weight) in sorted(self.sums.items()):
            if name.startswith("_corr/"):
                continue
            if name.endswith("skipped_pairs"):
                result[name] = total
            elif weight > 0:
                result[name] = total / weight
        if moments:
            result["length/reward_corr"] = _correlation(moments)
        return result

    def reduce(self, accelerator: Any) -> None:
        """Add up the windows of all processes; a no-op in a single one."""
        if accelerator.num_processes == 1:
            return
        names = sorted(self.sums)
        values = torch.tensor([self.sums[n] for n in names], dtype=torch.float64, device=accelerator.device)
        self.sums = dict(zip(names, accelerator.reduce(values, reduction="sum").tolist(), strict=True))


def _correlation(m: Mapping[str, float]) -> float:
    """Pearson's r from n, x, y, xx, yy, xy; 0 where one of both does not vary."""
    n = m["n"]
    covariance = m["xy"] - m["x"] * m["y"] / n
    variance = (m["xx"] - m["x"] ** 2 / n) * (m["yy"] - m["y"] ** 2 / n)
    return covariance / variance**0.5 if variance > 1e-12 else 0.0


def batch_sums(
    batch: PreferenceBatch, logps_BT: Tensor, out: LossOutput, beta: float
) -> dict[str, tuple[float, float]]:
    """(sum, weight) of each metric over a batch of N pairs.

    Args:
        batch: on the same device as the log-probs; of completions there are only the chosen's metrics.
        logps_BT: (S, T) policy log-probs, chosen first.
        out: what the loss returned.
        beta: scale of `rewards/*` for losses that report none (sft).

    Lengths count the stop, seconds do not. `*_drift` is mean log pi - log ref in nats per code: how far training has
    moved the policy on these sequences; a falling `logps/chosen_drift` is the alarm of unlearning.
    """
    n = len(batch)
    with torch.no_grad():
        mask = batch.talker.completion_mask_BT
        logps = torch.where(mask, logps_BT.detach().float(), 0.0)
        ratios = torch.where(mask, logps - batch.ref_logps, 0.0)
        lengths = mask.sum(dim=1)
        reward = ratios.sum(dim=1)
        drift = reward / lengths
        last = (lengths - 1).clamp(min=0)[:, None]
        stop_logps, stop_ratios = logps.gather(1, last)[:, 0], ratios.gather(1, last)[:, 0]
        chosen, rejected = slice(0, n), slice(n, 2 * n)
        values: dict[str, Tensor] = {"loss": out.per_pair.detach()}
        sides = [("chosen", chosen), ("rejected", rejected)] if batch.paired else [("chosen", chosen)]
        if batch.paired:
            values |= {
                "rewards/chosen": beta * reward[chosen],
                "rewards/rejected": beta * reward[rejected],
                "rewards/margins": beta * (reward[chosen] - reward[rejected]),
                "rewards/accuracies": (reward[chosen] > reward[rejected]).float(),
                "length/diff": (lengths[chosen] - lengths[rejected]).float(),
                "length/chosen_shorter": (lengths[chosen] < lengths[rejected]).float()
                + 0.5 * (lengths[chosen] == lengths[rejected]).float(),
            }
        for side, rows in sides:
            values[f"logps/{side}"] = logps[rows].sum(dim=1)
            values[f"logps/{side}_per_code"] = logps[rows].sum(dim=1) / lengths[rows]
            values[f"logps/{side}_drift"] = drift[rows]
            values[f"logps/{side}_eos"] = stop_logps[rows][batch.stopped[rows]]
            values[f"logps/{side}_eos_drift"] = stop_ratios[rows][batch.stopped[rows]]
            values[f"length/{side}"] = lengths[rows].float()
            values[f"length/{side}_seconds"] = batch.seconds[rows]
        sums = {name: (float(v.double().sum()), float(v.numel())) for name, v in values.items()}
        own = {name: value for name, value in out.metrics.items() if batch.paired or "rejected" not in name}
        sums |= _loss_metrics(own.items(), n)
        # The batch mean is what training sees; a loss that skips pairs does not divide by all of them.
        sums["loss"] = (float(out.loss.detach()) * n, float(n))
        x, y = lengths.double(), reward.double()
        for name, value in {"n": torch.ones_like(x), "x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}.items():
            sums[f"_corr/{name}"] = (float(value.sum()), 1.0)
    return sums


def _loss_metrics(metrics: Iterable[tuple[str, Tensor]], n: int) -> dict[str, tuple[float, float]]:
    """A loss's own metrics are batch means and weigh n pairs; counts stay counts."""
    return {
        name: (float(value), 1.0) if name.endswith("skipped_pairs") else (float(value) * n, float(n))
        for name, value in metrics
    }
