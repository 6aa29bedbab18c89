"""Plotly figures from rows: the style of all pages, and the report's own; None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import Any

import numpy as np
import plotly.graph_objects as go

from talker_rl.base.figures import written

BASE, TRAINED, ACCENT = "#8a6d3b", "#1f77b4", "#b03a5b"
PALETTE = ("#2f7fc1", "#d1603d", "#3a9a63", "#a45cb5", "#c0961f", "#2aa5a0", "#d4578f", "#7d8a2e", "#6b78d6", "#a0694a",
           "#5d9bd1", "#b8535d")
"""Colors of variants: told apart on a white and on a black page."""
MAX_POINTS = 1500
"""Points of a scatter plot: more would weigh on the page and show no more."""
Rows = list[dict[str, Any]]


def colors_of(variants: Iterable[str]) -> dict[str, str]:
    """Variant -> color, in order of appearance; from the beginning again after the last."""
    return dict(zip(variants, cycle(PALETTE), strict=False))


def faint(color: str, alpha: float = 0.16) -> str:
    """``#rrggbb`` as ``rgba(...)``."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


_AXIS = {"gridcolor": "rgba(128,128,128,.18)", "zerolinecolor": "rgba(128,128,128,.4)"}


def figure(x: str, y: str, height: int = 300, **layout: Any) -> go.Figure:
    """An empty figure in the pages' style; the page gives it the color of its scheme."""
    return go.Figure(
        layout=go.Layout(
            template="none",
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
            margin={"l": 56, "r": 12, "t": 12, "b": 44},
            height=height,
            xaxis={"title": {"text": x}, **_AXIS},
            yaxis={"title": {"text": y, "standoff": 8}, "automargin": True, **_AXIS},
            legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            font={"family": "system-ui, sans-serif", "size": 12, "color": "#888"},
            **layout,
        )
    )


def _column(rows: Rows, key: str) -> list[float]:
    return [r[key] for r in rows if r.get("status", "ok") == "ok" and r.get(key) is not None]


def wer_by_utterance(base: Rows, trained: Rows) -> go.Figure | None:
    """Share of utterances at or below each word error rate, base against trained."""
    if not base or not trained:
        return None
    fig = figure("word error rate of an utterance", "share of utterances at or below", yaxis_range=[0, 1.02])
    for name, rows, color in (("base", base, BASE), ("trained", trained, TRAINED)):
        values = np.sort(_column(rows, "wer"))
        share = np.arange(1, values.size + 1) / values.size
        fig.add_scatter(x=values, y=share, name=name, line={"color": color, "shape": "hv"}, mode="lines")
    return fig


def duration_ratio(base: Rows, trained: Rows) -> go.Figure | None:
    """Duration over that of the clean rendering."""
    fig = figure("duration / clean rendering", "utterances", barmode="overlay")
    drawn = False
    for name, rows, color in (("base", base, BASE), ("trained", trained, TRAINED)):
        ratios = [r["duration"] / r["reference_seconds"] for r in rows
                  if r.get("status") == "ok" and r.get("reference_seconds")]
        if ratios:
            drawn = True
            fig.add_histogram(x=ratios, name=name, marker_color=color, opacity=0.6, xbins={"size": 0.02})
    if not drawn:
        return None
    fig.add_vline(x=1.0, line={"dash": "dot", "color": "#888"})
    return fig


def training_curve(log: Rows, keys: dict[str, str], y: str) -> go.Figure | None:
    """Metrics of the training log against step; ``keys`` maps log key to label. Rounds stand after each other."""
    rounds = sorted({r.get("round", 1) for r in log})
    fig = figure("step" if len(rounds) < 2 else "step, round after round", y)
    colors = [TRAINED, BASE, ACCENT, "#4c8c5c"]
    drawn = False
    for (key, label), color in zip(keys.items(), colors, strict=False):
        xs: list[float | None] = []
        ys: list[float | None] = []
        before = 0
        for round_ in rounds:
            rows = [r for r in log if r.get("round", 1) == round_ and "step" in r]
            points: list[tuple[float | None, float | None]] = [
                (before + r["step"], r[key]) for r in rows if r.get(key) is not None]
            if points and xs:  # each round's steps begin at 0 again: no line from one to the next
                points.insert(0, (None, None))
            xs += [x for x, _ in points]
            ys += [y for _, y in points]
            before += max((r["step"] for r in rows), default=0)
        if xs:
            drawn = True
            fig.add_scatter(x=xs, y=ys, name=label, mode="lines+markers", line={"color": color}, marker={"size": 4})
    return fig if drawn else None


def by_round(rounds: Rows) -> go.Figure | None:
    """WER and duration of an iterated training, each over round 0's; WER with its 95 % interval."""
    if not rounds or not rounds[0]["wer"]:
        return None
    fig, x = figure("round", "against round 0"), [r["round"] for r in rounds]
    start = rounds[0]
    spans = [r.get("wer_diff_ci95") for r in rounds]
    ends = [[(s[i] - r["wer_diff"]) / start["wer"] if s else 0.0 for r, s in zip(rounds, spans, strict=True)]
            for i in (0, 1)]
    fig.add_scatter(x=x, y=[r["wer"] / start["wer"] for r in rounds], name="WER", mode="lines+markers",
                    line={"color": TRAINED}, error_y={"type": "data", "array": ends[1], "symmetric": False,
                                                      "arrayminus": [-v for v in ends[0]]})
    fig.add_scatter(x=x, y=[r["duration_mean"] / start["duration_mean"] for r in rounds], name="duration",
                    mode="lines+markers", line={"color": ACCENT})
    fig.add_hline(y=1.0, line={"dash": "dot", "color": "#888"})
    fig.update_xaxes(tickvals=x)
    return fig


def margin_against_length(pairs: Rows) -> go.Figure | None:
    """Each pair: how much longer the chosen is against how much better; a tilt here is what teaches a length bias."""
    if not pairs:
        return None
    x = [p["chosen_seconds"] - p["rejected_seconds"] for p in pairs]
    y = [p["margin"] for p in pairs]
    fig = figure("chosen longer by (seconds)", "reward margin")
    fig.add_scatter(x=x, y=y, mode="markers", marker={"size": 5, "color": ACCENT, "opacity": 0.5}, name="pairs")
    fig.add_vline(x=0, line={"dash": "dot", "color": "#888"})
    mean = float(np.mean(x))
    fig.add_vline(x=mean, line={"color": ACCENT}, annotation_text=f"mean {written(mean, '{:+.2f}')} s")
    return fig
