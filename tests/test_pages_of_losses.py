"""Charts of what losses push on, of stopping, and of predictions: from hand-made diagnostics, and from none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from dashboard_helpers import write_json, write_run, write_sweep

from talker_rl.report.ablation import ablation_page
from talker_rl.report.blocks import Figure, Page
from talker_rl.report.collect import Study, collect
from talker_rl.report.length import length_page
from talker_rl.report.stability import stability_page


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return collect([write_sweep(tmp_path_factory.mktemp("pages") / "sweep", pairs=1)])


def figures(page: Page) -> dict[str, Figure]:
    return {item.title: item for section in page.sections for item in section.items if isinstance(item, Figure)}


def traces(figure: Figure) -> dict[str, Any]:
    (view,) = figure.views.values()
    return {trace.name: trace for trace in view.data}


def test_p_stop_where_the_base_stopped_falls_by_step_whatever_the_policys_own_stops_say(study: Study) -> None:
    found = figures(stability_page(study))
    shown = found["P(stop) where the base stopped, biased"]
    line = traces(shown)["dpo"]
    assert list(line.x) == [0, 10, 20] and list(line.y) == pytest.approx([0.9, 0.5, 0.1])
    assert shown.note.endswith("Conditional on: where the base stopped.")
    own = found["P(stop) where its own samples stopped, biased"]
    assert traces(own)["dpo"].y[-1] == pytest.approx(1.0) and own.note.startswith("Conditional on having stopped")


def test_the_hazard_is_drawn_before_training_and_at_the_chosen_checkpoint(study: Study) -> None:
    shown = figures(stability_page(study))["P(stop) at the end of what the base said, biased"]
    found = traces(shown)
    assert set(found) == {"before training", "dpo", "ld_dpo_a0.5", "sft"}
    assert list(found["dpo"].x) == list(range(-9, 1))
    assert (found["before training"].y[-1], found["dpo"].y[-1]) == pytest.approx((0.9, 0.1))
    assert "the base's last tokens" in shown.note


def test_words_are_drawn_against_those_demanded_and_loops_are_dots(study: Study) -> None:
    found = figures(stability_page(study))
    said = found["Words said by a time, biased"]
    for name, ends in (("dpo", 1.25), ("base", 1.125)):
        assert list(traces(said)[name].y) == pytest.approx([0.4, 0.9, ends])
    (view,) = said.views.values()
    assert [shape.y0 for shape in view.layout.shapes] == [1.0]
    assert list(traces(found["Right words by a time, biased"])["sft"].y) == pytest.approx([0.4, 0.8, 0.9])
    loops = found["Loops, biased"]
    assert list(traces(loops)["dpo"].x) == [0.25]
    (view,) = loops.views.values()
    assert [shape.x0 for shape in view.layout.shapes] == [0.125]  # the base


def test_pushes_are_summed_by_what_tokens_say(study: Study) -> None:
    found = figures(length_page(study))
    stops = traces(found["Net push on the stop, biased"])
    assert [list(stops[f"dpo, {when}"].x) for when in ("before training", "at the chosen checkpoint")] == [[-1], [-0.5]]
    view = found["Push by what tokens say, biased"].views["biased: dpo (seed 0)"]
    bars = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in view.data}
    assert list(bars) == ["chosen, before training", "rejected, before training", "chosen, step 20",
                          "rejected, step 20"]
    assert bars["rejected, before training"] == {"right words": -50, "wrong words": -6, "pauses": 0,
                                                 "silence, tail": -6, "stop": -1}
    assert bars["chosen, step 20"] == {"right words": 60, "wrong words": 2, "pauses": 3, "silence, tail": 5, "stop": 0}


def test_the_prediction_is_drawn_against_what_was_measured(study: Study) -> None:
    found = {title: item for title, item in figures(ablation_page(study)).items() if title.startswith("Predicted push")}
    drawn, empty = found.values()
    assert drawn.title == "Predicted push and measured duration, biased: rho -0.75 [-1.00, +0.25]"
    assert {name: (trace.x[0], trace.y[0]) for name, trace in traces(drawn).items()} == {
        "dpo": (0.0, 1.1), "ld_dpo_a0.5": (-0.5, pytest.approx(1.3)), "sft": (-1.0, 1.5)}
    assert "200 of the arm's pairs" in drawn.note and "-0.50" in drawn.note
    assert empty.title.endswith(", natural") and not empty.views and empty.why == "no times"


@pytest.mark.parametrize("make", [length_page, stability_page])
def test_every_figure_says_what_it_is_of(study: Study, make: Callable[[Study], Page]) -> None:
    notes = {title: item.note for title, item in figures(make(study)).items()}
    assert len(notes) > 10
    assert [title for title, note in notes.items() if "Of " not in note and "onditional on" not in note] == []


NEW = ("P(stop) where the base stopped", "P(stop) at the end of what the base said", "Words said by a time",
       "Right words by a time", "Loops", "Net push on the stop", "Push by what tokens say")


def test_diagnostics_of_before_are_drawn_and_what_they_lack_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", pairs=1)
    file = run / "diagnostics" / "dpo" / "summary.json"
    summary = json.loads(file.read_text())
    for key in ("said", "conditions", "anatomy", "step"):
        del summary[key]
    for row in summary["drift"]:
        del row["p_stop_at_base_stops"], row["hazard"]
    write_json(file, summary)
    old = collect([run])
    found = figures(stability_page(old)) | figures(length_page(old))
    assert [found[title].views for title in NEW] == [{}] * len(NEW)
    assert all("of an earlier version" in found[title].why for title in NEW)
    assert isinstance(next(iter(found["Duration against KL"].views.values())), go.Figure)
    assert "earlier version do not say" in found["Duration against KL"].note
    table = figures(ablation_page(old))["Predicted push and measured duration"]
    assert not table.views and "no sweep" in table.why


def test_what_was_never_diagnosed_and_a_note_of_the_anatomy_say_why(tmp_path: Path) -> None:
    none = collect([write_run(tmp_path / "none", pairs=1, diagnostics=False)])
    found = figures(stability_page(none)) | figures(length_page(none))
    assert all("run talker-rl diagnose" in found[title].why for title in NEW)
    run = write_run(tmp_path / "run", pairs=1)
    file = run / "diagnostics" / "dpo" / "summary.json"
    told = "anatomy: no pair has a time for each word that was heard"
    write_json(file, json.loads(file.read_text()) | {"anatomy": {}, "notes": [told]})
    shown = figures(length_page(collect([run])))["Net push on the stop"]
    assert not shown.views and shown.why == told
