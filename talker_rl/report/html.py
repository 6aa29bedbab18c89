"""From plain data to one HTML file that opens from disk with no network: what all pages share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.offline
from markupsafe import Markup

from talker_rl.base.disk import atomic_write

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, **data: Any) -> str:
    """A template with style, scripts and Plotly embedded, each once."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    env.filters["embedded"] = embedded
    env.filters["plot"] = plot
    env.globals["file"] = lambda name: Markup((_TEMPLATES / name).read_text(encoding="utf-8"))
    env.globals["plotly_js"] = lambda: Markup(plotly.offline.get_plotlyjs())
    return env.get_template(template).render(**data)


def embedded(data: Any) -> Markup:
    """JSON for a ``<script type="application/json">``: nothing in it can end the script."""
    return Markup(json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def plot(views: dict[str, go.Figure]) -> Markup:
    """A chart's views, label and figure, as embedded JSON."""
    return embedded([{"label": label, **json.loads(figure.to_json())} for label, figure in views.items()])


def write_page(html: str, path: Path) -> Path:
    """Puts the page at ``path`` in one atomic step."""
    atomic_write(path, html)
    return path
