"""What is printed: "per" and not a distributive "a", and counts that agree with their nouns."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from talker_rl.base.figures import count
from talker_rl.stages.legs import describe

ROOT = Path(__file__).resolve().parents[1]
SHARED = (r"\b(?:candidates|utterances|prompts|pairs|rows|codes|items|tokens|texts|seconds|steps|seeds|once|queue|\d+)"
          r" an? (?:prompt|shard|second|step|worker|utterance|kind|batch|code|core|text|candidate|row|line|forward)\b")
"""``8 candidates a prompt``, ``once a step``."""
FILES = [file for pattern in ("*.py", "*.yaml") for file in sorted((ROOT / "talker_rl").rglob(pattern))]


@pytest.mark.parametrize("wrong", ["8 candidates a prompt", "once a step", "one queue a kind", "codes an utterance"])
def test_the_pattern_finds_it(wrong: str) -> None:
    assert re.search(SHARED, wrong)


def test_nothing_is_said_so() -> None:
    found = [f"{file.relative_to(ROOT)}: {match[0]}" for file in FILES
             for match in re.finditer(SHARED, re.sub(r'"\s*\n\s*f?"', "", file.read_text(encoding="utf-8")))]
    assert not found


def test_a_count_agrees_with_its_noun() -> None:
    assert [count(n, "text") for n in (0, 1, 2)] == ["0 texts", "1 text", "2 texts"]
    assert [count(n, "policy", "policies") for n in (1, 2)] == ["1 policy", "2 policies"]


def test_rates_are_per_second_and_worker() -> None:
    legs: list[Any] = [SimpleNamespace(stage="rollouts", rows=73, busy=10.0),
                       SimpleNamespace(stage="scores", rows=73, busy=30.0)]
    assert describe(legs, 20.0) == ("rollouts 7.3 rows per second and worker (25% of the work), "
                                    "scores 2.4 rows per second and worker (75% of the work); 20 s in all")
