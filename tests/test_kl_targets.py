"""Checkpoints at KL targets beside whatever else a training is told: held-out pairs, rotation, an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from train_helpers import curve, losses, make_config, make_generator, make_pairs
from transformers import TrainerCallback

from talker_rl.train.checkpoints import list_checkpoints
from talker_rl.train.run import train_variant

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


@pytest.mark.parametrize("select", ["last", "best"])
def test_ended_by_its_drift_and_killed_before_it_was_finished_it_takes_no_step_more(
    world: Any, tmp_path: Path, select: str
) -> None:
    generator, pairs, conditionings, given, moved = world
    more = {"eval_pairs": pairs[12:], **given} if select == "best" else given
    cfg = make_config(args=ARGS, stop_at_kl=between(moved, 2, 4), select=select)
    known = pairs[:12] if select == "best" else pairs
    calm = train_variant(generator, known, conditionings, cfg, tmp_path / "calm", **more)
    assert calm["steps"] < 9 and calm["checkpoints"][-1] == calm["steps"]
    with pytest.raises(KeyboardInterrupt):
        train_variant(generator, known, conditionings, cfg, tmp_path / "cut",
                      extra_callbacks=[KilledAfterSave(calm["steps"])], **more)
    again = train_variant(generator, known, conditionings, cfg, tmp_path / "cut", **more)
    assert (again["steps"], again["step"], again["checkpoints"]) == (calm["steps"], calm["step"], calm["checkpoints"])
    assert curve(tmp_path / "cut") == curve(tmp_path / "calm")


@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_targets_are_saved_whatever_else_is(world: Any, tmp_path: Path, strategy: str) -> None:
    generator, pairs, conditionings, given, moved = world
    args = {**ARGS, "save_strategy": strategy, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    cfg = make_config(args=args, save_at_kl=[between(moved, 4, 6)], stop_at_kl=between(moved, 6, 8))
    result = train_variant(generator, pairs, conditionings, cfg, tmp_path / "run", **given)
    assert {6, 8} <= set(result["checkpoints"]) and result["steps"] == 8
    assert set(list_checkpoints(tmp_path / "run")) == set(result["checkpoints"])
