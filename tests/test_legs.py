"""Stages that overlap: what is made, in which order, and what a fault leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from talker_rl.base.processes import WorkerPool
from talker_rl.stages.legs import BACKLOG, Leg, flow
from talker_rl.store.shards import ShardFolder


def twice(task: int) -> int:
    return 2 * task


def store(folder: ShardFolder, i: int, value: int) -> None:
    folder.write(i, [{"value": value}])


def values(folder: ShardFolder) -> list[int]:
    return [row["value"] for row in folder.all_rows()]


def two_legs(
    path: Path, count: int, first: Callable[[Any], Any] = twice, second: Callable[[Any], Any] = twice,
    here: bool = False,
) -> tuple[Leg, Leg]:
    """Shard i: i doubled, then doubled again."""
    before = ShardFolder(path / "first", "key 1")
    after = ShardFolder(path / "second", "key 2", source=before)
    return (Leg("first", before, count, lambda i: i, first, store),
            Leg("second", after, count, lambda i: before.rows(i)[0]["value"], second, store, here=here))


@pytest.mark.parametrize("workers", [1, 2])
def test_every_shard_goes_through_both_legs_and_nothing_is_made_twice(tmp_path: Path, workers: int) -> None:
    with WorkerPool(workers) as pool:
        legs = two_legs(tmp_path, 7)
        flow(pool, legs, quiet=True)
        assert values(legs[0].folder) == [2 * i for i in range(7)]
        assert values(legs[1].folder) == [4 * i for i in range(7)]
        assert [leg.rows for leg in legs] == [7, 7] and all(leg.busy > 0 for leg in legs)
        again = two_legs(tmp_path, 7)
        flow(pool, again, quiet=True)
        assert [leg.rows for leg in again] == [0, 0]


def test_what_has_gone_furthest_goes_first(tmp_path: Path) -> None:
    order: list[str] = []

    def note(name: str) -> Callable[[int], int]:
        return lambda task: order.append(name) or task

    flow(WorkerPool(1), two_legs(tmp_path, 3, note("first"), note("second")), quiet=True)
    assert order == ["first", "second"] * 3


def test_a_shard_is_made_again_when_what_it_was_made_from_changes(tmp_path: Path) -> None:
    flow(WorkerPool(1), two_legs(tmp_path, 3), quiet=True)
    before = ShardFolder(tmp_path / "first", "key 1")
    before.write(1, [{"value": 50}])
    first, second = two_legs(tmp_path, 3)
    assert (first.missing, second.missing) == ([], [1])
    flow(WorkerPool(1), [first, second], quiet=True)
    assert values(second.folder) == [0, 100, 8]


def test_a_slow_leg_stops_the_one_before_it(tmp_path: Path) -> None:
    gate, most = threading.Event(), 0
    first, second = two_legs(tmp_path, 20, second=lambda task: gate.wait(60) and task, here=True)

    def count(folder: ShardFolder, i: int, value: int) -> None:
        nonlocal most
        store(folder, i, value)
        most = max(most, len(folder) - len(second.folder))
        if len(folder) == BACKLOG + 1:
            gate.set()

    first.store = count
    flow(WorkerPool(1), [first, second], quiet=True)
    assert len(second.folder) == 20 and BACKLOG + 1 <= most <= BACKLOG + 2


@pytest.mark.parametrize("here", [False, True])
def test_a_fault_is_raised_and_what_is_finished_is_kept(tmp_path: Path, here: bool) -> None:
    def fails(task: int) -> int:
        if task == 4:
            raise ValueError("shard 2 is cursed")
        return twice(task)

    legs = two_legs(tmp_path, 5, second=fails, here=here)
    with pytest.raises(ValueError, match="cursed"):
        flow(WorkerPool(1), legs, quiet=True)
    assert {0, 1} <= {i for i in range(5) if legs[1].folder.has(i)} and not legs[1].folder.has(2)
    again = two_legs(tmp_path, 5)
    flow(WorkerPool(1), again, quiet=True)
    assert values(again[1].folder) == [0, 4, 8, 12, 16] and again[1].rows < 5


def test_shards_begun_before_their_source_was_finished_are_taken_over(tmp_path: Path) -> None:
    source = ShardFolder(tmp_path / "first", "s")
    for i in range(2):
        source.write(i, [{"value": i}])
    early = ShardFolder(tmp_path / "second", "early", source=source)
    early.write(0, [{"value": 7}])
    assert ShardFolder(tmp_path / "second", "late", source=source).missing(2) == [0, 1]
    taken = ShardFolder(tmp_path / "second", "late", source=source, early_key="early")
    assert taken.missing(2) == [1]
    taken.write(1, [{"value": 8}])
    assert ShardFolder(tmp_path / "second", "late", source=source).missing(2) == []
