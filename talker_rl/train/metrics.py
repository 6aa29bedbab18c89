"""What is logged about a batch of pairs: TRL's names, and lengths, stops and drift, which TRL does not look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from talker_rl.losses.types import LossOutput
from talker_rl.train.collate import Batch
from talker_rl.train.rows import CHOSEN, REJECTED, Rows

_LARGEST = "/max"
_OF_STEPS = ("ratio/", "clip_ratio/", "kl_k3", "sampling/logp_difference/mean")
"""Beginnings of the names of metrics that are means over steps."""


class Window:
    """Sums over the batches of one logging window (or one evaluation), kept exactly enough to survive a resume."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def add(self, sums: Mapping[str, tuple[float, float]]) -> None:
        """Add (sum, weight) by metric name; of a name that ends in ``/max`` the largest stays."""
        for name, (total, weight) in sums.items():
            if name.endswith(_LARGEST):
                before = self.sums.get(name, [total, 1.0])[0]
                self.sums[name] = [max(before, total), 1.0]
                continue
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


def _correlation(m: Mapping[str, float]) -> float:
    """Pearson's r from n, x, y, xx, yy, xy; 0 where one of both does not vary."""
    n = m["n"]
    covariance = m["xy"] - m["x"] * m["y"] / n
    variance = (m["xx"] - m["x"] ** 2 / n) * (m["yy"] - m["y"] ** 2 / n)
    return covariance / variance**0.5 if variance > 1e-12 else 0.0


def batch_sums(batch: Batch, rows: Rows, out: LossOutput, beta: float) -> dict[str, tuple[float, float]]:
    """(sum, weight) of each metric over a batch of N groups.

    Args:
        batch: on the same device as the rows; of completions there are only the chosen's metrics, and without a
            reference none that compares with it.
        rows: what the objective was given.
        out: what it returned.
        beta: scale of `rewards/*`.

    Lengths count the stop, seconds do not. `*_drift` is mean log pi - log ref in nats per code: how far training has
    moved the policy on these sequences; a falling `logps/chosen_drift` is the alarm of unlearning.
    """
    n = len(batch)
    with torch.no_grad():
        mask, ref = rows.mask_ST, rows.ref_logps_ST
        logps = torch.where(mask, rows.logps_ST.detach().float(), 0.0)
        lengths = mask.sum(dim=1)
        last = (lengths - 1).clamp(min=0)[:, None]
        stop_logps = logps.gather(1, last)[:, 0]
        chosen, rejected = rows.of(CHOSEN), rows.of(REJECTED)
        paired = len(rejected) > 0
        values: dict[str, Tensor] = {"loss": out.per_pair.detach()}
        if paired:
            values |= {
                "length/diff": (lengths[chosen] - lengths[rejected]).float(),
                "length/chosen_shorter": (lengths[chosen] < lengths[rejected]).float()
                + 0.5 * (lengths[chosen] == lengths[rejected]).float(),
            }
        sides = {"chosen": chosen, "rejected": rejected} if paired else {"chosen": chosen}
        for side, at in sides.items():
            values[f"logps/{side}"] = logps[at].sum(dim=1)
            values[f"logps/{side}_per_code"] = logps[at].sum(dim=1) / lengths[at]
            values[f"logps/{side}_eos"] = stop_logps[at][batch.stopped_S[at]]
            values[f"length/{side}"] = lengths[at].float()
            values[f"length/{side}_seconds"] = batch.seconds_S[at]
        moments: dict[str, Tensor] = {}
        if ref is not None:
            ratios = torch.where(mask, logps - ref, 0.0)
            reward, stop_ratios = ratios.sum(dim=1), ratios.gather(1, last)[:, 0]
            for side, at in sides.items():
                values[f"logps/{side}_drift"] = (reward / lengths)[at]
                values[f"logps/{side}_eos_drift"] = stop_ratios[at][batch.stopped_S[at]]
            if paired:
                values |= {
                    "rewards/chosen": beta * reward[chosen],
                    "rewards/rejected": beta * reward[rejected],
                    "rewards/margins": beta * (reward[chosen] - reward[rejected]),
                    "rewards/accuracies": (reward[chosen] > reward[rejected]).float(),
                }
            x, y = lengths.double(), reward.double()
            moments = {"n": torch.ones_like(x), "x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}
        sums = {name: (float(v.double().sum()), float(v.numel())) for name, v in values.items()}
        sums |= _loss_metrics(out.metrics.items(), n, int(mask.sum()))
        # The batch mean is what training sees; a loss that skips pairs does not divide by all of them.
        sums["loss"] = (float(out.loss.detach()) * n, float(n))
        for name, value in moments.items():
            sums[f"_corr/{name}"] = (float(value.sum()), 1.0)
    return sums


def _loss_metrics(metrics: Iterable[tuple[str, Tensor]], n: int, steps: int) -> dict[str, tuple[float, float]]:
    """A loss's own metrics are batch means, and weigh as much as what they are means of, n pairs or all their steps;
    counts and largest values stay what they are."""
    found = {}
    for name, value in metrics:
        weight = 1.0 if name.endswith(("skipped_pairs", _LARGEST)) else steps if name.startswith(_OF_STEPS) else n
        found[name] = float(value) * weight, float(weight)
    return found
