"""Every key of the configuration is known to a stage, or known to change nothing."""

from __future__ import annotations

import typing
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, Field

from talker_rl.base.ids import stable_hash
from talker_rl.config import RunConfig
from talker_rl.reward.config import RewardConfig
from talker_rl.stages.order import ORDER, all_stages
from talker_rl.stages.stage import CHANGES_NOTHING, Stage, pick


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted keys that hold values; ``*`` is a name that the user gives. Entries of a list are as its own fields."""
    for name, info in model.model_fields.items():
        inner = list(models_in(info.annotation))
        if not inner:
            yield f"{prefix}{name}"
        for star, part in inner:
            yield from leaves(part, f"{prefix}{name}.{star}")


def models_in(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Settings inside an annotation, however deep, with ``*.`` where a name leads to them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
    star = "*." if typing.get_origin(annotation) is dict else ""
    for part in typing.get_args(annotation):
        for inner, model in models_in(part):
            yield star + inner, model


def claims(stage: Stage) -> list[str]:
    return [*stage.key, *stage.through, *stage.anew]


def best(leaf: str, known: list[str]) -> str:
    """The longest of the keys that a leaf begins with; empty where there is none."""
    return max((key for key in known if leaf == key or leaf.startswith(f"{key}.")), key=len, default="")


def unclaimed(model: type[BaseModel]) -> tuple[list[str], list[str]]:
    """Leaves that nobody claims, and those that are both claimed and said to change nothing."""
    claimed = [key for stage in all_stages() for key in claims(stage)]
    found = {leaf: (best(leaf, claimed), best(leaf, list(CHANGES_NOTHING))) for leaf in leaves(model)}
    return ([leaf for leaf, both in found.items() if not any(both)],
            [leaf for leaf, (stage, nothing) in found.items() if stage and stage == nothing])


def test_every_key_is_claimed_and_none_in_two_ways() -> None:
    assert len(list(leaves(RunConfig))) > 240
    assert unclaimed(RunConfig) == ([], [])


def test_a_new_key_that_nobody_claims_is_found() -> None:
    class Volume(BaseModel):
        gain: float = 0.0

    class Later(RunConfig):
        loudness: Volume | None = None
        louder: dict[str, list[Volume]] = Field(default_factory=dict)
        shout: bool = False

    assert unclaimed(Later)[0] == ["loudness.gain", "louder.*.gain", "shout"]


@pytest.mark.parametrize("module", ORDER)
def test_a_stage_claims_what_there_is_and_each_once(module: str) -> None:
    stage = all_stages()[list(ORDER).index(module)]
    known, mine = list(leaves(RunConfig)), claims(stage)
    assert len(set(mine)) == len(mine)
    for key in mine:
        assert any(best(leaf, [key]) for leaf in known), key
    assert list(stage.settings(RunConfig())) == list(stage.key)


def test_what_changes_nothing_is_there_and_has_a_reason() -> None:
    known = list(leaves(RunConfig))
    for key, reason in CHANGES_NOTHING.items():
        assert reason and any(best(leaf, [key]) for leaf in known), key


def reward(leaf: str | None = None) -> str:
    """What scores depend on, with one key of the reward set to something else."""
    config = RewardConfig.model_validate({
        "recognizer": {"en": {"path": "micro:reward"}}, "pauses": {"aligner": {"path": "fa-zh"}},
        "components": [{"name": "a", "import_path": "m:f"}]})
    if leaf is not None:
        path, _, name = leaf.removeprefix("reward.").replace("*", "en").rpartition(".")
        node: Any = config
        for part in path.split(".") if path else ():
            node = node[part] if isinstance(node, dict) else getattr(node, part)
            node = node[0] if isinstance(node, list) else node
        node.__dict__[name] = "something else" if name != "by_lang" else {}
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # pydantic: not what it expects
        return stable_hash(config.settings(), config.recognizer.identity())


def test_the_scorers_fingerprint_holds_what_is_claimed_of_the_reward() -> None:
    scores = next(stage for stage in all_stages() if stage.folder == "scores")
    files = {"reward.pauses.aligner.path"}  # its files are hashed
    for leaf in leaves(RunConfig):
        if leaf.startswith("reward.") and leaf not in files and not leaf.startswith("reward.evaluator"):
            mine = len(best(leaf, list(scores.through))) > len(best(leaf, list(CHANGES_NOTHING)))
            assert (reward(leaf) != reward()) == mine, leaf


def test_what_stands_in_a_key_is_what_the_configuration_says() -> None:
    config = RunConfig.model_validate({"seed": 3, "rollouts": {"num_candidates": 2}})
    for stage in all_stages():
        assert stage.settings(config) == {key: pick(config.resolved(), key) for key in stage.key}
