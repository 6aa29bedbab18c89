"""The dashboards without a browser: what is gathered from folders, and what the charts and tables make of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from dashboard_helpers import write_json, write_run, write_sweep
from pipeline_helpers import write_world

from talker_rl import cli
from talker_rl.base.errors import DataError, StageError
from talker_rl.data.import_pairs import import_votes
from talker_rl.records.candidate import Candidate
from talker_rl.records.pair import Pair, pair_id_of
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.report.ablation import ablation_page, drift_interval, frontier
from talker_rl.report.blocks import Figure, Page, Table
from talker_rl.report.browser import browser
from talker_rl.report.collect import collect
from talker_rl.report.dashboards import PAGES, main, write_dashboards
from talker_rl.report.html import embedded
from talker_rl.report.length import length_page, reward_points
from talker_rl.report.stability import stability_page
from talker_rl.report.transcript import alignment_of, codes_per_word
from talker_rl.store.shards import ShardFolder
from talker_rl.sweep_config import trainings

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("pages") / "sweep")


def figures(page: Page) -> dict[str, Figure]:
    return {item.title: item for section in page.sections for item in section.items if isinstance(item, Figure)}


def tables(page: Page) -> dict[str, Table]:
    return {item.title: item for section in page.sections for item in section.items if isinstance(item, Table)}


def only(figure: Figure) -> go.Figure:
    (view,) = figure.views.values()
    return view


def test_a_sweep_is_gathered_with_arms_variants_and_seeds(sweep: Path) -> None:
    study = collect([sweep])
    assert [run.arm for run in study.runs] == ["biased", "natural"]
    assert [(t.variant, t.seed) for t in study.runs[0].trained] == [
        (v, s) for v in ("dpo", "ld_dpo_a0.5", "sft") for s in (0, 1)]
    assert study.variants == ["dpo", "ld_dpo_a0.5", "sft"] and study.ablation is not None
    first = study.runs[0].heard(study.runs[0].pairs[:1])[0]
    assert set(first.scores) == set(first.candidates) == {first.pair.chosen_id, first.pair.rejected_id}


def test_runs_of_one_name_stay_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / side / "run", diagnostics=False, pairs=1) for side in ("a", "b")]
    study = collect(folders)
    assert [run.arm for run in study.runs] == ["a/run", "b/run"]
    assert [t.arm for t in study.trained] == ["a/run", "b/run"]


def test_a_strange_or_damaged_folder_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StageError, match="no run folder"):
        collect([tmp_path])
    assert main("length", "x", [str(tmp_path)]) == 1
    assert "fix:" in capsys.readouterr().err
    run = write_run(tmp_path / "run", pairs=1)
    (run / "diagnostics" / "dpo" / "pairs.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(DataError, match="damaged"):
        collect([run])


def test_seed_bands_reach_from_the_least_to_the_greatest(sweep: Path) -> None:
    chart = only(figures(length_page(collect([sweep])))["WER on dev, biased"])
    assert len(chart.data) == 6  # a line and a band for each of three variants
    band, line = chart.data[0], chart.data[1]
    assert line.name == "dpo" and list(line.x) == [0, 10, 20]
    assert line.y == pytest.approx([0.305, 0.285, 0.265])  # of 0.30 and 0.31, ...
    assert band.y == pytest.approx([0.31, 0.29, 0.27, 0.26, 0.28, 0.30])


def test_the_implicit_reward_is_drawn_with_its_planted_slope(sweep: Path) -> None:
    study = collect([sweep])
    points = np.array(reward_points(study.trained[0])["train"])
    assert len(points) == 8  # both sides of four pairs, at the last step only
    assert np.polyfit(points[:, 0], points[:, 1], 1) == pytest.approx([2.0, -1.0])
    chart = figures(length_page(study))["Implicit reward against length"].views["biased: dpo (seed 0)"]
    line = next(t for t in chart.data if t.mode == "lines")
    assert (line.y[1] - line.y[0]) / (line.x[1] - line.x[0]) == pytest.approx(2.0) and "R² 0.90" in line.name


def test_the_heat_map_shows_means_and_counts(sweep: Path) -> None:
    trace = figures(length_page(collect([sweep])))["log pi(rejected) - log pi(chosen), by both lengths"].views[
        "biased: dpo (seed 0)"].data[0]
    assert [list(row) for row in trace.z] == [[-1.0, 2.0], [None, 0.5]] and list(trace.text[0]) == [3, 2]
    assert trace.zmin == -2.0 and trace.zmax == 2.0


def test_stability_compares_with_the_base(sweep: Path) -> None:
    page = stability_page(collect([sweep]))
    chart = only(figures(page)["Duration against the base, biased"])
    # Utterances 2.0 + 0.1 i, times 1.10 for the first seed of dpo; text p0 of the base lasts 2.2 on average.
    assert min(chart.data[1].x) == pytest.approx(2.0 * 1.10 / 2.2)
    outside = only(figures(page)["Outside the base's range, shorter (left) and longer (right), biased"])
    assert [trace.x[0] for trace in outside.data[:2]] == [-0.015, 0.05]
    (table,) = tables(page).values()
    assert len(table.rows) == 12 and table.rows[0][3].text == "1.00%"
    assert page.notes == ["held_out: no pairs were held out (every training)"]


def test_the_frontier_and_the_drift_interval() -> None:
    assert frontier([(0.0, 0.25), (0.1, 0.2), (0.05, 0.3), (0.1, 0.22), (0.2, 0.2)]) == [(0.0, 0.25), (0.1, 0.2)]
    assert drift_interval({"duration_ratio_ci95": [0.9, 0.96]}) == pytest.approx((0.04, 0.1))
    assert drift_interval({"duration_ratio_ci95": [0.98, 1.05]}) == pytest.approx((0.0, 0.05))
    assert drift_interval({}) is None


def test_the_ablation_page_holds_every_row_and_only_claims_that_hold(sweep: Path) -> None:
    page = ablation_page(collect([sweep]))
    (table,) = tables(page).values()
    assert len(table.rows) == 2 * (1 + 3 * 3)
    assert table.strong == set(range(8))  # base and the pooled rows stand first
    ld = next(row for row in table.rows if row[1].text == "ld_dpo_a0.5")
    assert (ld[8].text, ld[8].below, ld[8].mark) == ("-5.0 points", "[-6.0, -4.0]", "better")
    assert len(only(figures(page)["Pareto view, biased"]).data) == 3 + 1 + 1  # variants, base, frontier
    assert [claim.holds for section in page.sections for claim in section.claims] == [True, True, False, False]


def test_the_ablation_page_shows_what_intervals_are_over_and_corrected_p_values(sweep: Path) -> None:
    study = collect([sweep])
    assert "say nothing of other trainings, and nothing is corrected" in ablation_page(study).lead  # an older table
    for row in study.ablation["rows"]:
        row["intervals"] = "texts" if row["seed"] is not None or row["variant"] == "base" else "texts and seeds"
        row["drift_vs_baseline_p_holm"] = 0.2 if row["intervals"] == "texts and seeds" else None
    page = ablation_page(study)
    assert "of a pooled row over texts and training seeds" in page.lead and "Holm's correction" in page.lead
    (table,) = tables(page).values()
    cells = [row[8] for row in table.rows if row[1].text == "ld_dpo_a0.5" and row[0].text == "biased"]
    assert (cells[0].below, cells[0].mark) == ("[-6.0, -4.0] p 0.20", "")  # pooled; its seeds have no p
    assert (cells[1].below, cells[1].mark) == ("[-6.0, -4.0]", "better")
    for row in study.ablation["rows"]:
        row["intervals"] = "texts"
    assert "with one training seed they say nothing of other trainings" in ablation_page(study).lead


def test_a_plain_run_has_an_ablation_table_of_what_it_knows(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ("dpo", "ipo"), pairs=1)
    for name in ("dpo", "ipo"):
        write_json(run / "eval" / name / "summary.json", {
            "base": {"n": 8, "wer": 0.25, "wer_ci95": [0.2, 0.3]}, "trained": {"n": 8, "wer": 0.2, "wer_ci95": None},
            "wer_diff": -0.05, "wer_diff_ci95": [-0.1, 0.01], "duration_ratio_to_base": 0.9})
    page = ablation_page(collect([run]))
    (table,) = tables(page).values()
    assert [row[1].text for row in table.rows] == ["base", "dpo", "ipo"] and table.rows[1][5].mark == ""
    assert "no sweep" in page.notes[0] and "No claim was tested" in page.sections[1].lead


def test_an_empty_run_explains_every_missing_part(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", (), pairs=0)
    for path in write_dashboards(run):
        html = path.read_text(encoding="utf-8")
        assert "the folder holds none" in html and "not drawn" in html.lower()
        assert "data-chart>" not in html.split("<script>")[0] or path.stem != "loss_ablation"


def test_pairs_that_do_not_fit_stay_silent_and_the_page_says_so(sweep: Path) -> None:
    study = collect([sweep])
    whole = browser(study, pairs=12, audio_format="opus", max_bytes=10**8)
    assert len(whole.pairs) == 12 and len(whole.clips) == 12  # the arms share pairs, so each clip is held once
    strips = [embedded([pair[side]["strip"] for side in ("chosen", "rejected")]) for pair in whole.pairs[:3]]
    half = sum(map(len, list(whole.clips.values())[:6])) + sum(len(strip.encode()) for strip in strips)
    part = browser(study, pairs=12, audio_format="opus", max_bytes=half)
    assert len(part.clips) == 6 and "Only 3 of 12 pairs can be heard" in part.notes[0]
    for what in ("clip", "strip"):
        assert [pair["chosen"][what] is not None for pair in part.pairs[:6]] == [True] * 3 + [False] * 3
    less = browser(study, pairs=12, audio_format="opus", max_bytes=half - 1)
    assert len(less.clips) == 4


def test_speech_that_is_not_kept_and_cannot_be_decoded_is_a_note(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", pairs=2)
    for file in (run / "audio" / "scores").iterdir():
        file.unlink()
    found = browser(collect([run]), pairs=2, audio_format="opus", max_bytes=10**8)
    assert all(pair[side]["strip"] is None for pair in found.pairs for side in ("chosen", "rejected"))
    assert len(found.pairs) == 2 and not found.clips and "cannot be decoded here" in found.notes[0]


def test_a_strip_shows_what_its_own_arm_heard_in_a_clip_that_two_arms_share(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, pairs=1) for name in ("a", "b")]
    score = ShardFolder(runs[1] / "scores").read_all(ScoreRow)[1]  # the rejected side: "bottle" was left out
    shutil.rmtree(runs[1] / "scores")
    heard = replace(score, transcript=["music", "honey"], spans=[(0.1, 0.2), (0.3, 0.4)])
    ShardFolder(runs[1] / "scores", "test").write(0, [heard], ScoreRow)
    manifest = json.loads((runs[1] / "manifest.json").read_text())
    manifest["config"]["reward"] = {"pauses": {"spurious_seconds": 0.09}}
    write_json(runs[1] / "manifest.json", manifest)
    found = browser(collect(runs), pairs=2, audio_format="opus", max_bytes=10**8)
    assert len(found.clips) == 2
    first, second = (pair["rejected"]["strip"] for pair in found.pairs)
    assert first["peaks"] == second["peaks"] and first["seconds"] == second["seconds"] == pytest.approx(1.0, abs=0.01)
    assert first["marks"] == [(0.0, 0.08, "right", "music", ""), (0.1, 0.18, "right", "mountain", ""),
                              (0.2, 0.28, "right", "river", ""), (0.28, 0.28, "D", "bottle", "")]
    assert [mark[2:] for mark in second["marks"]] == [
        ("right", "music", ""), ("false", "", ""), ("S", "honey", "mountain"), ("D", "river bottle", "")]
    assert found.pairs[1]["chosen"]["strip"]["marks"] == []  # no score: a waveform alone


def test_codes_per_word_follow_the_heard_words() -> None:
    alignment = alignment_of("river bottle music", ["river", "music", "music", "money"])
    assert [op for op, _, _ in alignment] == ["=", "S", "=", "I"]
    assert codes_per_word(alignment, [(0.0, 0.2), (0.3, 0.5), (0.5, 0.6)], 50) == [10, 10, 5, None]
    left_out = alignment_of("river bottle music", ["river", "music"])
    assert codes_per_word(left_out, [(0.0, 0.2), (0.3, 0.5)], 50) == [10, None, 10]
    assert codes_per_word(alignment, [], 50) == [None] * 4


@pytest.mark.parametrize("script", ["length_dashboard", "stability_dashboard", "loss_ablation"])
def test_the_help_of_every_script_teaches_by_example(script: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "analysis" / f"{script}.py"), "--help"], cwd=ROOT, check=True,
                          capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert f"analysis/{script}.py runs/sweep" in done.stdout and "--audio-format" in done.stdout


def test_every_page_is_written_beside_the_run(tmp_path: Path) -> None:
    paths = write_dashboards(write_run(tmp_path / "run", pairs=1))
    assert [path.name for path in paths] == [f"{name}.html" for name in PAGES]
    html = paths[0].read_text(encoding="utf-8")
    assert html.count("plotly.js v") == 1 and "</script><b>" not in html


# -- votes ----------------------------------------------------------------------------------------------------------


def voted(run: Path, *choices: str) -> tuple[Path, list[Pair], list[Prompt], list[Candidate]]:
    pairs = ShardFolder(run / "pairs").read_all(Pair)
    votes = [{"pair_id": p.pair_id, "prompt_id": p.prompt_id, "chosen_id": p.chosen_id, "rejected_id": p.rejected_id,
              "vote": vote, "chosen_was": "A"} for p, vote in zip(pairs, choices, strict=False)]
    file = run / "votes.json"
    file.write_text(json.dumps({"format": "talker-rl-votes-1", "run": "run", "seed": 0, "votes": votes}))
    prompts = [Prompt(p.text, p.speaker, prompt_id=p.prompt_id) for p in pairs]
    return file, pairs, prompts, ShardFolder(run / "rollouts").read_all(Candidate)


def test_votes_become_pairs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", pairs=5)
    file, pairs, prompts, candidates = voted(run, "chosen", "rejected", "tie", "chosen", "rejected")
    made, reasons = import_votes(file, prompts, candidates)
    assert reasons == {"vote_cut": 1, "vote_tie": 1}  # the fifth rejected was cut at the limit: never chosen
    assert [p.prompt_id for p in made] == [pairs[i].prompt_id for i in (0, 1, 3)]
    assert (made[0].chosen, made[0].rejected) == (pairs[0].chosen, pairs[0].rejected)
    assert (made[1].chosen, made[1].rejected) == (pairs[1].rejected, pairs[1].chosen)
    assert made[0].pair_id == pairs[0].pair_id and made[1].pair_id != pairs[1].pair_id
    assert (made[1].chosen_reward, made[1].rejected_reward, made[1].chosen_seconds) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("change, message", [
    (lambda d: d["votes"][0].update(pair_id="ffff"), "pair ffff, which this run does not have"),
    (lambda d: d["votes"][0].update(chosen_id="other-0"), "which this run does not have"),
    (lambda d: d["votes"].append(d["votes"][0]), "voted on twice"),
    (lambda d: d["votes"][0].update(vote="left"), r"votes.0.vote"),
    (lambda d: d.update(format="something else"), "no file of votes"),
])
def test_a_bad_vote_is_one_clear_error(tmp_path: Path, change, message: str) -> None:
    file, _, prompts, candidates = voted(write_run(tmp_path / "run", pairs=2), "chosen", "tie")
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=message):
        import_votes(file, prompts, candidates)
    file.write_text("{broken")
    with pytest.raises(DataError, match="no file of votes"):
        import_votes(file, prompts, candidates)


def test_the_pair_verb_takes_votes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a tiny real run: votes replace the scores' pairs, and only after a clear refusal."""
    config = write_world(tmp_path)
    run = tmp_path / "run"
    for verb in ("prompts", "condition", "rollout", "score", "pair"):
        assert cli.main([verb, "-c", str(config), "--run-dir", str(run), "-q"]) == 0
    file, pairs, _, _ = voted(run, "rejected", "tie", "chosen")
    args = ["pair", "--run-dir", str(run), "--votes", str(file), "-q"]
    assert cli.main(args) == 1
    assert "pairs.votes: null -> " in (refusal := capsys.readouterr().err) and "--force-stage pairs" in refusal
    assert cli.main([*args, "--force-stage", "pairs"]) == 0
    made = ShardFolder(run / "pairs").read_all(Pair)
    expected = {pairs[2].pair_id: pairs[2].chosen}
    if pairs[0].rejected.stopped:  # else it was cut, and never chosen
        expected[pair_id_of(pairs[0].prompt_id, pairs[0].rejected.ids, pairs[0].chosen.ids)] = pairs[0].rejected
    assert {p.pair_id: p.chosen for p in made} == expected
    assert cli.main(["pair", "--run-dir", str(run), "-q"]) == 0  # the run remembers
    assert cli.main(["pair", "--run-dir", str(run), "--votes", str(tmp_path / "none.json"), "-q"]) == 1
    assert "does not exist" in capsys.readouterr().err


STRANGE = ("style", "style-s2", "round2", "train", "choice", "pairs", "a-s1-s2")
"""Names that say something else than they are."""


def test_a_plain_runs_variants_are_what_they_are_called(tmp_path: Path) -> None:
    study = collect([write_run(tmp_path / "run", STRANGE)])
    assert [(t.name, t.variant, t.seed) for t in study.trained] == [(name, name, None) for name in STRANGE]
    assert study.variants == list(STRANGE) and len(study.runs[0].pairs) == 6
    assert set(length_page(study).legend) == set(stability_page(study).legend) == set(STRANGE)


def test_an_arms_variants_and_seeds_are_its_manifests_or_its_sweeps(tmp_path: Path) -> None:
    variants = ("dpo", "dpo-s1", "a-s1-s2")
    old = write_sweep(tmp_path / "sweep", variants, pairs=1)
    cells = [(variant, seed) for variant in variants for seed in (0, 1)]
    moved = shutil.copytree(old / "arms" / "biased", tmp_path / "moved")  # nothing there says what its names mean
    assert [t.variant for t in collect([moved]).trained] == [f"{variant}-s{seed}" for variant, seed in cells]
    manifest = json.loads((moved / "manifest.json").read_text())
    write_json(moved / "manifest.json", manifest | {"trainings": trainings(cells)})
    for folder in (old, old / "arms" / "biased", moved):
        assert [(t.variant, t.seed) for t in collect([folder]).runs[0].trained] == cells
    assert collect([old]).variants == list(variants)


def test_a_rounds_pairs_are_found_by_round_and_variant(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ("train", "default"), pairs=2, diagnostics=False)
    manifest = json.loads((run / "manifest.json").read_text())
    write_json(run / "manifest.json", {**manifest, "config": manifest["config"] | {"iterations": 2}})
    for stage in ("rollouts", "scores", "pairs"):
        shutil.copytree(run / stage, run / "round2" / "train" / stage)
    shutil.copytree(run / "pairs", run / "round1" / "choice" / "pairs")  # of a training that is called so
    found = collect([run]).runs[0]
    assert [prefix for _, prefix in found.pairs] == [""] * 2 + ["round2/train/"] * 2
    assert [item.stage for item in found.heard(found.pairs)] == [""] * 2 + ["round2/train/"] * 2
