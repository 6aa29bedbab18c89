"""What was predicted of each loss before any training, against the durations that a sweep measured."""

from __future__ import annotations

from typing import Any

from talker_rl.diagnostics.prediction import correlation, why_none
from talker_rl.report import charts
from talker_rl.report.blocks import Figure, Section, one_view

NONE = "this is no sweep, or its table is of an earlier version: run talker-rl sweep --run-dir FOLDER again"


def section(found: dict[str, Any], colors: dict[str, str]) -> Section:
    """A chart for each arm of ``ablation.json``; without predictions one that says why."""
    arms = found.get("prediction") or {}
    return Section(
        "Predicted before training", "How far a loss pushes the stop, from its gradient on the arm's pairs alone, and "
        "what became of the duration. Below 0 the stop is pushed down: speech should get longer, and rho be negative.",
        [_scatter(arm, one, colors, len(arms) > 1) for arm, one in arms.items()]
        or [Figure("Predicted push and measured duration", {}, NONE)])


def _scatter(arm: str, one: dict[str, Any], colors: dict[str, str], many: bool) -> Figure:
    title = "Predicted push and measured duration" + (f", {arm}" if many else "")
    rows = one["variants"]
    if not rows:
        return Figure(title, {}, why_none(one) or NONE)
    fig = charts.figure("net push on the stop, predicted", "duration / base, measured", showlegend=False, height=380)
    widest = max(row["stop"] for row in rows) - min(row["stop"] for row in rows) or 1.0
    fig.update_layout(xaxis={"range": [min(row["stop"] for row in rows) - 0.15 * widest,
                                       max(row["stop"] for row in rows) + 0.15 * widest]})  # room for the labels
    fig.add_hline(y=1.0, line={"dash": "dot", "color": charts.BASE})
    for row in rows:
        name = row["variant"]
        fig.add_scatter(x=[row["stop"]], y=[row["duration_ratio"]], name=name, legendgroup=name, mode="markers+text",
                        text=[name], textposition="top center", marker={"size": 11, "color": colors[name]},
                        hovertemplate=f"{name}<br>push %{{x:.3f}}, moves stops by {row['stop_seconds']:+.2f} s"
                                      "<br>duration %{y:.3f} x the base's<extra></extra>")
    return Figure(f"{title}: rho {correlation(one['stop'])}", one_view(fig), wide=True, note=(
        f"Spearman's rho with 95\u00a0%, bootstrap over {len(rows)} variants; with the push's first moment (where it "
        f"moves stops to) {correlation(one['stop_seconds'])}. Conditional on {one.get('pairs', 0)} of the arm's pairs, "
        "with a time for each word, and on the steps that were trained. In units of what each loss pushes a token "
        "on average, for that is what Adam makes of losses of any scale."))
