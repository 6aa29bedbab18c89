"""The length page: does a loss change how long the Talker speaks, and does its implicit reward prefer a length?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from talker_rl.base.figures import written
from talker_rl.report import anatomy, charts
from talker_rl.report.blocks import Cell, Figure, Page, Section, Table, number, one_view
from talker_rl.report.clips import spaced
from talker_rl.report.collect import Run, Study, Trained
from talker_rl.report.studies import (
    NO_DIAGNOSTICS,
    OF_PAIRS,
    ON_DEV,
    SCORED,
    by_variant,
    conditional,
    drift_rows,
    label_of,
    notes_of,
    one_line_each,
    side_by_side,
    step_curves,
)

SETS = {"held_out": ("held-out pairs", charts.TRAINED), "train": ("training pairs", charts.BASE),
        "samples": ("fresh samples", charts.ACCENT)}
SUBSETS = {"chosen_longer": ("chosen longer", "#2f7fc1"), "chosen_shorter": ("chosen shorter", "#d1603d"),
           "all": ("all", "#808080")}


def length_page(study: Study) -> Page:
    """The page's content; charts without data say why."""
    colors = charts.colors_of(study.variants)
    many = len(study.runs) > 1
    curves = side_by_side([_curves(run, colors, many=many) for run in study.runs])
    drifts = side_by_side([_drift(run, colors, many=many) for run in study.runs])
    return Page(
        "length", f"Length: {study.title}",
        "Which loss makes the Talker better without changing how long it speaks. A loss with a length bias shows in "
        "three places: durations that move with the steps, an implicit reward that slopes with duration, and margins "
        "that shrink once chosen and rejected are brought to a common length.",
        [
            Section("By step", "Speech on the dev prompts at each checkpoint; the line is the mean of the seeds, the "
                    "band reaches from the lowest to the highest.", curves),
            Section("How long it speaks", "Durations of the evaluation utterances, seeds pooled; the box holds the "
                    "middle half.",
                    [durations(run, colors, "duration", "seconds", many=many) for run in study.runs]),
            Section("Drift against KL and WER", "Each line follows one training from step 0 (the reference) to its "
                    "last checkpoint.", drifts),
            anatomy.section(study.runs, colors),
            Section("What the implicit reward prefers", "beta x (log pi - log ref) of whole utterances. A slope means "
                    "that the policy was taught a length.",
                    [_reward_against_length(study.trained), _margin_curves(study.trained), _heat_map(study.trained),
                     *[_pair_lengths(run, many=many) for run in study.runs]]),
            Section("Within pairs", "", [within_pairs(study.trained), _slopes(study.trained)]),
        ],
        legend=colors, notes=notes_of(study),
    )


# -- against step ---------------------------------------------------------------------------------------------------


def _curves(run: Run, colors: dict[str, str], *, many: bool) -> list[Figure]:
    shown = (("WER on dev", "wer", "word error rate"), ("Pause error on dev", "pause_error", "pause error"),
             ("Duration on dev", "duration_ratio", "duration / clean rendering"))
    items = []
    for title, key, axis in shown:
        rows = [row for trained in run.trained for row in trained.curve]
        if key == "duration_ratio" and rows and all(row.get(key) is None for row in rows):
            key, axis = "duration_mean", "mean duration, seconds"  # no clean rendering is known
        items.append(Figure(f"{title}, {run.arm}" if many else title, one_view(step_curves(run.trained, colors, key,
                     axis)), "no checkpoint of this run has been spoken on dev", note=ON_DEV))
    return items


def durations(
    run: Run, colors: dict[str, str], key: str, axis: str, *, many: bool,
    value: Callable[[dict[str, Any]], float | None] | None = None,
) -> Figure:
    """One violin for base and for each variant; single points where there are few."""
    read = value or (lambda row: row.get(key))
    groups = {"base": (run.base, charts.BASE)}
    for variant, seeds in by_variant(run.trained).items():
        groups[variant] = ([row for one in seeds for row in one.rows], colors[variant])
    height = 90 + 46 * len(groups)
    fig = charts.figure(axis, "", showlegend=False, height=height)
    fig.update_layout(yaxis=one_line_each(len(groups)))
    for name, (rows, color) in groups.items():
        values = [read(row) for row in rows if row.get("status") == "ok" and read(row) is not None]
        if values:
            fig.add_violin(x=values, y=[name] * len(values), name=name, legendgroup=name, orientation="h",
                           line={"color": color, "width": 1}, fillcolor=charts.faint(color, 0.3), width=0.9,
                           box={"visible": True}, points="all" if len(values) <= 20 else False, pointpos=0,
                           spanmode="hard", scalemode="width")
    title = "Durations" if key == "duration" else "Duration against the base"
    return Figure(f"{title}, {run.arm}" if many else title, one_view(fig if fig.data else None),
                  "this run has no evaluation yet: run talker-rl eval", note=SCORED, wide=True)


# -- drift ----------------------------------------------------------------------------------------------------------


def _drift(run: Run, colors: dict[str, str], *, many: bool) -> list[Figure]:
    shown = (("Duration against KL", "kl_per_code", "ratio_to_reference", "KL per code, nats", "duration / reference"),
             ("WER against duration", "ratio_to_reference", "wer", "duration / reference", "word error rate"))
    items = []
    for title, x, y, x_axis, y_axis in shown:
        fig = charts.figure(x_axis, y_axis, showlegend=False)
        for one in run.trained:
            rows = [row for row in drift_rows(one) if row.get(x) is not None and row.get(y) is not None]
            if rows:
                fig.add_scatter(x=[row[x] for row in rows], y=[row[y] for row in rows], name=label_of(one),
                                legendgroup=one.variant, mode="lines+markers", line={"color": colors[one.variant]},
                                marker={"size": [6] * (len(rows) - 1) + [10]},
                                text=[f"step {row['step']}" for row in rows])
        items.append(Figure(f"{title}, {run.arm}" if many else title, one_view(fig if fig.data else None),
                            NO_DIAGNOSTICS, note=f"{conditional(run.trained, x)} {ON_DEV}".strip()
                            if x == "kl_per_code" else ON_DEV))
    return items


# -- the implicit reward --------------------------------------------------------------------------------------------


def reward_points(trained: Trained) -> dict[str, list[tuple[float, float]]]:
    """(duration in seconds, implicit reward) of both sides of the pairs at the last step, and of the samples."""
    beta = (trained.diagnostics or {}).get("beta")
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in SETS}
    if beta is None:
        return points
    last = max((row["step"] for row in trained.pair_points), default=0)
    for row in trained.pair_points:
        if row["step"] != last:
            continue
        for side in ("chosen", "rejected"):
            logps = row[f"policy_{side}_logp"], row[f"ref_{side}_logp"]
            if None not in logps:
                points["held_out" if row["held_out"] else "train"].append(
                    (row[f"{side}_seconds"], beta * (logps[0] - logps[1])))
    points["samples"] = [(row["seconds"], beta * (row["policy_logp"] - row["ref_logp"])) for row in trained.samples
                         if None not in (row["policy_logp"], row["ref_logp"])]
    return points


def _reward_against_length(trained: list[Trained]) -> Figure:
    views = {}
    for one in trained:
        fits = (one.diagnostics or {}).get("implicit_reward") or {}
        fig = charts.figure("duration, seconds", "implicit reward")
        for name, points in reward_points(one).items():
            if not points:
                continue
            label, color = SETS[name]
            x, y = zip(*spaced(points, charts.MAX_POINTS), strict=True)
            fig.add_scatter(x=x, y=y, mode="markers", name=label, legendgroup=name,
                            marker={"size": 5, "color": color, "opacity": 0.45})
            fit = fits.get(name)
            if fit and fit.get("slope_per_second") is not None:
                ends = [min(x), max(x)]
                r2 = "" if fit.get("r2") is None else f", R² {fit['r2']:.2f}"
                fig.add_scatter(x=ends, y=[fit["intercept"] + fit["slope_per_second"] * end for end in ends],
                                mode="lines", line={"color": color, "width": 2.5}, legendgroup=name,
                                name=f"{written(fit['slope_per_second'], '{:+.3f}')} per second{r2}")
        if fig.data:
            views[label_of(one)] = fig
    return Figure("Implicit reward against length", views, NO_DIAGNOSTICS,
                  note=f"{OF_PAIRS} Fresh samples: the chosen policy's own evaluation utterances.")


def _margin_curves(trained: list[Trained]) -> Figure:
    views = {}
    for one in trained:
        rows = (one.diagnostics or {}).get("margin_curves") or []
        fig = charts.figure("step", "mean margin, nats (without beta)", height=380)
        for subset, (label, color) in SUBSETS.items():
            mine = sorted((row for row in rows if row["subset"] == subset), key=lambda row: row["step"])
            for key, name, dash in (("raw", label, "solid"), ("common", f"{label}, common length", "dot")):
                points = [(row["step"], row[key]) for row in mine if row.get(key) is not None]
                if points:
                    x, y = zip(*points, strict=True)
                    fig.add_scatter(x=x, y=y, name=name, mode="lines+markers", line={"color": color, "dash": dash},
                                    marker={"size": 5})
        if fig.data:
            fig.add_hline(y=0, line={"color": "#888", "width": 1})
            views[label_of(one)] = fig
    return Figure("Margins during training, raw and at common length", views, NO_DIAGNOSTICS,
                  note="Where solid and dotted part, the loss is paid for length: SamPO's over- and under-estimation. "
                  + OF_PAIRS)


def _heat_map(trained: list[Trained]) -> Figure:
    views = {}
    for one in trained:
        found = (one.diagnostics or {}).get("heatmap") or {}
        if not any(value is not None for row in found.get("mean") or [] for value in row):
            continue
        fig = charts.figure("rejected, seconds", "chosen, seconds")
        extreme = max(abs(value) for row in found["mean"] for value in row if value is not None)
        fig.add_heatmap(x=found["rejected_edges"], y=found["chosen_edges"], z=found["mean"], text=found["count"],
                        texttemplate="%{text}", colorscale="RdBu", zmin=-extreme, zmax=extreme, zmid=0,
                        colorbar={"thickness": 10, "title": {"text": "nats"}}, xgap=1, ygap=1,
                        hovertemplate="chosen %{y} s, rejected %{x} s<br>mean %{z:.2f} nats, %{text} pairs"
                                      "<extra></extra>")
        views[label_of(one)] = fig
    return Figure("log pi(rejected) - log pi(chosen), by both lengths", views, NO_DIAGNOSTICS,
                  note="The number in a field counts its pairs. LD-DPO's diagonal: a policy that only follows length "
                  "turns color across it. " + OF_PAIRS)


def _pair_lengths(run: Run, *, many: bool) -> Figure:
    rows = [{"margin": pair.margin, "chosen_seconds": pair.chosen_seconds, "rejected_seconds": pair.rejected_seconds}
            for pair, _ in spaced(run.pairs, charts.MAX_POINTS)]
    title = "Pairs trained on: margin against length"
    return Figure(f"{title}, {run.arm}" if many else title, one_view(charts.margin_against_length(rows)),
                  "this run holds no pairs", note=OF_PAIRS)


# -- tables ---------------------------------------------------------------------------------------------------------


def within_pairs(trained: list[Trained]) -> Table:
    """A row per variant, seed and set of pairs."""
    rows = []
    for one in trained:
        for name, found in ((one.diagnostics or {}).get("within_pairs") or {}).items():
            if found:
                rows.append([
                    Cell(one.arm, one.arm), Cell(one.variant, one.variant), number(one.seed, "{:d}"),
                    Cell(SETS[name][0], name), number(found.get("n"), "{:d}"),
                    number(found.get("accuracy"), "{:.1%}"),
                    number(found.get("accuracy_chosen_longer"), "{:.1%}"),
                    number(found.get("accuracy_chosen_shorter"), "{:.1%}"),
                    number(found.get("reward_length_corr"), "{:+.2f}"),
                    number(found.get("sign_agreement"), "{:.1%}"),
                    number(found.get("pick_longer_accuracy"), "{:.1%}"),
                    number(found.get("pick_shorter_accuracy"), "{:.1%}"),
                ])
    return Table(
        "Reward difference against length difference",
        ["run", "variant", "seed", "pairs", "n", "accuracy", "where chosen is longer", "where chosen is shorter",
         "corr. with length", "sign agreement", "pick the longer", "pick the shorter"], rows, NO_DIAGNOSTICS,
        note="A policy that ranks no better than the better of the two length rules has learned a length. " + OF_PAIRS)


def _slopes(trained: list[Trained]) -> Table:
    rows = []
    for one in trained:
        found = one.diagnostics or {}
        win = found.get("win_rate") or {}
        fits = found.get("implicit_reward") or {}
        if found:
            rows.append([
                Cell(one.arm, one.arm), Cell(one.variant, one.variant), number(one.seed, "{:d}"),
                *[number((fits.get(name) or {}).get(key), pattern)
                  for name in ("held_out", "samples") for key, pattern in (
                      ("slope_per_second", "{:+.3f}"), ("r2", "{:.2f}"), ("spearman", "{:+.2f}"))],
                number(win.get("raw"), "{:.1%}"), number(win.get("length_controlled"), "{:.1%}"),
                number((found.get("limits") or {}).get("rate"), "{:.1%}"),
            ])
    return Table(
        "Slope of the implicit reward, and wins over the base",
        ["run", "variant", "seed", "held-out: slope per second", "R²", "Spearman", "samples: slope per second", "R²",
         "Spearman", "wins", "wins, length controlled", "over the stated limit"], rows, NO_DIAGNOSTICS,
        note="Samples and wins: of the evaluation utterances, each policy's own.")
