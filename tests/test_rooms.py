"""The house: imports point downwards, a family is known in its own folder only, and no codec's number outside it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from talker_rl.records.codec import codec_named
from talker_rl.speech.family import Family
from talker_rl.speech.registry import MODEL_TYPES, family_named

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "talker_rl"
OUTSIDE = [file for file in sorted(PACKAGE.rglob("*.py"))
           if file.relative_to(PACKAGE).parts[0] not in ("speech", "micro")]
"""Sources that talk to a family through the protocol."""
FAMILIES = sorted(p.parent.name for p in (PACKAGE / "speech").glob("*/codec.py"))


@pytest.fixture(scope="module")
def rooms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_rooms", ROOT / "docs" / "draw_rooms.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_imports_point_downwards(rooms: ModuleType) -> None:
    assert [f"{a} -> {b} ({at})" for a, b, at in rooms.upward(list(rooms.arrows()))] == []


def test_every_module_has_a_room(rooms: ModuleType) -> None:
    known = {room for floor in rooms.FLOORS for room in floor} | {rooms.BESIDE, "front door"}
    tops = {rooms.room_of(p.name.removesuffix(".py")) for p in PACKAGE.iterdir()
            if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert tops == known


def test_an_upward_import_would_be_seen(rooms: ModuleType) -> None:
    planted = [("records", "speech", "a"), ("speech", "reward", "b"), ("report", "stages", "c"), ("base", "micro", "d"),
               ("stages", "speech", "fine"), ("cli", "micro", "fine")]
    assert [at for _, _, at in rooms.upward(planted)] == ["a", "b", "c", "d"]


def test_one_style_of_imports() -> None:
    relative = [f"{file.relative_to(ROOT)}: {line}" for file in PACKAGE.rglob("*.py")
                for line in file.read_text().splitlines() if re.match(r"\s*from \.", line)]
    assert relative == []


def test_the_picture_is_up_to_date(rooms: ModuleType) -> None:
    assert rooms.PICTURE.read_text() == rooms.svg(list(rooms.arrows())), "run: python docs/draw_rooms.py"


def test_a_family_is_imported_in_its_own_room_only() -> None:
    assert "qwen2_5_omni" in FAMILIES
    named = re.compile(rf"talker_rl\.speech\.({'|'.join(FAMILIES)})\b|speech import ({'|'.join(FAMILIES)})\b")
    assert [f"{file.relative_to(ROOT)}: {line}" for file in OUTSIDE for line in file.read_text().splitlines()
            if named.search(line)] == []


NUMBERS = re.compile(r"\b(8194|8292|8293|8294|8296|24_?000|2150)\b|\b50\.0\b|[/*] 50\b|\b50 \*")


def test_no_number_of_a_codec_stands_outside_its_family() -> None:
    found = []
    for file in OUTSIDE:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if NUMBERS.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_the_numbers_of_every_family_are_looked_for() -> None:
    for name in FAMILIES:
        codec = codec_named(name)
        unknown = [stop for stop in codec.stops if stop > 99 and not NUMBERS.search(str(stop))]
        assert unknown == [], f"add the numbers of {name} to NUMBERS"


@pytest.mark.parametrize("line", ["if code >= 8194:", "rate = 24_000", "len(codes) / 50", "code_rate: float = 50.0"])
def test_such_a_number_would_be_seen(line: str) -> None:
    assert NUMBERS.search(line)


def test_the_front_door_imports_no_torch_and_holds_what_it_names() -> None:
    code = ("import sys, talker_rl; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules); "
            "bare = [n for n in talker_rl.__all__ if not getattr(talker_rl, n).__doc__]; assert not bare, bare")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_family_answers_all_that_is_asked_of_one() -> None:
    asked = [name for name in {**Family.__annotations__, **vars(Family)} if not name.startswith("_")]
    assert len(asked) > 15
    for name in MODEL_TYPES.values():
        family = family_named(name)
        assert [part for part in asked if not hasattr(family, part)] == [], name
        assert (PACKAGE / "speech" / name / "codec.py").is_file()
    whole = {p.parent.name for p in (PACKAGE / "speech").glob("*/family.py")}
    assert whole == set(MODEL_TYPES.values()), "a family is found by its model_type in MODEL_TYPES"
