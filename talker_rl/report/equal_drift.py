"""Losses where they have moved as far from the base: the table, and each figure against KL with its band."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from talker_rl.base.figures import chance, changed, relative, written
from talker_rl.report import charts
from talker_rl.report.blocks import Cell, Figure, Section, Table, number, with_interval
from talker_rl.report.columns import columns

Row = dict[str, Any]

AXES = {"code": "KL to the base, nats a token of its own speech",
        "utterance": "KL to the base, nats an utterance of its own speech",
        "code_on_base": "KL to the base, nats a token of the base's speech"}
_TICKS = (0.0, *(base * 10.0**power for power in range(-7, 3) for base in (1, 2, 5)))
SHOWN = (("wer", "word error rate", ".0%"), ("duration_ratio", "duration / base", ".2f"),
         ("reward", "mean reward", ".2f"), ("pause_error", "pause error", ".2f"))


def sections(found: dict[str, Any], colors: dict[str, str]) -> list[Section]:
    """Of ``ablation.json``; empty where the sweep spoke with its last checkpoints alone."""
    if not found.get("frontiers"):
        return []
    arms = list(dict.fromkeys(row["arm"] for row in found["frontiers"]))
    figures = [Figure(f"{label}, {arm}" if len(arms) > 1 else label,
                      {"": frontier([row for row in found["frontiers"] if row["arm"] == arm], metric, label, tick,
                                    AXES[found["axis"]], colors)})
               for arm in arms for metric, label, tick in SHOWN]
    return [
        Section("Against drift", "Losses that have taken as many steps have not moved as far. Lines go from the base "
                "(KL 0) through the checkpoints (dots, each training seed), on a scale of the root of KL; bands "
                "are 95\u00a0% over texts and training seeds. All of the same texts.", list(figures)),
        Section("Table at equal drift", "", [table(found)]),
    ]


def frontier(
    rows: list[Row], metric: str, label: str, tick: str, axis: str, colors: dict[str, str]
) -> go.Figure:
    """A metric against KL, on a scale of its root, in which policies move evenly: a line with its band for each variant
    of one arm."""
    fig = charts.figure(axis, label, showlegend=False, height=340)
    furthest = max([row["kl"][-1] for row in rows] + [p["kl"] for row in rows for p in row["checkpoints"]], default=0.0)
    ticks = [kl for kl in _TICKS if kl <= furthest and (kl == 0 or kl >= furthest / 400)]
    fig.update_layout(yaxis={"tickformat": tick}, xaxis={"tickvals": [kl**0.5 for kl in ticks],
                                                         "ticktext": [f"{kl:g}" for kl in ticks]})
    for row in rows:
        color, line = colors[row["variant"]], row[metric]
        if line["low"][0] is not None:
            fig.add_scatter(x=_root([*row["kl"], *row["kl"][::-1]]), y=[*line["high"], *line["low"][::-1]],
                            fill="toself", fillcolor=charts.faint(color, 0.1), line={"width": 0}, hoverinfo="skip",
                            legendgroup=row["variant"], name=f"{row['variant']}, 95 %", mode="lines")
        fig.add_scatter(x=_root(row["kl"]), y=line["value"], name=row["variant"], legendgroup=row["variant"],
                        mode="lines", line={"color": color})
        points = row["checkpoints"]
        fig.add_scatter(x=_root([p["kl"] for p in points]), y=[p[metric] for p in points], mode="markers",
                        name=f"{row['variant']}, checkpoints", legendgroup=row["variant"],
                        marker={"size": 6, "color": color},
                        text=[f"{row['variant']}, seed {p['seed']}, step {p['step']}<br>KL {p['kl']:.4f}"
                              for p in points], hovertemplate="%{text}: %{y}<extra></extra>")
    return fig


def _root(values: list[float]) -> list[float]:
    return [max(0.0, value)**0.5 for value in values]


def table(found: dict[str, Any]) -> Table:
    """A row a variant and target."""
    baseline = found["baseline"]
    head = ["arm", "variant", "compared at", "KL, nats", "step", "WER", "WER - base", f"WER - {baseline}", "p (Holm)",
            "duration / base", f"|drift| - {baseline}'s", "p (Holm)", "reward", "pause error"]
    cells = [[
        Cell(row["arm"], row["arm"]), Cell(row["variant"], row["variant"]),
        Cell("the same for all" if row["target"] == "arm" else f"both (with {baseline})", row["target"]),
        number(row["kl"], "{:.4f}"), number(row["step"], "{:.0f}"),
        with_interval(row["wer"], row["wer_ci95"], "{:.1%}"),
        with_interval(row["wer_diff_base"], row["wer_diff_base_ci95"], "{:+.1%}", True),
        with_interval(row["wer_diff_baseline"], row["wer_diff_baseline_ci95"], "{:+.1%}", True),
        Cell(chance(row["wer_diff_baseline_p_holm"]), row["wer_diff_baseline_p_holm"]),
        with_interval(row["duration_ratio"], row["duration_ratio_ci95"], "{:.3f}"),
        with_interval(row["drift_diff_baseline"], row["drift_diff_baseline_ci95"], "{:+.1%}", True),
        Cell(chance(row["drift_diff_baseline_p_holm"]), row["drift_diff_baseline_p_holm"]),
        with_interval(row["reward"], row["reward_ci95"], "{:.3f}"),
        with_interval(row["pause_error"], row["pause_error_ci95"], "{:.3f}"),
    ] for row in found["equal_kl"]]
    return Table("At equal drift", head, cells, "no two trainings can be compared: the notes say why",
                 "Interpolated between checkpoints, and bootstrapped with that. Compared where the arm's variants are "
                 "(those that have not come so far are left out), and as far as both, the variant's and the "
                 "baseline's trainings, came.")


def text_table(found: dict[str, Any]) -> str:
    """The same for a terminal; nothing where there is none."""
    if not found.get("equal_kl"):
        return ""
    baseline = found["baseline"]
    head = ("arm", "variant", "at KL", "step", "texts x seeds", "WER", f"- {baseline}, points", "p", "duration",
            f"|drift| - {baseline}'s, points", "p", "reward", "pause error")
    rows = [(row["arm"], row["variant"], f"{row['kl']:.4f}{'' if row['target'] == 'arm' else ' (both)'}",
             f"{row['step']:.0f}", f"{row['texts']} x {row['seeds']}", written(row["wer"], "{:.1%}"),
             _difference(row, "wer"), _chance(row, "wer"), relative(row["duration_ratio"] - 1),
             _difference(row, "drift"), _chance(row, "drift"), written(row["reward"]), written(row["pause_error"]))
            for row in found["equal_kl"]]
    return "\n".join([f"at equal drift ({AXES[found['axis']]}; `both`: as far as the variant and {baseline} came; p "
                      "after Holm's correction):", *columns((head, *rows), left=2)])


def _difference(row: Row, name: str) -> str:
    value = row[f"{name}_diff_baseline"]
    return "" if value is None else changed(value, row[f"{name}_diff_baseline_ci95"], "{:.1%}").replace(" points", "")


def _chance(row: Row, name: str) -> str:
    p = row[f"{name}_diff_baseline_p_holm"]
    return "" if p is None else chance(p)
