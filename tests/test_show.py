"""talker-rl show: the table of a finished run again, several runs side by side with what was set otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from talker_rl import cli
from talker_rl.config import load_data
from talker_rl.evaluation.summary import compare
from talker_rl.report.page import headline, text_table
from talker_rl.report.show import comparison, differing, read
from talker_rl.report.sweep_table import text_table as sweep_table


def row(prompt: str, errors: int) -> dict[str, Any]:
    return {"prompt_id": prompt, "seed": 0, "status": "ok", "wer": errors / 4, "substitutions": errors, "deletions": 0,
            "insertions": 0, "ref_words": 4, "pause_error": 0.1, "pause_error_scorable": 0.1,
            "pause_scorable_share": 1.0, "duration": 2.0 + errors, "cap_hit": False}


def summary(errors: int = 1) -> dict[str, Any]:
    return compare([row(f"p{i}", 2) for i in range(9)], [row(f"p{i}", errors) for i in range(9)], resamples=100)


def write_run(folder: Path, errors: int = 1, variants: dict[str, Any] | None = None, undone: str = "",
              **config: Any) -> Path:
    named = {"variants": variants} if variants else {}
    settings = load_data({"name": folder.name, **named, **config}).resolved()
    variants = variants or {"default": {}}
    stages = {name: {"state": "running" if name == undone else "done"}
              for name in ("prompts", "eval/base", *(f"eval/{name}" for name in variants))}
    (folder / "eval").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"config": settings, "stages": stages, "commands": []}))
    for name in variants:
        (folder / "eval" / name).mkdir()
        (folder / "eval" / name / "summary.json").write_text(json.dumps(summary(errors)))
    (folder / "eval" / "summary.json").write_text(json.dumps({"variant": next(iter(variants)), **summary(errors)}))
    return folder


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(["show", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert not captured.err
    return captured.out


def test_a_finished_run_is_printed_as_it_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    out = shown(capsys, run)
    found = json.loads((run / "eval" / "summary.json").read_text())
    assert text_table(found) in out and headline(found) in out and "-25.00 points" in out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_several_runs_stand_side_by_side_with_the_settings_that_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_run(tmp_path / "a", 1, pairs={"margin": 0.1})
    b = write_run(tmp_path / "b", 2, pairs={"margin": 0.2}, train={"loss": {"type": "simpo", "gamma": 1.0}})
    lines = shown(capsys, a, b, a).splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["a", "default"], ["b", "default"]]
    assert "50.00%" in lines[1] and "25.00% [25.00%, 25.00%]" in lines[1]
    assert "-25.00 points [-25.00, -25.00]" in lines[1]
    assert "50.00% [50.00%, 50.00%]" in lines[2] and "0.00 points [0.00, 0.00]" in lines[2]
    at = next(i for i, line in enumerate(lines) if line.startswith("settings that differ"))
    assert lines[at].split()[-2:] == ["a", "b"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[at + 1:]}
    assert rows["pairs.margin"] == ["0.1", "0.2"] and rows["train.loss.type"] == ["dpo", "simpo"]
    assert rows["train.loss.gamma"] == ["(not", "set)", "1.0"] and "name" not in rows and "seed" not in rows


def test_variants_of_one_run_are_rows_and_the_best_on_dev_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "r", variants={"dpo": {"loss": {"type": "dpo"}}, "ipo": {"loss": {"type": "ipo"}}})
    out = shown(capsys, run)
    assert "dpo *" in out and "ipo *" not in out and "best on dev" in out
    assert "r, dpo" in out and "train.loss.type" in out
    rows = read(run).rows
    assert differing(rows)["train.loss.type"] == ["dpo", "ipo"]
    same = write_run(tmp_path / "other" / "r", 1)
    out = comparison([*read(same).rows, *read(write_run(tmp_path / "r2")).rows])
    assert "Their settings are the same." in out
    two = comparison([*read(same).rows, *read(write_run(tmp_path / "third" / "r")).rows])
    assert str(tmp_path / "third" / "r") in two and str(same) in two  # one name, two folders


def test_json_holds_the_figures_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", 2, seed=3)]
    found = json.loads(shown(capsys, *runs, write_run(tmp_path / "c", undone="eval/base"), "--json"))
    stored = json.loads((runs[0] / "eval" / "default" / "summary.json").read_text())
    assert found["runs"][0] == {"run": str(runs[0]), "variant": "default", "best_on_dev": True, **stored}
    assert found["differing_settings"] == {"seed": [0, 3]}
    (left,) = found["unfinished"]
    assert (left["folder"], left["begun"]) == (str(tmp_path / "c"), ["eval/base"])


def test_a_run_that_is_not_finished_says_what_is_done_and_what_to_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "a", variants={"dpo": {}, "ipo": {}}, undone="eval/ipo")
    out = shown(capsys, run)
    assert "is not finished" in out and "done:  prompts, eval/base, eval/dpo" in out and "begun: eval/ipo" in out
    assert f"go on: talker-rl run --run-dir {run}" in out
    sweep = tmp_path / "sweep"
    arm = write_run(sweep / "arms" / "biased", undone="eval/default")
    (sweep / "sweep.json").write_text("{}")
    for folder in (sweep, arm):
        assert f"go on: talker-rl sweep --run-dir {sweep}" in shown(capsys, folder)
    assert "arms/biased/prompts" in shown(capsys, sweep)


def test_a_sweep_prints_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = {"arm": "a", "variant": "ipo", "seed": None, "n": 8, "wer": 0.2, "wer_ci95": [0.1, 0.3],
           "wer_diff_baseline": -0.01, "wer_diff_baseline_ci95": None, "drift": -0.02,
           "duration_ratio_ci95": [0.97, 0.99], "drift_vs_baseline": None, "drift_vs_baseline_ci95": None}
    found = {"baseline": "dpo", "rows": [one], "notes": ["so it was"], "claims": [],
             "pareto": [{"arm": "a", "variant": "ipo", "front": True}]}
    (tmp_path / "sweep.json").write_text("{}")
    (tmp_path / "ablation.json").write_text(json.dumps(found))
    out = shown(capsys, tmp_path)
    assert sweep_table(found) in out and "pareto" in out and "so it was" in out and "-2.0%" in out
    assert json.loads(shown(capsys, tmp_path, "--json"))["sweeps"] == [{"sweep": str(tmp_path), **found}]
    tested = {**found, "rows": [one | {"wer_diff_baseline_p_holm": 0.0123, "drift_vs_baseline_p_holm": None}]}
    assert "0.012" not in sweep_table(found) and "0.012" in sweep_table(tested)
    earlier = (tmp_path / "ablation.json").read_text().replace("wer_diff_baseline", "wer_diff_dpo")
    (tmp_path / "ablation.json").write_text(earlier.replace("drift_vs_baseline", "drift_vs_dpo"))
    assert shown(capsys, tmp_path) == out
    assert json.loads(shown(capsys, tmp_path, "--json"))["sweeps"] == [{"sweep": str(tmp_path), **found}]


def test_what_is_no_run_is_told_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "my-run")
    assert cli.main(["show", str(tmp_path / "myrun")]) == 1
    assert f"did you mean {tmp_path / 'my-run'}?" in capsys.readouterr().err
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "sweep.json").write_text("{}")
    assert cli.main(["show", str(tmp_path / "loses")]) == 1
    assert f"did you mean {tmp_path / 'losses'}?" in capsys.readouterr().err
    (tmp_path / "my-run" / "manifest.json").write_text("{")
    assert cli.main(["show", str(tmp_path / "my-run")]) == 1
    assert "damaged" in capsys.readouterr().err
