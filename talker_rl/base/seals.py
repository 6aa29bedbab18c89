"""Files in other formats than the house's own: their folder's ``files.json`` lists them with their SHA-256, and each is
verified where it is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from talker_rl.base.disk import read_json, write_json
from talker_rl.base.errors import DataError
from talker_rl.base.file_hash import cached_hash

LIST = "files.json"


def seal(folder: Path, names: Iterable[str] | Mapping[str, str] | None = None) -> None:
    """List files of a folder as they are now, beside those that are listed already.

    Args:
        names: paths inside the folder, with their SHA-256 where whoever wrote them knows it; None lists every file that
            there is, and none else.
    """
    if names is None:
        found = {}
        names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    else:
        found = sealed(folder)
    known = names if isinstance(names, Mapping) else {}
    found |= {name: known.get(name) or cached_hash(folder / name) for name in names if name != LIST}
    write_json(folder / LIST, dict(sorted(found.items())))


def unseal(folder: Path) -> None:
    """Forget a folder's list, before its files are replaced one by one."""
    (folder / LIST).unlink(missing_ok=True)


def sealed(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files that a folder lists; none where it has no list, as folders of older runs.

    Raises:
        DataError: the list is damaged.
    """
    file, fix = folder / LIST, "do its stage again, or delete it: the files beside it are then taken as they are"
    return read_json(file, fix=fix) if file.exists() else {}


def is_intact(file: Path) -> bool:
    """Whether a file is what was written, as far as its folder tells."""
    told = sealed(file.parent).get(file.name)
    return file.is_file() and told in (None, cached_hash(file))


def verified(file: Path, *, fix: str | None = None) -> Path:
    """The file itself, if it is what was written, as far as its folder tells.

    Raises:
        DataError: it is missing, or is not what was written; says ``fix``.
    """
    told = sealed(file.parent).get(file.name)
    if told is not None and not file.is_file():
        raise DataError(f"{file.name} is missing", where=str(file.parent), fix=fix)
    if told not in (None, cached_hash(file) if file.is_file() else None):
        raise DataError(f"{file.name} is damaged: its content is not what was written", where=str(file), fix=fix)
    return file
