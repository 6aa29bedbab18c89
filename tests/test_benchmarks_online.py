"""What the benchmark of online training times against each other does the same work."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.online import Parts, World, gradient_gap, reward_gap, steps, whole
from talker_rl.base.processes import WorkerPool


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    world = World(2, 4, 2)
    with world.parts(WorkerPool(1), tmp_path_factory.mktemp("parts")) as made:
        yield made


def test_both_sides_learn_from_the_same_candidates(parts: Parts) -> None:
    names = [[sample.candidate.candidate_id for sample in batch] for batch in parts.samples]
    assert names == [batch.names for batch in parts.batches] and sum(map(len, names)) >= 4
    steps = [sample.candidate.speech.steps for batch in parts.samples for sample in batch]
    assert steps == [int(n) for batch in parts.batches for n in batch.talker.mask_ST.sum(dim=1)]


def test_both_sides_hear_the_same(parts: Parts) -> None:
    naive = parts.judge_naively()
    assert reward_gap(parts.scores, naive) < 1e-6 and reward_gap(parts.judge(), naive) < 1e-6
    assert [s.transcript for s in naive] == [s.transcript for s in parts.scores]
    assert [s.components["wer"] for s in naive if s.components] == [
        s.components["wer"] for s in parts.scores if s.components]


def test_both_sides_sample_as_many(parts: Parts) -> None:
    ours, theirs = parts.sample(), parts.loop.sample(parts.prompts)
    assert [c.prompt_id for c in ours] == [c.prompt_id for c in theirs]
    assert {c.candidate_id for c in theirs} == {f"{p.prompt_id}-{k}" for p in parts.prompts for k in range(4)}
    lengths = [sum(c.speech.steps for c in side) for side in (ours, theirs)]
    assert 0.5 < lengths[0] / lengths[1] < 2


@pytest.mark.parametrize("shortcuts", [False, True], ids=["plain", "with TRL's savings"])
@pytest.mark.parametrize("moved", [False, True], ids=["at the start", "elsewhere"])
def test_both_sides_have_the_same_gradient(parts: Parts, monkeypatch: pytest.MonkeyPatch, moved: bool, shortcuts: bool
                                           ) -> None:
    """At the start B is zero and no gradient reaches A; elsewhere all of the adapter has one."""
    monkeypatch.setattr(parts.loop, "shortcuts", shortcuts)
    if moved:
        for ours, theirs in zip(parts.trained, parts.loop.trained, strict=True):
            torch.nn.init.normal_(ours, std=0.02, generator=torch.Generator().manual_seed(0))
            theirs.data.copy_(ours)
        for batch in parts.batches:  # as if they had been sampled by this policy
            batch.behaviour_logps_ST = parts.policy.logps(batch.talker).detach()
    ours, theirs = parts.update(), parts.loop.update(parts.samples)
    assert sum(bool(g.any()) for g in ours) == len(ours) // (1 if moved else 2)
    assert gradient_gap(ours, theirs) < 1e-4


def test_whole_steps_are_timed_by_twos(tmp_path: Path) -> None:
    """Of candidates that are all cut, so that there is nothing to learn."""
    world = World(1, 2, 4)
    config = world.config("rollouts.sampling.max_new_tokens=12")
    with world.naive(config) as loop:
        before = [p.clone() for p in loop.trained]
        ours, theirs = steps(world, config, WorkerPool(1), tmp_path, 1, loop)
        assert all(torch.equal(a, b) for a, b in zip(before, loop.trained, strict=True))
    row = whole("cut", ours, theirs)
    assert len(ours) == len(theirs) == row.n == 1 and min(ours[0].seconds, ours[0].cpu, theirs[0].cpu) > 0
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) >= 4
    assert math.isclose(row.ratio, theirs[0].seconds / ours[0].seconds) and " of cores " in row.case


@pytest.mark.slow
def test_quick_tells_whole_steps_and_parts(tmp_path: Path) -> None:
    """With two workers, one, and a sampling ahead."""
    assert main(["online", "--quick", "--repeats", "1", "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["case"].startswith("whole step") for row in rows] == [True] * 3 + [False] * 7
    assert all(row["ours_s"] > 0 and math.isclose(row["ratio"], row["theirs_s"] / row["ours_s"]) for row in rows)
    gaps = [row["max_abs_diff"] for row in rows]
    assert gaps[:5] == [None] * 5 and max(gaps[5:]) < 1e-3
