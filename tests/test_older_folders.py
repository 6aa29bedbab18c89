"""Folders made otherwise: by an earlier version, which estimated the drift; with variants in another order."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_helpers import write_world

from talker_rl import cli
from talker_rl.base.disk import read_json, write_json
from talker_rl.base.processes import WorkerPool
from talker_rl.config import load_config
from talker_rl.stages.choice import dev_rows
from talker_rl.stages.context import Context
from talker_rl.store.run_dir import RunDir


def test_they_are_made_again_all_of_them_in_one_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    config = write_world(tmp_path, variants={"dpo": {}, "ipo": {"loss": {"type": "ipo"}}})
    assert cli.main(["run", "-c", str(config), "--run-dir", str(run), "-q"]) == 0
    assert cli.main(["diagnose", "--run-dir", str(run), "-q"]) == 0
    made = read_json(run / "manifest.json")
    summaries = {name: read_json(run / f"diagnostics/{name}/summary.json") for name in ("dpo", "ipo")}
    before = read_json(run / "manifest.json")
    for name in summaries:
        entry = before["stages"][f"diagnostics/{name}"]
        del entry["config"]["drift"]
        entry |= {"key": "of before", "content": "of before"}
        (run / f"diagnostics/{name}/stale").touch()
    write_json(run / "manifest.json", before)
    capsys.readouterr()
    assert cli.main(["diagnose", "--run-dir", str(run)]) == 0
    told = capsys.readouterr()
    assert (told.out + told.err).count("made again, since an earlier version estimated the drift") == 2
    assert {name: read_json(run / f"diagnostics/{name}/summary.json") for name in summaries} == summaries
    now = read_json(run / "manifest.json")["stages"]
    assert {n: e["content"] for n, e in now.items()} == {n: e["content"] for n, e in made["stages"].items()}
    assert not list(run.glob("diagnostics/*/stale"))
    # who heard the start has heard it for all, whatever the order in which they stand now
    loaded = load_config([config])
    turned = loaded.model_copy(update={"variants": dict(reversed(loaded.variants.items()))})
    with RunDir(run) as folder, WorkerPool(1) as pool:
        found = [[dev_rows(Context(one, folder, pool, quiet=True), name, 1) for name in ("dpo", "ipo")]
                 for one in (loaded, turned)]
    assert found[0] == found[1] and all({row["step"] for row in rows} == {0, 2, 4, 6} for rows in found[0])
