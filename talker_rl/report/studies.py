"""What the dashboards have in common: seeds of a variant, curves by step, and what figures are conditional on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go

from talker_rl.report import charts
from talker_rl.report.blocks import Figure
from talker_rl.report.collect import Rows, Study, Trained

NO_DIAGNOSTICS = "no diagnostics here: run talker-rl diagnose --run-dir RUN first"
EARLIER = ("the diagnostics here are of an earlier version, or had nothing to measure it on: talker-rl diagnose "
           "--run-dir RUN --force-stage diagnostics/VARIANT makes them again")
SCORED = "Of the evaluation utterances that were scored: each policy's own samples of the same texts."
ON_DEV = "Of the dev utterances that were scored: what each checkpoint sampled itself."
OF_PAIRS = "Conditional on the pairs: sampled before training, and chosen by their reward."


def notes_of(study: Study) -> list[str]:
    """What the diagnostics could not compute, with the variant's name."""
    whose: dict[str, list[str]] = defaultdict(list)
    for trained in study.trained:
        for note in (trained.diagnostics or {}).get("notes") or []:
            whose[note].append(label_of(trained))
    return [f"{note} ({'; '.join(names) if len(names) < len(study.trained) else 'every training'})"
            for note, names in whose.items()]


def why_empty(trained: list[Trained]) -> str:
    """Why a chart of the diagnostics is empty."""
    return EARLIER if any(one.diagnostics for one in trained) else NO_DIAGNOSTICS


def conditional(trained: list[Trained], key: str) -> str:
    """What a figure of the diagnostics is conditional on, as they say it themselves; nothing where there are none."""
    found = [one.diagnostics for one in trained if one.diagnostics]
    known = next((text for one in found if (text := (one.get("conditions") or {}).get(key))), None)
    if known:
        return f"{'KL: c' if key.startswith('kl') else 'C'}onditional on: {known}."
    return "What it is conditional on, diagnostics of an earlier version do not say." if found else ""


def drift_rows(one: Trained) -> Rows:
    """A row a checkpoint of the diagnostics."""
    found: Rows = (one.diagnostics or {}).get("drift") or []
    return found


def side_by_side(per_run: list[list[Figure]]) -> list[Any]:
    """The first figure of every run, then the second of every run, and so on."""
    return [figure for same in zip(*per_run, strict=True) for figure in same]


def label_of(trained: Trained) -> str:
    """Name of a variant with its run and its seed."""
    seed = "" if trained.seed is None else f" (seed {trained.seed})"
    return f"{trained.arm}: {trained.variant}{seed}"


def by_variant(trained: list[Trained]) -> dict[str, list[Trained]]:
    """The seeds of each variant."""
    groups: dict[str, list[Trained]] = defaultdict(list)
    for one in trained:
        groups[one.variant].append(one)
    return groups


def one_line_each(count: int) -> dict[str, Any]:
    """The y axis of a chart with a line per variant, the first on top."""
    return {"type": "category", "range": [count - 0.4, -0.6], "title": None, "automargin": True}


def step_curves(
    trained: list[Trained], colors: dict[str, str], key: str, axis: str,
    rows: Callable[[Trained], Rows] = lambda one: one.curve,
) -> go.Figure | None:
    """Mean over seeds against step, a trace a variant; with several seeds one more trace, the band from least to
    greatest.

    Args:
        rows: those of a training that have ``step`` and ``key``.
    """
    fig = charts.figure("step", axis, showlegend=False)
    for variant, seeds in by_variant(trained).items():
        values: dict[int, list[float]] = defaultdict(list)
        for one in seeds:
            for row in rows(one):
                if row.get(key) is not None:
                    values[row["step"]].append(row[key])
        steps = sorted(values)
        if not steps:
            continue
        color = colors[variant]
        if max(map(len, values.values())) > 1:
            fig.add_scatter(
                x=[*steps, *steps[::-1]],
                y=[*(max(values[s]) for s in steps), *(min(values[s]) for s in steps[::-1])],
                fill="toself", fillcolor=charts.faint(color), line={"width": 0}, mode="lines", hoverinfo="skip",
                name=f"{variant}, range of seeds", legendgroup=variant)
        fig.add_scatter(x=steps, y=[float(np.mean(values[s])) for s in steps], name=variant, legendgroup=variant,
                        mode="lines+markers", line={"color": color}, marker={"size": 6})
    return fig if fig.data else None
