"""The section of an online training: what was gained for the decodes, what drifted, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from talker_rl.base.figures import count
from talker_rl.report.blocks import Figure, Section, one_view
from talker_rl.report.charts import ACCENT, BASE, TRAINED, faint, figure
from talker_rl.report.online import PARTS, Online, Point, shares_of_time

X = "decodes trained on"
_GREEN = "#3a9a63"
DRIFT = (
    # title, axis, {metric of a sampling: name}, alarms that it shows
    ("Seconds per word of the text", "seconds per word", {"online/seconds_per_word": "samples"}, ("duration",)),
    ("Entropy", "nats per step", {"online/entropy": "samples"}, ("entropy",)),
    ("Cut at the token limit, or without a score", "share of candidates",
     {"online/cut": "cut", "online/failed": "without a score"}, ("cut", "failed")),
    ("Silence at the end", "seconds", {"online/tail_silence": "samples"}, ("tail_silence",)),
)


def section(online: Online) -> Section:
    """Its charts; those without data say why."""
    return Section(
        "Online training",
        f"{count(len(online.samplings), 'sampling')}, {count(online.samplings[-1].decodes, 'decode')}. A figure of "
        "samples stands at the decodes that the policy which said them had been trained on: 0 is the policy as "
        "training began"
        + (", and with overlap the second sampling is of it too." if online.overlap else "."),
        [_reward(online), _wer(online), *_drift(online), _kl(online), _shares(online), _times(online)])


def _reward(online: Online) -> Figure:
    fig = figure(X, "reward", 280)
    _band(fig, online.reward, TRAINED, "samples")
    _alarms(fig, online, ("hack",))
    return Figure("Reward of the samples", one_view(fig if online.reward else None), note=(
        f"Mean over {_pooled(online)}, after the rules (what was cut or failed counts as the worst of its group), with "
        f"the bootstrap's 95 % interval over texts. Prompts that are trained on. {_rang(online, ('hack',))}").rstrip())


def _wer(online: Online) -> Figure:
    fig = figure(X, "word error rate", 280)
    _band(fig, online.wer, TRAINED, "samples, the reward's recognizer")
    if online.held_out:
        ends = [point.interval or (point.value, point.value) for point in online.held_out]
        fig.add_scatter(
            x=[point.x for point in online.held_out], y=[point.value for point in online.held_out], mode="markers",
            name="held out, the second recognizer", marker={"color": ACCENT, "size": 8, "symbol": "diamond"},
            error_y={"type": "data", "symmetric": False, "thickness": 1.5,
                     "array": [high - p.value for p, (_, high) in zip(online.held_out, ends, strict=True)],
                     "arrayminus": [p.value - low for p, (low, _) in zip(online.held_out, ends, strict=True)]})
    held = ("Points: check-ups on dev prompts that are not trained on, with the 95 % interval over their texts."
            if online.held_out else "There was no check-up by a second recognizer (train.online.held_out).")
    return Figure("Word error rate", one_view(fig if online.wer or online.held_out else None), note=(
        f"Line: errors over words of {_pooled(online)} that were scored, on prompts that are trained on, with the "
        f"bootstrap's 95 % interval over texts. {held}"))


def _drift(online: Online) -> list[Figure]:
    found = []
    for title, axis, names, alarms in DRIFT:
        fig = figure(X, axis, 230, yaxis_rangemode="tozero" if "cut" in alarms else "normal")
        drawn = [_line(fig, [(s.before, s.metrics[key]) for s in online.samplings if key in s.metrics], name, color)
                 for (key, name), color in zip(names.items(), (TRAINED, ACCENT), strict=False)]
        fig.update_layout(showlegend=len(names) > 1)
        _alarms(fig, online, alarms)
        found.append(Figure(title, one_view(fig if any(drawn) else None), why="no sample has it",
                            note=_rang(online, alarms)))
    return found


def _kl(online: Online) -> Figure:
    fig = figure(X, "nats per step", 230, yaxis_rangemode="tozero", yaxis_exponentformat="none")
    drawn = _line(fig, online.kl, "KL", TRAINED)
    _alarms(fig, online, ("kl",))
    note = ("Exact over the vocabulary, on some of the policy's own latest samples; the start is the training's "
            f"reference. {_rang(online, ('kl',))}").rstrip()
    return Figure("KL to the start", one_view(fig if drawn else None), note=note,
                  why="it was not measured: full weights leave no reference behind, or training ended before the first")


def _shares(online: Online) -> Figure:
    names = {"frac_reward_zero_std": ("groups without spread", BASE)}
    if online.credit:
        names["online/credited"] = ("steps with credit", _GREEN)
    fig = figure(X, "share", 230, yaxis_range=[-0.03, 1.03])
    drawn = [_line(fig, [(s.before, s.metrics[key]) for s in online.samplings if key in s.metrics], name, color)
             for key, (name, color) in names.items()]
    credit = (" Steps with credit: those whose advantage is not 0, a mean over candidates, those of groups without "
              "spread among them.") if online.credit else ""
    return Figure("What is learned from", one_view(fig if any(drawn) else None), note=(
        f"A group whose rewards are all equal teaches nothing.{credit}"))


def _times(online: Online) -> Figure:
    fig = figure("decodes so far", "seconds", 230, barmode="stack")
    for part, color in zip(PARTS.values(), (TRAINED, BASE, ACCENT), strict=True):
        fig.add_bar(x=[x for x, _ in online.times], y=[parts.get(part) for _, parts in online.times], name=part,
                    marker_color=color)
    shares = ", ".join(f"{part} {share:.0%}" for part, share in shares_of_time(online).items())
    return Figure("Time by part", one_view(fig if online.times else None), why="the log has no times", note=(
        f"{shares}, of {count(len(online.times), 'sampling')} that the log tells of. Training is that on the sampling "
        "before, and the first wait holds the start of the judge; check-ups are in no part."))


def _pooled(online: Online) -> str:
    return "the samples of one sampling" if online.window == 1 else (
        f"the samples of a sampling and the {online.window - 1} before it")


def _line(fig: go.Figure, points: Sequence[tuple[int, float]], name: str, color: str) -> bool:
    """Whether there was something to draw."""
    fig.add_scatter(x=[x for x, _ in points], y=[y for _, y in points], name=name, mode="lines+markers",
                    line={"color": color}, marker={"size": 4})
    return bool(points)


def _band(fig: go.Figure, points: Sequence[Point], color: str, name: str) -> None:
    inside = [(point.x, *point.interval) for point in points if point.interval]
    x = [x for x, _, _ in inside]
    ends = [*(high for _, _, high in inside), *(low for _, low, _ in reversed(inside))]
    fig.add_scatter(x=[*x, *reversed(x)], y=ends, fill="toself", fillcolor=faint(color, 0.25), line={"width": 0},
                    mode="lines", showlegend=False, hoverinfo="skip")
    _line(fig, [(point.x, point.value) for point in points], name, color)


def _alarms(fig: go.Figure, online: Online, names: Sequence[str]) -> None:
    for alarm in online.alarms:
        if alarm.name in names:
            fig.add_vline(x=alarm.x, line={"dash": "dash", "color": ACCENT}, annotation_text=f"alarm: {alarm.name}",
                          annotation_position="top left")


def _rang(online: Online, names: Sequence[str]) -> str:
    return " ".join(f"Alarm after {count(alarm.x, 'decode')}: {alarm.what}." for alarm in online.alarms
                    if alarm.name in names)
