"""Draw the rooms of the package from its imports: ``python docs/draw_rooms.py`` writes docs/rooms.svg.

The rooms' order is the design's (docs/DESIGN.md); an arrow means that sources of one import from the other.
tests/test_rooms.py holds that they point downwards and that the picture is up to date.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "talker_rl"
PICTURE = Path(__file__).with_name("rooms.svg")

FLOORS = (
    ("cli", "doctor"), ("stages",), ("planning",), ("speakers",), ("tracking",), ("report",), ("diagnostics",),
    ("evaluation",), ("config",), ("train",), ("reward",), ("speech",), ("data",), ("losses",), ("store",),
    ("records",), ("base",),
)
"""Rooms from the top down: a room imports from lower floors only."""
BESIDE = "micro"
"""The micro world stands beside the house: it may import every room, and only the command line imports it."""
_MODULES = {"cli_parser": "cli", "__main__": "cli", "config_files": "config", "sweep_config": "config",
            "shipped": "config", "rounds": "config", "variants": "config", "overrides": "config",
            "older_keys": "config", "tuning": "config", "__init__": "front door"}
"""Modules at the top of the package -> their room; others are rooms by their own names."""

Arrow = tuple[str, str, str]
"""(from room, to room, file:line)."""


def room_of(name: str) -> str:
    """The room of a module's first name below the package."""
    return _MODULES.get(name, name)


def arrows() -> Iterator[Arrow]:
    """Every import of one room by another, wherever it stands in a file."""
    for file in sorted(ROOT.rglob("*.py")):
        inside = file.relative_to(ROOT)
        here = room_of(inside.parts[0].removesuffix(".py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for module in _imported(node):
                names = module.split(".")
                if names[0] == ROOT.name and len(names) > 1 and room_of(names[1]) != here:
                    yield here, room_of(names[1]), f"{inside}:{getattr(node, 'lineno', 0)}"


def _imported(node: ast.AST) -> list[str]:
    """Modules that a statement imports, by whole name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level and node.module:
        whole = node.module == ROOT.name  # from talker_rl import x
        inside = [f"{node.module}.{alias.name}" for alias in node.names if not alias.name.startswith("__")]
        return inside if whole else [node.module]
    return []


def upward(found: list[Arrow]) -> list[Arrow]:
    """Arrows that point to the same floor or a higher one."""
    floor = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
    return [(a, b, at) for a, b, at in found if a in floor and (
        b == BESIDE and a != "cli" or b in floor and floor[b] <= floor[a] and (a, b) != ("cli", "doctor"))]


def svg(found: list[Arrow]) -> str:
    """The picture: a row a floor; arrows between neighbors run straight, longer ones in arcs to the right."""
    step, left, width = 40, 20, 150
    y = {room: 20 + step * i for i, rooms in enumerate(FLOORS) for room in rooms}
    x = {room: left + (width + 20) * k for rooms in FLOORS for k, room in enumerate(rooms)}
    drawn = sorted({(a, b) for a, b, _ in found if a in y and b in y and y[a] != y[b]})
    lines = []
    for a, b in drawn:
        start, end = y[a] + 12, y[b] + 12
        reach = left + width + 30 + (end - start) * 0.55
        lines.append(f'<path d="M{x[a] + width},{start} C{reach:.0f},{start} {reach:.0f},{end} {left + width},{end}">'
                     f'<title>{a} imports {b}</title></path>')
    rooms = [f'<rect x="{x[room]}" y="{y[room]}" width="{width}" height="24" rx="5"/>'
             f'<text x="{x[room] + width / 2:.0f}" y="{y[room] + 17}">{room}</text>' for room in y]
    height = 20 + step * len(FLOORS)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" font-family="sans-serif" '
        'font-size="13">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        '<g fill="none" stroke="#5b7db1" stroke-opacity="0.55">', *lines, "</g>",
        '<g fill="#eef3fb" stroke="#2c4a7c">', *(r.split("<text")[0] for r in rooms), "</g>",
        '<g fill="#16243d" text-anchor="middle">', *("<text" + r.split("<text")[1] for r in rooms), "</g>",
        "</svg>", "",
    ])


if __name__ == "__main__":
    PICTURE.write_text(svg(list(arrows())), encoding="utf-8")
    print(PICTURE)
