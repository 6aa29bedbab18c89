"""The ablation page: every loss in one table, and which of them are worth their drift."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from talker_rl.base.figures import relative
from talker_rl.report import charts, equal_drift, prediction
from talker_rl.report.blocks import Cell, Claim, Figure, Page, Section, Table, number, one_view, with_interval
from talker_rl.report.collect import Study

Row = dict[str, Any]

COLUMNS = ["arm", "variant", "seed", "n", "WER", "WER - base", "WER - plain", "duration / base", "|drift| - plain's",
           "pause error", "cap hits", "steps", "training, s"]


def ablation_page(study: Study) -> Page:
    """The page's content, from ``ablation.json`` or, in a single run, from the summaries of its evaluation."""
    found = study.ablation or from_evaluations(study)
    rows = sorted(found["rows"], key=lambda row: row["seed"] is not None)  # pooled first, as they matter most
    arms = list(dict.fromkeys(row["arm"] for row in found["rows"]))
    colors = charts.colors_of(dict.fromkeys(row["variant"] for row in found["rows"] if row["variant"] != "base"))
    baseline = found.get("baseline") or "dpo"
    return Page(
        "ablation", f"Ablation: {study.title}",
        f"Every loss on the same pairs, against the base and against plain {baseline}. {_intervals(found['rows'])}",
        [
            Section("WER against drift", "Drift is how far the total duration moved from the base's, either way: the "
                    "triangle points left where speech became shorter, right where it became longer. On the frontier "
                    "nothing is better in both.",
                    [Figure(f"Pareto view, {arm}" if len(arms) > 1 else "Pareto view",
                            one_view(pareto([row for row in found["rows"] if row["arm"] == arm], colors)),
                            "no row has both figures", wide=True) for arm in arms]
                    or [Figure("Pareto view", {}, "nothing has been evaluated yet")]),
            Section("Claims", "" if found.get("claims") else "No claim was tested: that is done by talker-rl sweep.",
                    claims=[_claim(claim, len(arms) > 1) for claim in found.get("claims") or []]),
            Section(_of_steps(rows), "", [table(rows, baseline)]),
            *equal_drift.sections(found, colors),
            prediction.section(found, colors),
        ],
        legend=colors, notes=list(found.get("notes") or []),
    )


def _of_steps(rows: list[Row]) -> str:
    steps = {row["steps"] for row in rows if row.get("steps") and row["seed"] is not None}
    return "Table at equal steps" if len(steps) < 2 else "Table of last steps, which differ"


def _intervals(rows: list[Row]) -> str:
    """What the intervals are over, and what a claim needs."""
    over = {row.get("intervals") for row in rows if row["seed"] is None and row["variant"] != "base"}
    if not over or None in over:  # a plain run, or a table of before
        return "Intervals are 95\u00a0%, over texts; they say nothing of other trainings, and nothing is corrected."
    told = ("Intervals are 95\u00a0%: of a pooled row over texts and training seeds, of one training over texts."
            if over == {"texts and seeds"} else
            "Intervals are 95\u00a0%, over texts: with one training seed they say nothing of other trainings.")
    return f"{told} p is after Holm's correction for all comparisons of a column; a claim needs p below 0.05."


def from_evaluations(study: Study) -> dict[str, Any]:
    """Rows like those of a sweep, of what a plain run knows: no figures against plain DPO, no claims."""
    rows: list[Row] = []
    for run in study.runs:
        for one in run.trained:
            if not one.summary or "trained" not in one.summary:
                continue
            base, trained = one.summary["base"], one.summary["trained"]
            if not any(row["variant"] == "base" and row["arm"] == run.arm for row in rows):
                rows.append({"variant": "base", "arm": run.arm, "seed": None, "duration_ratio": 1.0, "drift": 0.0,
                             **{key: base.get(key) for key in ("n", "wer", "wer_ci95", "pause_error", "cap_hit_rate")}})
            ratio = one.summary.get("duration_ratio_to_base")
            rows.append({
                "variant": one.variant, "arm": run.arm, "seed": one.seed, "duration_ratio": ratio,
                "drift": None if ratio is None else ratio - 1,
                "wer_diff_base": one.summary.get("wer_diff"), "wer_diff_base_ci95": one.summary.get("wer_diff_ci95"),
                **{key: trained.get(key) for key in ("n", "wer", "wer_ci95", "pause_error", "cap_hit_rate")}})
    return {"rows": rows, "claims": [], "baseline": "dpo",
            "notes": ["This is no sweep: figures against plain DPO, and intervals of the drift, are not known."]}


def _claim(claim: Row, many: bool) -> Claim:
    arm = f" ({claim['arm']})" if many else ""
    return Claim(bool(claim["holds"]), f"{claim['variant']} {claim['claim']}{arm}", claim.get("why") or "")


def table(rows: list[Row], baseline: str) -> Table:
    """The rows as they stand in ablation.json; pooled ones strong."""
    cells = []
    for row in rows:
        seed = Cell("pooled", -1.0) if row["seed"] is None and row["variant"] != "base" else number(row["seed"], "{:d}")
        cells.append([
            Cell(row["arm"], row["arm"]), Cell(row["variant"], row["variant"]), seed, number(row.get("n"), "{:d}"),
            with_interval(row.get("wer"), row.get("wer_ci95"), "{:.1%}"),
            _compared(row, "wer_diff_base", "{:+.1%}", True),
            _compared(row, "wer_diff_baseline", "{:+.1%}", True),
            _compared(row, "duration_ratio", "{:.3f}"),
            _compared(row, "drift_vs_baseline", "{:+.1%}", True),
            number(row.get("pause_error"), "{:.3f}"), number(row.get("cap_hit_rate"), "{:.1%}"),
            number(row.get("steps"), "{:d}"), number(row.get("train_seconds"), "{:.0f}"),
        ])
    columns = [column.replace("plain", baseline) for column in COLUMNS]
    return Table("All rows", columns, cells, "nothing has been evaluated yet",
                 "Green and red mark differences with p below 0.05 or, without a p, with an interval that excludes 0. "
                 "A heading sorts its column.",
                 {i for i, row in enumerate(rows) if row["seed"] is None})


def _compared(row: Row, kind: str, pattern: str, lower_is_better: bool | None = None) -> Cell:
    return with_interval(row.get(kind), row.get(f"{kind}_ci95"), pattern, lower_is_better, row.get(f"{kind}_p_holm"))


def drift_interval(row: Row) -> tuple[float, float] | None:
    """Interval of |duration_ratio - 1|: from 0 where that of the ratio holds 1."""
    interval = row.get("duration_ratio_ci95")
    if not interval:
        return None
    low, high = interval[0] - 1, interval[1] - 1
    return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other equals or beats in both coordinates, in order of the first; smaller is better."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return kept


def pareto(rows: list[Row], colors: dict[str, str]) -> go.Figure | None:
    """WER against |drift| of one arm: a trace a variant (pooled over its seeds) and base, and the frontier last."""
    pooled = [row for row in rows if row["seed"] is None]
    single = {row["variant"] for row in rows} - {row["variant"] for row in pooled}
    shown = [row for row in pooled + [row for row in rows if row["variant"] in single]
             if row.get("drift") is not None and row.get("wer") is not None]
    if not shown:
        return None
    fig = charts.figure("|drift| of the total duration", "word error rate", showlegend=False, height=420)
    widest = max(max(abs(row["drift"]), *(drift_interval(row) or (0.0,))) for row in shown) or 0.01
    fig.update_layout(xaxis={"tickformat": ".1%", "range": [-0.12 * widest, 1.12 * widest]},  # room for base's label
                      yaxis={"tickformat": ".1%"})
    for row in shown:
        name, drift, wer = row["variant"], abs(row["drift"]), row["wer"]
        x_range, y_range = drift_interval(row), row.get("wer_ci95")
        symbol = "star" if name == "base" else "triangle-left" if row["drift"] < 0 else "triangle-right"
        color = charts.BASE if name == "base" else colors[name]
        label = name if row["seed"] is None else f"{name} (seed {row['seed']})"
        fig.add_scatter(
            x=[drift], y=[wer], name=label, legendgroup=name, mode="markers+text", text=[label],
            textposition="top center", marker={"size": 13, "color": color, "symbol": symbol},
            error_x=_whiskers(drift, x_range, color), error_y=_whiskers(wer, y_range, color),
            hovertemplate=f"{label}<br>drift {relative(row['drift'])}, WER {wer:.1%}<extra></extra>")
    best = frontier([(abs(row["drift"]), row["wer"]) for row in shown])
    fig.add_scatter(x=[x for x, _ in best], y=[y for _, y in best], mode="lines", name="frontier", hoverinfo="skip",
                    line={"dash": "dash", "color": "#888", "shape": "hv", "width": 1.5})
    return fig


def _whiskers(value: float, interval: Any, color: str) -> dict[str, Any]:
    if not interval:
        return {"visible": False}
    return {"type": "data", "symmetric": False, "array": [max(0.0, interval[1] - value)],
            "arrayminus": [max(0.0, value - interval[0])], "thickness": 1, "width": 3, "color": color}
