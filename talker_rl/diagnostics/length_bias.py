"""Length bias of the implicit reward beta * (log pi - log ref), on pairs and on fresh samples.

Pair rows are those of ``pairs.parquet``, one a (step, pair); functions other than :func:`margin_curves` take the rows
of one step. Ties count half in every accuracy, so that an untrained policy has 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from talker_rl.diagnostics.fits import Notes, Row, column, length_fit, pearson

MAX_BINS = 8
"""Bins an axis of the heat map, at most."""

GROUPS = {"held_out": True, "train": False}
"""Name of a group of pairs -> its value of the column ``held_out``."""


def implicit_reward(pairs: Sequence[Row], samples: Sequence[Row], beta: float, notes: Notes) -> dict[str, Row | None]:
    """Least squares of the implicit reward on duration, on ``held_out`` and ``train`` pairs (chosen and rejected alike)
    and on ``samples`` of the trained policy. See :func:`length_fit` for what each holds."""
    found: dict[str, Row | None] = {}
    for group, held_out in GROUPS.items():
        rows = [row for row in pairs if row["held_out"] == held_out]
        if not rows:
            found[group] = None
            notes.append(f"implicit_reward.{group}: {_no_pairs(group)}")
            continue
        sides = [
            (column(rows, f"{side}_seconds"), column(rows, f"policy_{side}_logp") - column(rows, f"ref_{side}_logp"))
            for side in ("chosen", "rejected")
        ]
        seconds, ratios = (np.concatenate(parts) for parts in zip(*sides, strict=True))
        found[group] = length_fit(seconds, beta * ratios, f"implicit_reward.{group}", notes)
    scored = [row for row in samples if row["policy_logp"] is not None]
    ratios = column(scored, "policy_logp") - column(scored, "ref_logp")
    found["samples"] = length_fit(column(scored, "seconds"), beta * ratios, "implicit_reward.samples", notes)
    return found


def within_pairs(pairs: Sequence[Row], notes: Notes) -> dict[str, Row | None]:
    """Does the reward's preference within a pair follow length? For ``held_out`` and ``train`` pairs.

    Returns: per group ``reward_length_corr`` (Pearson, reward difference against length difference),
        ``sign_agreement`` (share in which both differences have the same sign, where lengths differ), ``accuracy``
        (chosen has the larger implicit reward) and its split by which side is longer, and what the rules "pick the
        shorter" and "pick the longer" would score on the same pairs.
    """
    found: dict[str, Row | None] = {}
    for group, held_out in GROUPS.items():
        rows = [row for row in pairs if row["held_out"] == held_out]
        if rows:
            found[group] = _within(rows, f"within_pairs.{group}", notes)
        else:
            found[group] = None
            notes.append(f"within_pairs.{group}: {_no_pairs(group)}")
    return found


def _within(rows: Sequence[Row], label: str, notes: Notes) -> Row:
    reward = column(rows, "margin_raw")  # beta is positive: it changes neither a sign nor a correlation
    length = column(rows, "chosen_codes") - column(rows, "rejected_codes")
    return {
        "n": len(rows),
        "reward_length_corr": pearson(length, reward, f"{label}.reward_length_corr", notes),
        "sign_agreement": _share_above_0((reward * length)[length != 0], f"{label}.sign_agreement", notes),
        "n_lengths_differ": int((length != 0).sum()),
        "accuracy": _share_above_0(reward, f"{label}.accuracy", notes),
        "accuracy_chosen_longer": _share_above_0(reward[length > 0], f"{label}.accuracy_chosen_longer", notes),
        "accuracy_chosen_shorter": _share_above_0(reward[length < 0], f"{label}.accuracy_chosen_shorter", notes),
        "n_chosen_longer": int((length > 0).sum()),
        "n_chosen_shorter": int((length < 0).sum()),
        "pick_shorter_accuracy": _share_above_0(-length, f"{label}.pick_shorter_accuracy", notes),
        "pick_longer_accuracy": _share_above_0(length, f"{label}.pick_longer_accuracy", notes),
    }


def _share_above_0(values: np.ndarray, label: str, notes: Notes) -> float | None:
    if not len(values):
        notes.append(f"{label}: no such pair")
        return None
    return float((values > 0).mean() + 0.5 * (values == 0).mean())


def _no_pairs(group: str) -> str:
    return "no pairs were held out (checkpoint.held_out_share)" if group == "held_out" else "there are no pairs"


def heatmap(pairs: Sequence[Row], notes: Notes) -> Row | None:
    """Mean of log pi(rejected) - log pi(chosen) over chosen length x rejected length, as the LD-DPO paper draws it.

    Returns: ``chosen_edges``, ``rejected_edges`` (seconds, the same bins for both), ``mean`` (rows are chosen bins;
        None where a bin is empty) and ``count``. None without pairs.
    """
    if not pairs:
        notes.append("heatmap: there are no pairs")
        return None
    from scipy import stats

    chosen, rejected = column(pairs, "chosen_seconds"), column(pairs, "rejected_seconds")
    values = column(pairs, "policy_rejected_logp") - column(pairs, "policy_chosen_logp")
    bins = min(MAX_BINS, max(1, math.isqrt(len(pairs))))
    edges = np.histogram_bin_edges(np.concatenate([chosen, rejected]), bins=bins)
    mean, count = (
        stats.binned_statistic_2d(chosen, rejected, values, statistic=what, bins=[edges, edges]).statistic
        for what in ("mean", "count")
    )
    return {
        "chosen_edges": edges.tolist(),
        "rejected_edges": edges.tolist(),
        "mean": [[float(m) if c else None for m, c in zip(*row, strict=True)] for row in zip(mean, count, strict=True)],
        "count": count.astype(int).tolist(),
    }


def margin_curves(pairs: Sequence[Row], notes: Notes) -> list[Row]:
    """Mean margin (log-ratio of chosen minus that of rejected, without beta) by step on fixed subsets of the pairs.

    ``raw`` sums over all tokens, ``common`` over a draw of the common length from the longer side. Their gap is what
    length alone adds where the chosen is longer, and takes away where it is shorter (SamPO, arXiv 2406.10957).
    """
    subsets = {
        "chosen_longer": [row for row in pairs if row["chosen_codes"] > row["rejected_codes"]],
        "chosen_shorter": [row for row in pairs if row["chosen_codes"] < row["rejected_codes"]],
        "all": list(pairs),
    }
    notes.extend(f"margin_curves: no pair is in the subset {name}" for name, rows in subsets.items() if not rows)
    curves = []
    for step in sorted({row["step"] for row in pairs}):
        for name, rows in subsets.items():
            mine = [row for row in rows if row["step"] == step]
            raw, common = (float(column(mine, key).mean()) if mine else None for key in ("margin_raw", "margin_common"))
            curves.append({"step": step, "subset": name, "raw": raw, "common": common, "n": len(mine)})
    return curves
