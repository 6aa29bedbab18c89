"""What a dashboard is made of, as plain data: sections of figures, tables and notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from talker_rl.base.figures import NONE, chance, span, written

Rows = list[dict[str, Any]]


@dataclass
class Figure:
    """A chart, or several views of it of which one is shown; without a view the page says why."""

    title: str
    views: dict[str, go.Figure]
    """What the view shows (a variant, say) -> figure; a single view may be called ``""``."""
    why: str = "the folder holds no data for it"
    """Why there is nothing to draw, should ``views`` be empty."""
    note: str = ""
    wide: bool = False


@dataclass
class Cell:
    """One field of a table: what is read and what it is sorted by."""

    text: str
    sort: float | str | None = None
    """None sorts last."""
    mark: str = ""
    """``better``, ``worse`` or nothing."""
    below: str = ""
    """Stands in a second line, small: an interval."""


@dataclass
class Table:
    """A table that a click (or Enter) on a heading sorts; without rows the page says why."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    why: str = "the folder holds no data for it"
    note: str = ""
    strong: set[int] = field(default_factory=set)
    """Rows that pool others, by index."""


@dataclass
class Claim:
    """A statement that the intervals bear out, or do not."""

    holds: bool
    text: str
    why: str = ""


@dataclass
class Section:
    """A heading with what belongs under it."""

    title: str
    lead: str = ""
    items: list[Figure | Table] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)


@dataclass
class Page:
    """A dashboard, apart from its pair browser."""

    name: str
    """length, stability or ablation."""
    title: str
    lead: str
    sections: list[Section]
    legend: dict[str, str] = field(default_factory=dict)
    """Variant -> color; a click hides it in all charts that draw it."""
    notes: list[str] = field(default_factory=list)


def one_view(figure: go.Figure | None) -> dict[str, go.Figure]:
    """The views of a chart that has one, or none."""
    return {} if figure is None else {"": figure}


def number(value: Any, pattern: str = "{:.3f}", mark: str = "") -> Cell:
    """A figure's cell; a dash where there is none."""
    return Cell(NONE) if value is None else Cell(written(value, pattern), float(value), mark)


def with_interval(
    value: Any, interval: Any, pattern: str = "{:.3f}", lower_is_better: bool | None = None, p: float | None = None
) -> Cell:
    """A figure with its 95 % interval and, where one is known, its p-value; marked where a direction is better and the
    interval excludes 0, by a p-value where it is below 0.05."""
    if value is None:
        return Cell(NONE)
    below, mark = span(interval, pattern), ""
    if p is not None:
        below = f"{below} p {chance(p)}"
    if interval and lower_is_better is not None:
        low, high = interval
        if (low > 0 or high < 0) if p is None else p < 0.05:
            mark = "better" if (value < 0) == lower_is_better else "worse"
    return Cell(written(value, pattern), float(value), mark, below)
