"""Checkpoints at KL targets beside whatever else a training is told: held-out pairs, rotation, an interruption."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import write_world
from train_helpers import apart, curve, losses, make_config, make_generator, make_pairs
from transformers import TrainerCallback

from talker_rl import cli
from talker_rl.base.disk import read_json
from talker_rl.train.checkpoints import list_checkpoints
from talker_rl.train.run import train_variant

STAGE = "round1/train/default"
ARGS = {"max_steps": 9, "save_steps": 3, "learning_rate": 3e-3}


class KilledAfterSave(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any, dict[str, Any], dict[int, float]]:
    """Generator, pairs, conditionings, what all trainings are given, and the drift of one that nothing ends."""
    folder = tmp_path_factory.mktemp("kl")
    generator, (pairs, conditionings) = make_generator(), make_pairs(16)
    given = {"progress": False, "reference_cache": folder / "cache"}
    train_variant(generator, pairs, conditionings, make_config(args=ARGS, save_at_kl=[1e9]), folder / "far", **given)
    return generator, pairs, conditionings, given, dict(losses(folder / "far", "kl"))


def between(moved: dict[int, float], one: int, other: int) -> float:
    return (moved[one] + moved[other]) / 2


def test_rotation_leaves_what_a_target_asked_for(world: Any, tmp_path: Path) -> None:
    generator, pairs, conditionings, given, moved = world
    cfg = make_config(args={**ARGS, "save_steps": 1, "save_total_limit": 1},
                      save_at_kl=[between(moved, 2, 4), between(moved, 4, 6)])
    whole = train_variant(generator, pairs, conditionings, cfg, tmp_path / "whole", **given)
    assert whole["checkpoints"] == [4, 6, 9]
    with pytest.raises(KeyboardInterrupt):
        train_variant(generator, pairs, conditionings, cfg, tmp_path / "cut", extra_callbacks=[KilledAfterSave(7)],
                      **given)
    assert train_variant(generator, pairs, conditionings, cfg, tmp_path / "cut", **given)["checkpoints"] == [4, 6, 9]


@pytest.mark.parametrize(("select", "ended"), [("last", 6), ("best", 4), ("last", 9)])
def test_over_and_killed_before_it_was_finished_it_takes_no_step_more(
    world: Any, tmp_path: Path, select: str, ended: int
) -> None:
    """In the middle of an epoch and at its end; by its drift, and by max_steps."""
    generator, pairs, conditionings, given, moved = world
    more = {"eval_pairs": pairs[:4], **given} if select == "best" else given
    cfg = make_config(args=ARGS, stop_at_kl=between(moved, ended - 2, ended) if ended < 9 else None, select=select)
    calm = train_variant(generator, pairs, conditionings, cfg, tmp_path / "calm", **more)
    assert calm["steps"] == ended and calm["checkpoints"][-1] == ended
    with pytest.raises(KeyboardInterrupt):
        train_variant(generator, pairs, conditionings, cfg, tmp_path / "cut",
                      extra_callbacks=[KilledAfterSave(ended)], **more)
    assert train_variant(generator, pairs, conditionings, cfg, tmp_path / "cut", **more) == calm | {"name": "cut"}
    assert curve(tmp_path / "cut") == curve(tmp_path / "calm")
    assert apart(tmp_path / "cut", tmp_path / "calm")[1] == 0


@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_targets_are_saved_whatever_else_is(world: Any, tmp_path: Path, strategy: str) -> None:
    generator, pairs, conditionings, given, moved = world
    args = {**ARGS, "save_strategy": strategy, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    cfg = make_config(args=args, save_at_kl=[between(moved, 4, 6)], stop_at_kl=between(moved, 6, 8))
    result = train_variant(generator, pairs, conditionings, cfg, tmp_path / "run", **given)
    assert {6, 8} <= set(result["checkpoints"]) and result["steps"] == 8
    assert set(list_checkpoints(tmp_path / "run")) == set(result["checkpoints"])


@pytest.mark.slow
def test_two_processes_measure_save_and_end_as_one_does_and_go_on_from_there(tmp_path: Path) -> None:
    def config(**checkpoint: Any) -> Path:
        args = {"max_steps": 8, "save_steps": 8, "logging_steps": 1, "learning_rate": 1e-2,
                "per_device_train_batch_size": 2, "lr_scheduler_type": "constant"}
        return write_world(tmp_path, train={"keep_optimizer": True, "args": args},
                           checkpoint={"tried": "last", **checkpoint})

    def trained(name: str, *more: str) -> dict[str, Any]:
        if not (tmp_path / name).exists():
            shutil.copytree(tmp_path / "paired", tmp_path / name)
        assert cli.main(["train", "-c", str(file), "--run-dir", str(tmp_path / name), "-q", *more]) == 0
        found: dict[str, Any] = read_json(tmp_path / name / STAGE / "result.json")
        return found

    file = config()
    for verb in ("prompts", "condition", "rollout", "score", "pair"):
        assert cli.main([verb, "-c", str(file), "--run-dir", str(tmp_path / "paired"), "-q"]) == 0
    file = config(save_at_kl=[1e9])
    trained("far")
    moved = dict(losses(tmp_path / "far" / STAGE, "kl"))
    file = config(save_at_kl=[between(moved, 2, 4)], stop_at_kl=between(moved, 4, 6))
    one, two = trained("one"), trained("two", "devices=2")
    assert one["checkpoints"] == two["checkpoints"] == [4, 6] and one["steps"] == two["steps"] == 6
    logged, weight = apart(tmp_path / "one" / STAGE, tmp_path / "two" / STAGE)
    assert logged <= 1e-5 and weight <= 1e-5
    for killed in ({"checkpoint-6"}, set()):  # between the two checkpoints; after the last one
        for gone in ("result.json", "files.json", *killed):
            path = tmp_path / "two" / STAGE / gone
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (tmp_path / "two" / "manifest.json").write_bytes((tmp_path / "paired" / "manifest.json").read_bytes())
        again = trained("two", "devices=2")
        assert again["checkpoints"] == [4, 6] and again["steps"] == 6
        assert apart(tmp_path / "one" / STAGE, tmp_path / "two" / STAGE)[1] <= 1e-5
