"""The sweep on a random tiny model: the grid, the folders, going on after a kill, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipeline_helpers import write_world
from toy import digest

from talker_rl import cli
from talker_rl.base.disk import read_json
from talker_rl.base.errors import ConfigError
from talker_rl.evaluation.power import TYPICAL, smallest
from talker_rl.report.sweep_table import text_table
from talker_rl.stages import sweep
from talker_rl.store.run_dir import RunDir
from talker_rl.sweep_config import load_sweep, load_sweep_data

ROOT = Path(__file__).resolve().parents[1]
ARMS = {"biased": ["dpo-s0", "dpo-s1", "ipo-s0", "ipo-s1"], "natural": ["dpo-s0", "dpo-s1"]}


def write_sweep(folder: Path) -> Path:
    """A world and a sweep over it: two variants, two arms, two seeds."""
    write_world(folder, eval={"seeds": 1}, train={"args": {
        "max_steps": 4, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 2,
        "lr_scheduler_type": "constant"}})
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({
        "name": "tiny-sweep",
        "run": {"extends": ["config.yaml"]},
        "variants": {"dpo": {}, "ipo": {"loss": {"type": "ipo", "beta": 2.0}}},
        "arms": {"biased": {"pairs": {"chosen_longer_by": 1}}, "natural": {"variants": ["dpo"]}},
    }))
    return file


@pytest.fixture(autouse=True)
def no_pages(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Diagnostics and pages have their own tests; here it is enough that they are asked for."""
    asked: list[Path] = []
    monkeypatch.setattr(sweep, "_pages", lambda folder, arms: asked.append(folder))
    return asked


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(sweep file, folder of a finished sweep), made in this process."""
    world = tmp_path_factory.mktemp("world")
    file, folder = write_sweep(world), world / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "_pages", lambda *_: None)
        assert cli.main(["sweep", str(file), "--run-dir", str(folder), "-q", "--debug"]) == 0
    return file, folder


def table(folder: Path) -> dict[str, Any]:
    """The table without wall-clock times, which differ from run to run."""
    found = json.loads((folder / "ablation.json").read_text())
    for row in found["rows"]:
        row.pop("train_seconds")
    return found


def stages(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["stages"]


def test_the_grid_is_every_arms_variants_with_every_seed(tmp_path: Path) -> None:
    config = load_sweep([write_sweep(tmp_path)], ["variants.ipo.args.learning_rate=2e-3", "run.pairs.margin=0.02"])
    run = config.arm_run("biased")
    assert list(run.variants) == ARMS["biased"] and list(config.arm_run("natural").variants) == ARMS["natural"]
    assert [cfg.args["seed"] for cfg in run.variants.values()] == [0, 1, 0, 1]
    assert run.variants["ipo-s1"].loss["type"] == "ipo" and run.variants["dpo-s0"].loss == {"type": "dpo", "beta": 0.1}
    assert run.variants["ipo-s1"].args["learning_rate"] == 2e-3 and run.variants["dpo-s1"].args["learning_rate"] == 1e-3
    assert run.variants["ipo-s1"].args["max_steps"] == 4 and run.variants["ipo-s1"].lora == run.variants["dpo-s0"].lora
    assert (run.pairs.chosen_longer_by, config.arm_run("natural").pairs.chosen_longer_by) == (1, None)
    assert run.pairs.margin == 0.02 and run.checkpoint.keep == "last"
    assert load_sweep_data(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sed=[1]", "did you mean `seeds`?"),
        ("run.pairs.margn=1", "did you mean `run.pairs.margin`?"),
        ("arms.biased.pairs.margn=1", "did you mean `arms.biased.pairs.margin`?"),
        ("variants.ipo.los={type: dpo}", "did you mean `variants.ipo.loss`?"),
        ("variants.ipo.loss.bta=1", "variants.ipo.loss.bta"),
        ("arms.natural.variants=[dpo, ipoo]", "did you mean 'ipo'?"),
        ("arms.natural.variants=[ipo]", "lacks the baseline 'dpo'"),
        ("variants.ipo.args.max_steps=9", "variants differ in args.max_steps (dpo: 4, ipo: 9)"),
        ("seeds=[1,1]", "different numbers"),
        ("variants.base={}", "'base' cannot be a name"),
        ("run.iterations=2", "run.iterations is 1"),
        ("run.checkpoint.keep=best", "run.checkpoint.keep is `last`"),
        ("run.train.los=1", "did you mean `run.train.loss`?"),
    ],
)
def test_a_wrong_sweep_is_one_clear_error(tmp_path: Path, override: str, told: str) -> None:
    (tmp_path / "c.yaml").write_text("train: {loss: {type: dpo}, args: {max_steps: 4}}\n")
    (tmp_path / "s.yaml").write_text(
        "run: {extends: [c.yaml]}\nvariants: {dpo: {}, ipo: {loss: {type: ipo}}}\narms: {biased: {}, natural: {}}\n")
    with pytest.raises(ConfigError) as caught:
        load_sweep([tmp_path / "s.yaml"], [override])
    assert told in str(caught.value), str(caught.value)


def test_a_sweep_needs_arms_and_unnamed_training_settings() -> None:
    with pytest.raises(ConfigError, match="`arms`: at least one is needed"):
        load_sweep_data({"variants": {"dpo": {}}, "arms": {}})
    with pytest.raises(ConfigError, match="name the variants under `variants`"):
        load_sweep_data({"run": {"variants": {"a": {}, "b": {}}}, "variants": {"dpo": {}}, "arms": {"x": {}}})


def test_a_sweep_that_is_not_there_and_one_that_extends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", "--run-dir", str(tmp_path)]) == 1
    assert "There is no sweep in this folder" in capsys.readouterr().err
    assert cli.main(["sweep"]) == 1
    assert "No sweep is named" in capsys.readouterr().err
    (tmp_path / "s.yaml").write_text("run: {extends: [none.yaml]}\nvariants: {dpo: {}}\narms: {a: {}}\n")
    assert cli.main(["sweep", str(tmp_path / "s.yaml")]) == 2
    assert "There is no such configuration file" in capsys.readouterr().err


def test_shipped_sweeps_load_and_their_dry_run_counts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert cli.main(["sweep", str(ROOT / "configs/sweeps/smoke.yaml"), "--dry-run", "--run-dir", run]) == 0
    out = capsys.readouterr().out
    # 24 candidates, 3 of base; 8 trainings x (3 eval + 2 dev x (2 checkpoints + the start))
    assert f"in all: 8 trainings, {24 + 3 + 8 * (3 + 6)} utterances" in out
    assert not Path(run).exists()
    config = load_sweep([ROOT / "configs/sweeps/losses.yaml"])
    assert config.seeds == [0, 1, 2] and len(config.variants) == 5
    assert len(config.cells("biased")) == 15 and len(config.cells("natural")) == 6
    assert config.run.reward.recognizer.path != config.run.reward.evaluator.path


def test_arms_need_not_train_the_first_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_sweep(tmp_path)
    data = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(data | {"arms": {"natural": {"variants": ["ipo"]}}, "baseline": "ipo"}))
    assert cli.main(["sweep", str(file), "--dry-run", "--run-dir", str(tmp_path / "sweep")]) == 0
    assert "arm natural: 1 variant x seeds 0, 1: ipo" in capsys.readouterr().out


def test_the_dry_run_says_how_small_a_difference_is_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def told(*more: str) -> tuple[str, list[tuple[float, float]]]:
        assert cli.main(["sweep", "losses", "--dry-run", "--run-dir", str(tmp_path), *more]) == 0
        out = capsys.readouterr().out
        return out, [(float(a), float(b)) for a, b in re.findall(
            r"a difference of ([\d.]+) points WER is found in 80 % of such sweeps, alone; ([\d.]+) points after Holm's "
            r"correction over 5 comparisons", out)]

    out, three = told("seeds=[0,1,2]")
    assert "arm biased: with 160 texts and 3 seeds" in out and "typical of the micro model" in out and len(three) == 2
    assert all(alone < after for alone, after in three)
    assert three[0][1] < three[1][1], "in a larger arm, seeds' spread is known better"
    expected = [smallest(TYPICAL, 160, 3, comparisons=many, beside=4) for many in (1, 5)]
    assert three[0] == pytest.approx(tuple(100 * x for x in expected), abs=0.051)
    five = told("seeds=[0,1,2,3,4]")[1]
    assert five[0] < three[0] and five[1] < three[1]
    assert "that of one training, and of no others" in told("seeds=[0]")[0]
    rows = [{"wer_diff_baseline_sd": {"text": 0.1, "seed": 0.001, "rest": 0.1}}]
    (tmp_path / "ablation.json").write_text(json.dumps({"rows": rows, "baseline": "dpo"}))
    out, known = told("seeds=[0,1,2]")
    assert "as measured in" in out and known[0] < three[0]
    (tmp_path / "ablation.json").write_text(json.dumps({"rows": [{"wer": 0.2}], "baseline": "dpo"}))  # an older one
    assert told("seeds=[0,1,2]")[1] == three


def test_what_it_can_find_is_of_texts_and_not_of_who_speaks_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Three speakers of one text are one text, whether a setting has them speak it or a file."""
    def told(*more: str) -> str:
        assert cli.main(["sweep", "losses", "--dry-run", "--run-dir", str(tmp_path), *more]) == 0
        return capsys.readouterr().out

    voices = "run.prompts.speaker_assignment={eval: all}"
    told_all = told(voices)
    number = int(re.search(r"(\d+) eval utterances of base", told_all)[1])
    assert number in (320, 480, 640) and "arm biased: with 160 texts" in told_all
    file = tmp_path / "eval.jsonl"
    file.write_text("".join(json.dumps({"text": f"the river {word}."}) + "\n"
                            for word in ("runs", "stands", "runs", "stands", "sings", "sings")))
    assert "arm biased: with 3 texts and 3 seeds" in told(f"run.prompts.eval={file}", "run.prompts.limit.eval=null")


def test_the_folders_are_runs_and_the_samples_are_shared(finished: tuple[Path, Path]) -> None:
    _, folder = finished
    assert list(stages(folder / "shared")) == list(sweep.SHARED)
    for arm, names in ARMS.items():
        run = folder / "arms" / arm
        found = stages(run)
        assert {entry["state"] for entry in found.values()} == {"done"}
        assert {f"round1/train/{n}" for n in names} | {f"eval/{n}" for n in names} < set(found)
        manifest = json.loads((run / "manifest.json").read_text())
        assert [f"{t['variant']}-s{t['seed']}" for t in manifest["trainings"].values()] == names
        assert list(manifest["trainings"]) == names
        assert manifest["parents"] == {"../../shared": {n: found[n]["content"] for n in sweep.SHARED}}
        for file in ("rollouts/shard-00000.parquet", "eval/base/shard-00000.parquet"):
            assert (run / file).samefile(folder / "shared" / file)
        for name in names:
            choice = json.loads((run / f"round1/choice/{name}/choice.json").read_text())
            assert choice["step"] == 4 and [row["step"] for row in choice["checkpoints"]] == [0, 2, 4]
            assert json.loads((run / f"train/{name}/chosen.json").read_text())["selected_by"] == "last step"
    pairs = [stages(folder / "arms" / arm)["pairs"]["content"] for arm in ARMS]
    assert pairs[0] != pairs[1]


def test_predictions_stand_beside_the_durations_that_came_of_them(finished: tuple[Path, Path]) -> None:
    _, folder = finished
    found = read_json(folder / "ablation.json")
    assert list(found["prediction"]) == list(ARMS)
    biased = found["prediction"]["biased"]
    assert [row["variant"] for row in biased["variants"]] == ["dpo", "ipo"] and biased["pairs"] > 0
    pooled = {r["variant"]: r["duration_ratio"] for r in found["rows"] if r["arm"] == "biased" and r["seed"] is None}
    assert all(row["duration_ratio"] == pooled[row["variant"]] for row in biased["variants"])
    assert biased["variants"][1]["stop"] < biased["variants"][0]["stop"]  # ipo divides by length; chosen is longer
    assert biased["stop"]["note"] == "fewer than 4 variants" and biased["stop"]["note"] in text_table(found)


def test_every_verb_works_on_an_arm(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, folder = finished
    run = shutil.copytree(folder / "arms" / "biased", tmp_path / "biased")
    before = stages(run)
    for verb in ("score", "eval", "report"):
        assert cli.main([verb, "--run-dir", str(run), "-q", "--debug"]) == 0
    assert (run / "report" / "index.html").exists()
    assert {n: e["content"] for n, e in stages(run).items()} == {n: e["content"] for n, e in before.items()}


def test_the_table_has_the_promised_rows(finished: tuple[Path, Path]) -> None:
    _, folder = finished
    found = read_json(folder / "ablation.json")
    assert set(found) == {"rows", "claims", "pareto", "baseline", "notes", "prediction"}
    cells = [(r["arm"], r["variant"], r["seed"]) for r in found["rows"]]
    assert cells == [(arm, v, s) for arm, variants in (("biased", ["dpo", "ipo"]), ("natural", ["dpo"]))
                     for v, s in [("base", None), *((v, s) for v in variants for s in (0, 1, None))]]
    promised = {
        "variant", "arm", "seed", "intervals", "n", "prompts", "wer", "wer_ci95", "drift", "wer_diff_baseline_sd",
        "pause_error", "cap_hit_rate", "steps", "loss", "train_seconds",
        *(f"{kind}{what}" for kind in ("wer_diff_base", "wer_diff_baseline", "duration_ratio", "drift_vs_baseline")
          for what in ("", "_ci95", "_p", "_p_holm"))}
    assert all(set(row) == promised for row in found["rows"])
    ipo = next(r for r in found["rows"] if r["variant"] == "ipo" and r["seed"] == 1)
    assert ipo["n"] == 4 and ipo["steps"] == 4 and ipo["loss"]["type"] == "ipo" and ipo["train_seconds"] > 0
    pooled = next(r for r in found["rows"] if r["variant"] == "ipo" and r["seed"] is None)
    assert pooled["intervals"] == "texts and seeds" and ipo["intervals"] == "texts"
    # ipo is compared with dpo in one arm only, with the base in both
    assert pooled["wer_diff_baseline_p_holm"] == pooled["wer_diff_baseline_p"] <= 1
    assert pooled["duration_ratio_p_holm"] >= pooled["duration_ratio_p"]
    with (folder / "ablation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(cells) and float(lines[-1]["wer_ci95_high"]) == found["rows"][-1]["wer_ci95"][1]
    assert len(text_table(found).splitlines()) == 1 + len(cells) + 1 + len(found["notes"])


def test_seeds_train_differently_and_arms_too(finished: tuple[Path, Path]) -> None:
    _, folder = finished
    weights = [digest(folder / "arms" / arm / "train" / name / "adapter_model.safetensors")
               for arm, names in ARMS.items() for name in names]
    assert len(set(weights)) == len(weights)


@pytest.mark.slow
def test_killed_between_trainings_in_the_pool_it_ends_with_the_same_table_and_weights(
    finished: tuple[Path, Path], tmp_path: Path, no_pages: list[Path]
) -> None:
    file, calm = finished
    folder = tmp_path / "sweep"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, "-m", "talker_rl.cli", "sweep", str(file), "--run-dir", str(folder), "-q", "run.workers=2"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, start_new_session=True)

    def done() -> list[Path]:
        return [p for p in folder.glob("arms/*/round1/train/*/result.json")]

    deadline = time.monotonic() + 1800  # a starved machine is slow, not wrong
    while not done():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    in_pool = done()
    assert 1 <= len(in_pool) < 6 and not (folder / "ablation.json").exists()
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*.parquet")}
    assert cli.main(["sweep", "--run-dir", str(folder), "-q", "run.workers=1"]) == 0  # with its own configuration
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps and no_pages == [folder]
    assert table(folder) == table(calm)
    for result in in_pool:
        weights = result.parent.relative_to(folder) / "adapter_model.safetensors"
        assert digest(folder / weights) == digest(calm / weights), "a worker trained other weights"


def test_the_same_command_does_nothing_again_and_a_changed_one_is_refused(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, original = finished
    folder = shutil.copytree(original, tmp_path / "sweep")
    command = ["sweep", str(file), "--run-dir", str(folder), "-q"]
    with monkeypatch.context() as patch:
        for name in ("talker_rl.stages.worker.work", "talker_rl.train.run.train_variant"):
            patch.setattr(name, lambda *_: pytest.fail("finished work was done again"))
        assert cli.main(command) == 0
        assert table(folder) == table(original)
        described = (folder / "sweep.json").read_text()
        assert cli.main([*command, "variants.ipo.loss.beta=3.0"]) == 1
        err = capsys.readouterr().err
        assert "train.loss.beta: 2.0 -> 3.0" in err and "--force-stage round1/train/ipo-s0" in err
        assert (folder / "sweep.json").read_text() == described
        assert cli.main([*command, "--force-stage", "round1/train/dpo-s9"]) == 1
        assert "There is no stage 'round1/train/dpo-s9'" in capsys.readouterr().err
    assert cli.main([*command, "seeds=[0,1,2]", "--force-stage", "round1/train/dpo-s1"]) == 0
    again, before = table(folder), table(original)
    assert [r for r in again["rows"] if r["seed"] in (0, 1)] == [r for r in before["rows"] if r["seed"] in (0, 1)]
    assert {r["seed"] for r in again["rows"]} == {0, 1, 2, None}


def test_stages_are_taken_over_by_copying_where_links_cannot_be(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = finished

    def no_links(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    with RunDir(tmp_path / "run") as run:
        run.adopt(folder / "shared", ["prompts"])
        assert run.content("prompts") == stages(folder / "shared")["prompts"]["content"]
    mine, theirs = (p / "prompts" / "shard-00000.parquet" for p in (tmp_path / "run", folder / "shared"))
    assert digest(mine) == digest(theirs) and not mine.samefile(theirs)
