"""Bars of what losses push on in a run's pairs: by what the tokens say, and on the stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from talker_rl.records.token_classes import WRONG, TokenClass
from talker_rl.report import charts
from talker_rl.report.blocks import Figure, Section, one_view
from talker_rl.report.collect import Run, Trained
from talker_rl.report.studies import by_variant, label_of, one_line_each, side_by_side, why_empty

GROUPS: dict[str, tuple[TokenClass, ...]] = {
    "right words": ("right",),
    "wrong words": tuple(kind for kind in WRONG if not kind.startswith("pause")),
    "pauses": ("pause", "pause_missing", "pause_false"),
    "silence, tail": ("lead", "between", "tail", "unheard"),
    "stop": ("stop",),
}
"""What tokens say, as bars -> their classes (:mod:`talker_rl.records.token_classes`)."""
SIDES = {"chosen": charts.TRAINED, "rejected": charts.ACCENT}
UNIT = ("1 is what DPO gives a token of a pair that it has not learned; right of 0 tokens are made likelier. It is the "
        "gradient, and not what the optimizer makes of it.")
PAIRS = "Conditional on the pairs: sampled before training, chosen by reward, with a time for each word."


def section(runs: Sequence[Run], colors: dict[str, str]) -> Section:
    """Two charts of each run; without diagnostics they say why."""
    many = len(runs) > 1
    return Section(
        "What the loss pushes on", "Its exact gradient by every token of the pairs, before training and at the chosen "
        "checkpoint. Where chosen is longer, a loss that pushes the stop down on balance will lengthen speech.",
        side_by_side([[_stops(run, colors, many), _classes(run, many)] for run in runs]))


def _pushes(one: Trained) -> dict[int, dict[str, Any]]:
    """Step -> anatomy, in order."""
    found = (one.diagnostics or {}).get("anatomy") or {}
    return {int(step): found[step] for step in sorted(found, key=int)}


def _when(step: int) -> str:
    return f"step {step}" if step else "before training"


def _why(run: Run) -> str:
    return next((note for one in run.trained for note in (one.diagnostics or {}).get("notes") or []
                 if note.startswith("anatomy: ")), why_empty(run.trained))


def _stops(run: Run, colors: dict[str, str], many: bool) -> Figure:
    """Net push on the stop of each variant, mean of its seeds."""
    groups = by_variant(run.trained)
    fig = charts.figure("net push on the stop", "", showlegend=False, height=110 + 34 * len(groups), barmode="group",
                        bargap=0.3)
    fig.update_layout(yaxis=one_line_each(len(groups)))
    for variant, seeds in groups.items():
        before = [found[0]["stop"] for one in seeds if 0 in (found := _pushes(one))]
        after = [found[max(found)]["stop"] for one in seeds if (found := _pushes(one)) and max(found) > 0]
        for name, values, faint in (("before training", before, False), ("at the chosen checkpoint", after, True)):
            if values:
                color = colors[variant]
                fig.add_bar(x=[float(np.mean(values))], y=[variant], orientation="h", legendgroup=variant,
                            offsetgroup=name, name=f"{variant}, {name}",
                            marker={"color": charts.faint(color, 0.45) if faint else color})
    return Figure(f"Net push on the stop, {run.arm}" if many else "Net push on the stop",
                  one_view(fig if fig.data else None), _why(run),
                  note=f"Both sides together, mean over the pairs; pale: at the chosen checkpoint. {UNIT} {PAIRS}")


def _classes(run: Run, many: bool) -> Figure:
    """Bars of both sides by what tokens say; a view a training."""
    views = {}
    for one in run.trained:
        fig = charts.figure("push, sum over a side's tokens", "", height=440, barmode="group", bargap=0.15)
        fig.update_layout(yaxis=one_line_each(len(GROUPS)) | {"categoryarray": list(GROUPS)})
        for at, (step, found) in enumerate(_pushes(one).items()):
            for side, color in SIDES.items():
                sums = [sum(found["push"][side].get(kind, 0.0) for kind in kinds) for kinds in GROUPS.values()]
                fig.add_bar(x=sums, y=list(GROUPS), orientation="h", name=f"{side}, {_when(step)}",
                            texttemplate="%{x:.3~g}", textposition="outside", textfont={"size": 10}, cliponaxis=False,
                            marker={"color": charts.faint(color, 0.45) if at else color})
        if fig.data:
            sums = [0.0, *(x for bar in fig.data for x in bar.x)]
            room = 0.2 * (max(sums) - min(sums))  # for the figures beside the bars
            fig.update_layout(xaxis={"range": [min(sums) - room, max(sums) + room]})
            views[label_of(one)] = fig
    return Figure(f"Push by what tokens say, {run.arm}" if many else "Push by what tokens say", views, _why(run),
                  note=f"Sums over the tokens of a side, mean over the pairs. {UNIT} {PAIRS}")
