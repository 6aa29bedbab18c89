"""The stability page: speech that runs away, collapses, falls silent or repeats itself, in both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from talker_rl.report import charts, stopping
from talker_rl.report.blocks import Cell, Figure, Page, Section, Table, number, one_view
from talker_rl.report.collect import Run, Study, Trained
from talker_rl.report.length import durations
from talker_rl.report.studies import (
    NO_DIAGNOSTICS,
    SCORED,
    by_variant,
    notes_of,
    one_line_each,
    side_by_side,
    why_empty,
)

NO_EVALUATION = "this run has no evaluation yet: run talker-rl eval"
RATES = (
    # key of summary["runaway"], label
    ("cap_hit_rate", "cap hits"), ("early_eos_rate", "early stops"), ("silence_share", "silence"),
    ("repetition", "repetition"), ("below_p1", "below base p1"), ("above_p99", "above base p99"),
)


def stability_page(study: Study) -> Page:
    """The page's content; charts without data say why."""
    colors = charts.colors_of(study.variants)
    many = len(study.runs) > 1

    def each(make: Callable[[Run], list[Figure]]) -> list[Any]:
        return side_by_side([make(run) for run in study.runs])

    return Page(
        "stability", f"Stability: {study.title}",
        "Preference training can teach the Talker not to stop, to stop too early, to fall silent or to say things "
        "twice. Each of these is a figure of its own here, base beside trained, so that a mean cannot hide it.",
        [
            Section("Stopping", "Whether a policy has learned not to stop shows where the base stopped, and not where "
                    "it stopped itself.", each(lambda run: [
                        _cap_hits(run, colors, many), _early_stops(run, colors, many),
                        stopping.p_stop_by_step(run, colors, many=many), stopping.hazard(run, colors, many=many),
                        stopping.p_stop_of_its_own(run, colors, many=many)])),
            Section("Said against demanded", "Words as the second recognizer heard them, by its times.",
                    each(lambda run: [*stopping.words(run, colors, many=many), _loops(run, colors, many)])),
            Section("Silence and repetition", "", each(lambda run: [
                _silence(run, colors, many), _repetition(run, colors, many)])),
            Section("Durations", "Each utterance against the base's mean of the same text: tails are run-aways "
                    "(right) and early stops (left).", each(lambda run: [
                        durations(run, colors, "duration_to_base", "duration / base, same text", many=many,
                                  value=_to_base(run)), _outside(run, colors, many)])),
            Section("Pauses", "", each(lambda run: [_pauses(run, colors, many)])),
            Section("Figures", "", [_table(study)]),
        ],
        legend=colors, notes=notes_of(study),
    )


# -- dots: one figure, each seed and their mean ---------------------------------------------------------------------


def dots(
    run: Run, colors: dict[str, str], title: str, axis: str, value: Callable[[Trained], float | None],
    base: float | None, why: str, *, many: bool, percent: bool = True, note: str = SCORED,
) -> Figure:
    """Each variant in a line: its seeds as small dots, their mean as a large one; the base as a vertical line."""
    groups = {variant: [found for one in seeds if (found := value(one)) is not None]
              for variant, seeds in by_variant(run.trained).items()}
    fig = charts.figure(axis, "", showlegend=False, height=110 + 30 * len(groups))
    widest = max([*(value for values in groups.values() for value in values), base or 0.0]) or 0.01
    fig.update_layout(yaxis=one_line_each(len(groups)),
                      xaxis={"range": [-0.04 * widest, 1.12 * widest], "tickformat": ".1%" if percent else None})
    for variant, values in groups.items():
        if not values:
            continue
        color = colors[variant]
        if len(values) > 1:
            fig.add_scatter(x=values, y=[variant] * len(values), mode="markers", name=f"{variant}, each seed",
                            legendgroup=variant, marker={"size": 8, "color": charts.faint(color, 0.5)})
        fig.add_scatter(x=[float(np.mean(values))], y=[variant], mode="markers", name=variant, legendgroup=variant,
                        marker={"size": 13, "color": color, "symbol": "diamond"})
    drawn = bool(fig.data)
    if drawn and base is not None:
        fig.add_vline(x=base, line={"dash": "dot", "color": charts.BASE},
                      annotation={"text": "base", "font": {"color": charts.BASE}})
    return Figure(f"{title}, {run.arm}" if many else title, one_view(fig if drawn else None), why, note=note)


def mean_of(rows: list[dict[str, Any]], key: str) -> float | None:
    """Mean of a column of the scored rows; None where no row has it."""
    values = [row[key] for row in rows if row.get("status") == "ok" and row.get(key) is not None]
    return float(np.mean(values)) if values else None


def _runaway(one: Trained, key: str) -> Any:
    return ((one.diagnostics or {}).get("runaway") or {}).get(key)


def _cap_hits(run: Run, colors: dict[str, str], many: bool) -> Figure:
    return dots(run, colors, "Cap hits", "utterances cut at the token limit", lambda one: mean_of(one.rows, "cap_hit"),
                mean_of(run.base, "cap_hit"), NO_EVALUATION, many=many)


def _early_stops(run: Run, colors: dict[str, str], many: bool) -> Figure:
    return dots(run, colors, "Early stops", "samples that stop too early",
                lambda one: _runaway(one, "early_eos_rate"), None, NO_DIAGNOSTICS, many=many,
                note="Of the evaluation utterances whose text the base spoke as well: those that stop before half of "
                     "its mean duration.")


def _loops(run: Run, colors: dict[str, str], many: bool) -> Figure:
    return dots(run, colors, "Loops", "utterances that say two words again", stopping.loops,
                stopping.loops_of_base(run), why_empty(run.trained), many=many,
                note="Of the evaluation utterances that were scored: the share in which two words in a row are said "
                     "more often than the text has them, as heard.")


def _silence(run: Run, colors: dict[str, str], many: bool) -> Figure:
    return dots(run, colors, "Silence inside", "longest silence inside, mean, seconds",
                lambda one: mean_of(one.rows, "max_inner_silence"), mean_of(run.base, "max_inner_silence"),
                NO_EVALUATION, many=many, percent=False)


def _repetition(run: Run, colors: dict[str, str], many: bool) -> Figure:
    return dots(run, colors, "Repetition", "n-grams of codes that occurred before",
                lambda one: mean_of(one.rows, "repeated_ngram"), mean_of(run.base, "repeated_ngram"), NO_EVALUATION,
                many=many)


def _pauses(run: Run, colors: dict[str, str], many: bool) -> Figure:
    return dots(run, colors, "Pause errors", "pause error, mean", lambda one: mean_of(one.rows, "pause_error"),
                mean_of(run.base, "pause_error"), NO_EVALUATION, many=many, percent=False)


def _to_base(run: Run) -> Callable[[dict[str, Any]], float | None]:
    by_prompt: dict[str, list[float]] = {}
    for row in run.base:
        if row.get("status") == "ok" and row.get("duration"):
            by_prompt.setdefault(row["prompt_id"], []).append(row["duration"])

    def ratio(row: dict[str, Any]) -> float | None:
        known = by_prompt.get(row["prompt_id"])
        return row["duration"] / float(np.mean(known)) if known and row.get("duration") is not None else None

    return ratio


def _outside(run: Run, colors: dict[str, str], many: bool) -> Figure:
    """Below p1 to the left, above p99 to the right; the base itself has 1 % on each side."""
    groups = by_variant(run.trained)
    fig = charts.figure("share of utterances outside the base's p1 to p99", "", showlegend=False,
                        height=110 + 30 * len(groups), barmode="relative", bargap=0.4)
    fig.update_layout(yaxis=one_line_each(len(groups)), xaxis={"tickformat": ".0%"})
    for variant, seeds in groups.items():
        for key, label, sign in (("below_p1", "shorter than p1", -1), ("above_p99", "longer than p99", 1)):
            values = [share for one in seeds if (share := _runaway(one, key)) is not None]
            if values:
                fig.add_bar(x=[sign * float(np.mean(values))], y=[variant], orientation="h", legendgroup=variant,
                            name=f"{variant}: {label}", marker={"color": colors[variant],
                                                                "opacity": 1.0 if sign > 0 else 0.6})
    drawn = bool(fig.data)
    for at in (-0.01, 0.01) if drawn else ():
        fig.add_vline(x=at, line={"dash": "dot", "color": charts.BASE})
    title = "Outside the base's range, shorter (left) and longer (right)"
    return Figure(f"{title}, {run.arm}" if many else title, one_view(fig if drawn else None), NO_DIAGNOSTICS,
                  note="Of all evaluation utterances: seconds a word, against the base's utterances of the same texts.")


def _table(study: Study) -> Table:
    rows = []
    for one in study.trained:
        if (one.diagnostics or {}).get("runaway"):
            rows.append([Cell(one.arm, one.arm), Cell(one.variant, one.variant), number(one.seed, "{:d}"),
                         *[number(_runaway(one, key), "{:.2%}") for key, _ in RATES],
                         number(_runaway(one, "n"), "{:d}")])
    return Table("Run-away and collapse", ["run", "variant", "seed", *[label for _, label in RATES], "samples"], rows,
                 NO_DIAGNOSTICS, note="Of the evaluation utterances, each policy's own.")
