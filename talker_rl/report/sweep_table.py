"""The table of a sweep for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from talker_rl.base.figures import bare, chance, relative, written
from talker_rl.report import equal_drift
from talker_rl.report.columns import columns


def text_table(found: dict[str, Any]) -> str:
    """WER and duration of every row, the differences to the baseline, who is on the front; from ``ablation.json``.

    ``p`` is what is left after Holm's correction; tables of before there was one have none.
    """
    baseline = found["baseline"]
    front = {(p["arm"], p["variant"]) for p in found["pareto"] if p["front"]}
    head = ("arm", "variant", "seed", "n", "WER", "95 %", f"- {baseline}, points", "95 %", "p", "duration", "95 %", "p",
            f"|drift| - {baseline}'s, points", "95 %", "p", "")
    body = [
        (row["arm"], row["variant"], "all" if row["seed"] is None else str(row["seed"]), str(row["n"]),
         written(row["wer"], "{:.1%}"), _span(row["wer_ci95"], "{:.1%}"),
         _points(row["wer_diff_baseline"]), _span(row["wer_diff_baseline_ci95"], "{:+.1%}"),
         _chance(row, "wer_diff_baseline"),
         "" if row["drift"] is None else relative(row["drift"]), _ratio_span(row["duration_ratio_ci95"]),
         _chance(row, "duration_ratio"),
         _points(row["drift_vs_baseline"]), _span(row["drift_vs_baseline_ci95"], "{:+.1%}"),
         _chance(row, "drift_vs_baseline"),
         "pareto" if row["seed"] is None and (row["arm"], row["variant"]) in front else "")
        for row in found["rows"]
    ]
    at_equal_drift = equal_drift.text_table(found)
    return "\n".join([*columns((head, *body), left=2), *(["", at_equal_drift] if at_equal_drift else []), "",
                      *found["notes"]])


def _points(value: float | None) -> str:
    return "" if value is None else bare(value, "{:+.1%}")


def _chance(row: dict[str, Any], kind: str) -> str:
    p = row.get(f"{kind}_p_holm")
    return "" if p is None else chance(p)


def _span(interval: Sequence[float] | None, pattern: str) -> str:
    return "" if interval is None else f"{bare(interval[0], pattern)} .. {bare(interval[1], pattern)}"


def _ratio_span(interval: Sequence[float] | None) -> str:
    return "" if interval is None else " .. ".join(relative(value - 1) for value in interval)
