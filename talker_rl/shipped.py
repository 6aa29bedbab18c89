"""The configurations that come with the package, by name; and what of a command line is a configuration.

``configs/`` of the repository is ``talker_rl/configs`` of the package. A name is the path in it without ``runs/`` and
suffix: ``demo``, ``qwen2.5-omni-7b-dpo``, ``stages/1-continuation``, ``sweeps/losses``; a file that is there goes
before a name. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from talker_rl.base.errors import ConfigError

FOLDER = Path(__file__).parent / "configs"
SUFFIXES = (".yaml", ".yml")
_PLACES = ("", "runs/", "stages/", "sweeps/")
"""Folders that a name may leave out, first come first served; a sweep's are looked for in ``sweeps/`` first."""

CONFIGS_TEXT = """\
The configurations that come with talker-rl. A name stands wherever a file may stand: after -c, as an argument, and in
`extends:` of a file of yours. A file of that name that is there goes before."""
CONFIGS_EXAMPLES = """\
talker-rl configs                          their names, and what each does
  talker-rl configs demo                     print one, with its comments
  talker-rl configs demo -o my.yaml          write it out, to edit
  talker-rl run -c demo                      run it as it is
  talker-rl run -c demo pairs.margin=0.1     or with other values"""


def add_configs_options(command: argparse.ArgumentParser) -> None:
    """Options of ``talker-rl configs``."""
    command.description = CONFIGS_TEXT
    command.add_argument("name", nargs="?", metavar="NAME", help="print this one")
    command.add_argument("--out", "-o", metavar="FILE", help="write it there instead; nothing is ever replaced")
    command.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


def verb(args: argparse.Namespace) -> int:
    """List the configurations, print one, or write one out."""
    if args.name is None:
        if args.out:
            raise ConfigError("Which configuration?", where="talker-rl configs", fix=f"one of: {', '.join(names())}")
        width = max(map(len, names()))
        print("\n".join(f"{name:{width}}  {about(path)}" for name, path in names().items()))
        return 0
    path = find(args.name)
    if path is None:
        raise unknown(args.name)
    if not args.out:
        print(path.read_text(encoding="utf-8"), end="")
        return 0
    from talker_rl.base.disk import atomic_write
    from talker_rl.base.places import check_writable_file

    out = Path(args.out)
    check_writable_file(out)
    if out.exists():
        raise ConfigError("This file is there already", where=str(out), fix="name another one")
    atomic_write(out, apart(path))
    look = f"sweep {out} --dry-run" if path.parent.name == "sweeps" else f"validate {out}"
    print(f"{out}: {about(path)}\nlook at it: talker-rl {look}")
    return 0


def names() -> dict[str, Path]:
    """Name -> file of every shipped configuration."""
    files = sorted(FOLDER.glob("**/*.yaml"), key=lambda path: (path.parent != FOLDER, path.with_suffix("")))
    return {name_of(path): path for path in files}


def name_of(path: Path) -> str:
    """Name of a shipped file."""
    return path.relative_to(FOLDER).with_suffix("").as_posix().removeprefix("runs/")


def find(name: str, *, sweep: bool = False) -> Path | None:
    """The shipped file of this name, or of its path in the repository (``configs/demo.yaml``); None where there is
    none. A mere ``demo.yaml`` is a file of one's own."""
    wanted = name.removeprefix("configs/").removesuffix(".yaml") if name.startswith("configs/") else name
    if not re.fullmatch(r"(\w+/)?[\w.-]{1,100}", wanted):
        return None
    places = ("sweeps/", *_PLACES) if sweep else _PLACES
    return next((path for place in places if (path := FOLDER / f"{place}{wanted}.yaml").is_file()), None)


def locate(name: str | Path, *, beside: Path = Path(), sweep: bool = False) -> Path:
    """The file that a name or a path means: one that is there, else a shipped one; else the path, which is not there.

    Args:
        beside: folder that a relative path starts from.
    """
    path = beside / name
    try:
        there = path.is_file()
    except OSError:  # e.g. a name that is too long
        there = False
    return path if there else find(str(name), sweep=sweep) or path


def about(path: Path) -> str:
    """What a configuration does, by its first comment: the first sentence, or what stands before its first colon."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line[2:].strip())
    return re.split(r"(?<=[.?!]) |[:;] |[.]$", " ".join(lines))[0]


def apart(path: Path) -> str:
    """A shipped file's text as it may lie anywhere: what it extends is named, and no longer found beside it."""

    def named(match: re.Match[str]) -> str:
        other = (path.parent / match[0]).resolve()
        return name_of(FOLDER / other.relative_to(FOLDER.resolve()))

    return re.sub(r"^\s*extends:[^#\n]*", lambda line: re.sub(r"[\w./-]+\.ya?ml", named, line[0]),
                  path.read_text(encoding="utf-8"), flags=re.M)


def nearest(name: str) -> str | None:
    """The shipped name most like this one."""
    stem = Path(name).name.removesuffix(".yaml").removesuffix(".yml")
    short = {known.rpartition("/")[2]: known for known in reversed(names())}
    close = difflib.get_close_matches(stem, short, n=1)
    return short[close[0]] if close else None


def unknown(name: str) -> ConfigError:
    """What is told of a name that is none."""
    near = nearest(name)
    return ConfigError(f"There is no configuration {name!r}",
                       fix=f"did you mean {near}?" if near else f"one of: {', '.join(names())}")


def split(config: Sequence[str], arguments: Sequence[str], *, sweep: bool = False) -> tuple[list[str], list[str]]:
    """Configurations, with or without ``-c``, and ``KEY=VALUE`` overrides of a command line.

    Raises:
        ConfigError: an argument is neither.
    """
    files, overrides = [*config], []
    for argument in arguments:
        if "=" in argument:
            overrides.append(argument)
        elif argument.endswith(SUFFIXES) or locate(argument, sweep=sweep).is_file():
            files.append(argument)
        else:
            near = nearest(argument)
            meant = f"did you mean {near}? " if near else ""
            raise ConfigError(f"Neither a configuration nor an override: {argument!r}",
                              fix=f"{meant}Give a YAML file, a name that `talker-rl configs` lists, or "
                              "dotted.key=value, e.g. pairs.margin=0.1")
    return files, overrides
