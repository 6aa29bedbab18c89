"""Charts of stopping and of going on: P(stop) where the base stopped, and what is said against what was to be said."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from talker_rl.report import charts
from talker_rl.report.blocks import Figure, one_view
from talker_rl.report.collect import Rows, Run, Trained
from talker_rl.report.studies import by_variant, conditional, drift_rows, step_curves, why_empty

HEARD = "Of the evaluation utterances with a time for each word that was heard, silent ones included."


def p_stop_by_step(run: Run, colors: dict[str, str], *, many: bool) -> Figure:
    """P(stop) at the base's own stops against step: what becomes of stopping, whatever the policy says itself."""
    title = "P(stop) where the base stopped"
    fig = step_curves(run.trained, colors, "p_stop_at_base_stops", "mean P(stop)", drift_rows)
    return Figure(_of(title, run, many), one_view(fig), why_empty(run.trained), note=" ".join(
        ("The mean of the seeds, and their range.", conditional(run.trained, "p_stop_at_base_stops"))).strip())


def hazard(run: Run, colors: dict[str, str], *, many: bool) -> Figure:
    """P(stop) at the last tokens of what the base said: a line a variant at its chosen checkpoint, and the base's."""
    fig = charts.figure("position before the base's stop, codes", "mean P(stop)", showlegend=False)
    fig.update_layout(yaxis={"type": "log", "exponentformat": "power"})
    lines = {"before training": ([_hazard_at(one, 0) for one in run.trained][:1], charts.BASE)}
    for variant, seeds in by_variant(run.trained).items():
        lines[variant] = ([_hazard_at(one, (one.diagnostics or {}).get("step")) for one in seeds], colors[variant])
    for name, (found, color) in lines.items():
        known = [line for line in found if line and None not in line]
        if known:
            mean = np.mean(np.array(known, dtype=float), axis=0)
            fig.add_scatter(x=list(range(1 - len(mean), 1)), y=mean.tolist(), name=name, legendgroup=name,
                            mode="lines+markers",
                            line={"color": color, "dash": "dot" if name == "before training" else "solid"})
    return Figure(_of("P(stop) at the end of what the base said", run, many), one_view(fig if fig.data else None),
                  why_empty(run.trained), note=" ".join((
                      "Dotted: before training.", conditional(run.trained, "hazard"))).strip())


def p_stop_of_its_own(run: Run, colors: dict[str, str], *, many: bool) -> Figure:
    """P(stop) at the last tokens of the policy's own samples that stopped."""
    fig = charts.figure("position from its own stop, codes", "mean P(stop)", showlegend=False)
    fig.update_layout(yaxis={"type": "log", "exponentformat": "power"})
    for variant, seeds in by_variant(run.trained).items():
        found = [((one.diagnostics or {}).get("runaway") or {}).get("p_eos_last") for one in seeds]
        lines = [line for line in found if line and None not in line]
        if lines:
            mean = np.mean(np.array(lines, dtype=float), axis=0)
            fig.add_scatter(x=list(range(1 - len(mean), 1)), y=mean.tolist(), name=variant, legendgroup=variant,
                            mode="lines+markers", line={"color": colors[variant]})
    return Figure(_of("P(stop) where its own samples stopped", run, many), one_view(fig if fig.data else None),
                  why_empty(run.trained), note="Conditional on having stopped: it stays high however rare stopping has "
                  "become, and says only whether the end is sharp.")


def words(run: Run, colors: dict[str, str], *, many: bool) -> list[Figure]:
    """Words said, and right ones, over those that were to be said, by the time of an utterance."""
    return [Figure(_of(title, run, many), one_view(_words(run, colors, key)), why_empty(run.trained),
                   note=f"{note} {HEARD} Dotted: the base. Mean of the seeds.")
            for key, title, note in (
                ("said", "Words said by a time", "Over the words of the text, those that are not in it included: above "
                 "1 it goes on talking."),
                ("right", "Right words by a time", "Over the words of the text: 1 is where nothing is left out and "
                 "nothing said instead."))]


def loops(one: Trained) -> float | None:
    """Share of utterances in which a pair of words is said more often than the text has it."""
    return _loops(one, "trained")


def loops_of_base(run: Run) -> float | None:
    """Likewise of the base."""
    return next((rate for one in run.trained if (rate := _loops(one, "base")) is not None), None)


def _loops(one: Trained, side: str) -> float | None:
    found: float | None = ((((one.diagnostics or {}).get("said") or {}).get(side) or {}).get("loops") or {}).get("rate")
    return found


def _words(run: Run, colors: dict[str, str], key: str) -> go.Figure | None:
    fig = charts.figure("seconds", "words / words to be said", showlegend=False)
    lines = {"base": ([_over_time(one, "base") for one in run.trained], charts.BASE)}
    for variant, seeds in by_variant(run.trained).items():
        lines[variant] = ([_over_time(one, "trained") for one in seeds], colors[variant])
    for name, (found, color) in lines.items():
        known = [line for line in found if line is not None]
        if known:
            fig.add_scatter(x=known[0]["seconds"], y=np.mean([line[key] for line in known], axis=0).tolist(), name=name,
                            legendgroup=name, mode="lines",
                            line={"color": color, "dash": "dot" if name == "base" else "solid"})
    if not fig.data:
        return None
    fig.add_hline(y=1.0, line={"color": "#888", "width": 1}, annotation={"text": "demanded", "font": {"color": "#888"}})
    return fig


def _over_time(one: Trained, side: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = (((one.diagnostics or {}).get("said") or {}).get(side) or {}).get("words_over_time")
    return found


def _hazard_at(one: Trained, step: int | None) -> list[float | None] | None:
    rows: Rows = drift_rows(one)
    return next((row.get("hazard") for row in rows if row["step"] == step), None)


def _of(title: str, run: Run, many: bool) -> str:
    return f"{title}, {run.arm}" if many else title
