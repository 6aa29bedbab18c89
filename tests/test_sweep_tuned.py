"""A sweep whose variants are tuned and whose checkpoints all speak: what stands where, and what is damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from test_damaged_runs import damage, flip, half
from test_sweep import table, write_sweep
from toy import digest

from talker_rl import cli
from talker_rl.base.disk import CHECKSUM, read_json
from talker_rl.report.sweep_table import text_table
from talker_rl.stages import sweep


@pytest.fixture(autouse=True)
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_pages", lambda *_: None)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sweep of one arm and seed whose checkpoints all speak the eval texts, with two tries of each variant."""
    world = tmp_path_factory.mktemp("tuned")
    file, folder = write_sweep(world), world / "sweep"
    data = yaml.safe_load(file.read_text())
    data |= {"arms": {"natural": {}}, "seeds": [5], "tuning": {"seed": 2, "grid": {"args.learning_rate": [1e-3, 2e-3]}}}
    data["run"] |= {"eval": {"checkpoints": "all", "seeds": 1, "bootstrap_samples": 200},
                    "checkpoint": {"tried": "last", "save_at_kl": [1e-6]}, "train": {"args": {"save_steps": 4}}}
    file.write_text(yaml.safe_dump(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "_pages", lambda *_: None)
        assert cli.main(["sweep", str(file), "--run-dir", str(folder), "-q", "--debug"]) == 0
    return file, folder


def test_what_is_tuned_stands_beside_what_is_published(tuned: tuple[Path, Path]) -> None:
    _, folder = tuned
    chosen = read_json(folder / "tuning.json")["natural"]
    for variant in ("dpo", "ipo"):
        tried = chosen[variant]["tried"]
        assert [t["settings"]["args.learning_rate"] for t in tried] == [1e-3, 2e-3]
        best = max(tried, key=lambda t: t["reward"])
        assert chosen[variant]["chosen"] == best["settings"]
    table = read_json(folder / "ablation.json")
    rows = {row["variant"]: row for row in table["rows"] if row["seed"] is None}
    assert list(rows) == ["base", "dpo", "ipo", "dpo_tuned", "ipo_tuned"]
    # each against its own: the baseline as published, and the baseline tuned
    for one, other in (("ipo", "dpo"), ("ipo_tuned", "dpo_tuned")):
        assert rows[other]["wer_diff_baseline"] is None
        assert rows[one]["wer_diff_baseline"] == pytest.approx(rows[one]["wer"] - rows[other]["wer"])
    assert any("drifts less than dpo_tuned" in c["claim"] for c in table["claims"])
    trained = folder / "arms/natural/round1/train/ipo_tuned-s5/variant.json"
    assert read_json(trained)["config"]["args"]["learning_rate"] == chosen["ipo"]["chosen"]["args.learning_rate"]
    assert "ipo_tuned" in text_table(table)
    assert [row["variant"] for row in table["prediction"]["natural"]["variants"]] == ["dpo", "ipo"]
    told = "tuned variants are measured against dpo_tuned, and no prediction is made for them"
    at = table["notes"].index(told)
    assert table["notes"][at + 1].startswith("natural: dpo_tuned has args.learning_rate 0.00")
    published = [one["chosen"]["args.learning_rate"] == 1e-3 for one in chosen.values()]
    assert table["notes"][at + 1].count("(as published)") == sum(published)
    compared = sum(row["wer_diff_baseline_p"] is not None for row in table["rows"])
    assert [f"for the {compared} comparisons" in note for note in table["notes"]].count(True) == 1


def test_losses_are_also_compared_where_they_have_moved_as_far(tuned: tuple[Path, Path]) -> None:
    _, folder = tuned
    table = read_json(folder / "ablation.json")
    rows = pq.read_table(folder / "curves.parquet").to_pylist()
    names = {(row["variant"], row["train_seed"]) for row in rows}
    assert names == {("base", -1), *((f"{v}{t}", 5) for v in ("dpo", "ipo") for t in ("", "_tuned"))}
    steps = {row["step"] for row in rows if row["variant"] == "dpo"}
    assert len(steps) == 2 and max(steps) == 4  # the first KL above 1e-6, and the last
    assert all(row["kl"] > 0 and row["kl_on_base"] > 0 and row["tokens"] for row in rows if row["variant"] != "base")
    found = {(row["variant"], row["target"]): row for row in table["equal_kl"]}
    assert {name for name, target in found if target == "pair"} == {"ipo", "ipo_tuned"}
    both = found["ipo", "pair"]
    assert 0 < both["kl"] and both["wer_diff_baseline"] is not None and both["seeds"] == 1
    assert {line["variant"] for line in table["frontiers"]} == {"dpo", "ipo", "dpo_tuned", "ipo_tuned"}
    assert "at equal drift" in text_table(table)


def test_a_second_start_tries_nothing_again(tuned: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from talker_rl.stages import train, worker

    _, folder = tuned
    before = {folder / name: digest(folder / name) for name in ("ablation.json", "tuning.json", "curves.parquet")}
    for module, name in ((train, "train_task"), (worker, "work")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("made again"))
    assert cli.main(["sweep", "--run-dir", str(folder), "-q", "--debug"]) == 0
    assert before == {file: digest(file) for file in before}


DRIFT = "arms/natural/curve/dpo-s5"


@pytest.mark.parametrize("change", [flip, half, None])
def test_what_a_curve_or_a_try_lost_is_made_again(
    tuned: tuple[Path, Path], tmp_path: Path, change: Callable[[bytes], bytes] | None
) -> None:
    _, calm = tuned
    folder = shutil.copytree(calm, tmp_path / "sweep", copy_function=os.link)
    for name in ("curves.parquet", "tuning.json", "ablation.json", f"{DRIFT}/shard-00000.parquet",
                 f"{DRIFT}/candidates/shard-00001.parquet", f"{DRIFT}/drift/shard-00001.parquet",
                 "arms/natural/curve/ipo_tuned-s5/drift/shard-00000.parquet"):
        damage(folder / name, change)
    if change is None:
        damage(folder / f"{DRIFT}/drift/index.json", None)
    assert cli.main(["sweep", "--run-dir", str(folder), "-q"]) == 0
    assert table(folder) == table(calm)
    for name in ("curves.parquet", "tuning.json"):
        assert digest(folder / name) == digest(calm / name)


def test_a_training_that_is_forced_takes_its_curve_with_it(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    _, calm = tuned
    folder = shutil.copytree(calm, tmp_path / "sweep", copy_function=os.link)
    before = read_json(folder / "arms/natural/manifest.json")["stages"]
    assert cli.main(["sweep", "--run-dir", str(folder), "-q", "--force-stage", "round1/train/dpo-s5",
                     "--force-stage", "round1/train/ipo-0", "--force-stage", "curve/ipo-s5"]) == 0
    after = read_json(folder / "arms/natural/manifest.json")["stages"]
    again = {name for name, entry in after.items() if entry["started"] != before[name]["started"]}
    assert again == {"round1/train/dpo-s5", "round1/choice/dpo-s5", "eval/dpo-s5", "curve/dpo-s5", "curve/ipo-s5"}
    assert {n: e["content"] for n, e in after.items()} == {n: e["content"] for n, e in before.items()}
    found, wanted = table(folder), table(calm)
    assert found | {CHECKSUM: ""} == wanted | {CHECKSUM: ""}  # which is of the seconds too
