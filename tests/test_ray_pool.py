"""A run's workers as actors of a Ray cluster: the same shards, whatever happens to an actor."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import write_world
from test_online import log, world
from test_resume import environment

from talker_rl import cli
from talker_rl.base.errors import ConfigError, StageError
from talker_rl.base.ray_pool import RayPool

ray = pytest.importorskip("ray", reason="talker-rl[ray] is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    ray.init(address="local", include_dashboard=False, num_cpus=2, log_to_driver=False, logging_level="ERROR",
             runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}})
    yield
    ray.shutdown()


def slowly(task: tuple[float, int]) -> tuple[int, int]:
    time.sleep(task[0])
    return task[1] ** 2, os.getpid()


def fails(task: str) -> None:
    raise StageError("it does not work", where=task, fix="try another")


def contents(run: Path) -> dict[str, Any]:
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    return {name: entry.get("content") for name, entry in stages.items()}


def test_a_run_on_actors_has_the_same_contents_though_one_is_killed(
    tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_world(tmp_path, quick=True, rollouts={"num_candidates": 2, "shard_size": 1})
    run = ["run", "-c", str(config), "-q", "--debug"]
    assert cli.main([*run, "--run-dir", str(tmp_path / "local")]) == 0
    submitted: list[str] = []
    submit = RayPool.submit

    def killing(self: RayPool, function: Any, task: Any) -> Any:
        future = submit(self, function, task)
        submitted.append(getattr(function, "function", function).__name__)
        if len(submitted) == 5:
            os.kill(self.pids()[0], signal.SIGKILL)
        return future

    monkeypatch.setattr(RayPool, "submit", killing)
    assert cli.main([*run, "--run-dir", str(tmp_path / "ray"), "executor=ray", "workers=2"]) == 0
    assert submitted[0] == "condition" and len(submitted) > 12
    for stage in ("rollouts", "scores"):
        shards = [sorted(file.name for file in (tmp_path / where / stage).glob("shard-*"))
                  for where in ("local", "ray")]
        assert shards[0] == shards[1] and len(shards[0]) > 3
    here, there = contents(tmp_path / "local"), contents(tmp_path / "ray")
    assert here == there and {"rollouts", "scores", "pairs", "round1/train/default", "evaluate"} & here.keys()
    # going on without Ray nothing is made again
    assert cli.main([*run, "--run-dir", str(tmp_path / "ray")]) == 0 and contents(tmp_path / "ray") == here


def test_an_actor_that_is_killed_is_begun_again_and_so_is_its_task(cluster: None) -> None:
    with RayPool(2) as pool:
        before = pool.pids()
        waiting: list[Future[tuple[int, int]]] = [pool.submit(slowly, (0.5, i)) for i in range(6)]
        time.sleep(0.7)
        os.kill(before[0], signal.SIGKILL)
        with pool.watched():
            made = [future.result(timeout=60) for future in waiting]
        assert [value for value, _ in made] == [i**2 for i in range(6)]
        assert {pid for _, pid in made} - set(before) and len(set(pool.pids()) - set(before)) == 1


def test_online_training_one_step_ahead_judged_by_actors_has_the_same_weights(tmp_path: Path, cluster: None) -> None:
    """What is trained on is one sampling old at most; ratios say so (test_online.py), wherever it was judged."""
    config, local, actors = world(tmp_path, overlap=True, decodes=12), tmp_path / "local", tmp_path / "ray"
    for verb in ("prompts", "condition"):
        assert cli.main([verb, "-c", str(config), "--run-dir", str(local), "-q"]) == 0
    shutil.copytree(local, actors)
    more = ["-q", "--debug", "checkpoint.tried=last"]
    assert cli.main(["train", "-c", str(config), "--run-dir", str(local), *more]) == 0
    assert cli.main(["train", "-c", str(config), "--run-dir", str(actors), *more, "executor=ray", "workers=2"]) == 0
    assert contents(local) == contents(actors) and "round1/train/default" in contents(local)
    assert [row["online/staleness"] for row in log(actors)] == [0.0, 1.0]


def test_a_run_whose_own_process_is_killed_goes_on_from_what_was_finished(tmp_path: Path) -> None:
    """kill -9 of the driver, its cluster with it, while actors sample; the same command ends with what undisturbed
    sampling has, and takes what was finished."""
    config, run = write_world(tmp_path, rollouts={"shard_size": 1}), tmp_path / "run"
    for folder, verbs in ((tmp_path / "local", ("prompts", "condition", "rollout")), (run, ("prompts", "condition"))):
        for verb in verbs:
            assert cli.main([verb, "-c", str(config), "-q", "--run-dir", str(folder)]) == 0
    command = [sys.executable, "-m", "talker_rl", "rollout", "-c", str(config), "-q", "--run-dir", str(run),
               "executor=ray", "workers=2"]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment())
    deadline = time.monotonic() + 300
    while len(list(run.glob("rollouts/shard-*"))) < 2:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    made = {file.name: file.stat().st_mtime_ns for file in run.glob("rollouts/shard-*")}
    finished = json.loads((run / "rollouts" / "index.json").read_text())["shards"]
    assert subprocess.run(command, check=False, env=environment()).returncode == 0
    assert contents(run) == contents(tmp_path / "local")
    assert all((run / "rollouts" / name).stat().st_mtime_ns == made[name] for name in finished)


def test_what_a_task_raises_is_raised_as_it_was(cluster: None) -> None:
    with RayPool(1) as pool, pytest.raises(StageError, match="it does not work") as caught:
        list(pool.imap(fails, ["here"]))
    assert (caught.value.where, caught.value.fix) == ("here", "try another")


def test_a_cluster_of_its_own_is_begun_and_ended(tmp_path: Path) -> None:
    if ray.is_initialized():
        ray.shutdown()
    with RayPool(1) as pool:
        assert list(pool.imap(slowly, [(0.0, 3), (0.0, 4)])) and ray.is_initialized()
    assert not ray.is_initialized()


def test_without_ray_it_is_said_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray is not installed") as caught:
        RayPool(2)
    assert "talker-rl[ray]" in (caught.value.fix or "")
