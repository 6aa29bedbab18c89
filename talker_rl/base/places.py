"""Folders and files that a command line names: whether a run is there, and whether something can be written there.

Asked before any work: a run folder that is misspelled must not become a new run, and hours must not end at a folder
that nothing can be written to.
"""

from __future__ import annotations

import difflib
import errno
import os
import tempfile
from pathlib import Path

from talker_rl.base.errors import CheckpointError, DataError, StageError

SPARE_NAME = 20
"""Bytes that a temporary name has more than the final one (``.NAME.PID.tmp``)."""

SPARE_PATH = 200
"""Likewise of what lies below a folder that is written to."""

_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
             errno.EEXIST)
"""What the system says of a path that is no place to write to."""


# -- runs that are there ---------------------------------------------------------------------------------------------


def is_run(folder: Path) -> bool:
    """Whether a run has begun in this folder."""
    return _has(folder, "manifest.json")


def is_sweep(folder: Path) -> bool:
    """Whether a sweep has begun in this folder."""
    return _has(folder, "sweep.json")


def require_run(folder: Path, fix: str = "") -> None:
    """Raise where no run is in this folder; nothing is created.

    Args:
        fix: what helps where no run folder of a similar name is near; by default, to check the name.

    Raises:
        StageError: there is none; names the nearest that is one.
    """
    if is_run(folder):
        return
    arms = sorted(str(arm) for arm in folder.glob("arms/*") if is_run(arm)) if is_sweep(folder) else []
    if arms:
        raise StageError("This is a sweep; its runs are below it", where=str(folder), fix=f"one of: {', '.join(arms)}")
    near = nearest_run(folder)
    raise StageError(_nothing("run", folder), where=str(folder),
                     fix=f"did you mean {near}?" if near else fix or "give the folder with manifest.json")


def require_sweep(folder: Path) -> None:
    """Likewise for a sweep."""
    if is_sweep(folder):
        return
    near = nearest_run(folder, sweeps=True)
    raise StageError(_nothing("sweep", folder), where=str(folder), fix=f"did you mean {near}?" if near else
                     "name the sweep, e.g. talker-rl sweep losses, or the --run-dir of one that has begun")


def nearest_run(folder: Path, *, sweeps: bool = False) -> Path | None:
    """The run folder (or sweep) most like a path that is none: of a similar name beside it or in ``runs/``, or the
    only one inside it; None where there is none."""
    wanted = is_sweep if sweeps else is_run
    places = dict.fromkeys((folder, folder.parent, Path("runs")))
    found = {path: path.name for place in places for path in _folders(place) if wanted(path)}
    inside = [path for path in found if path.parent == folder]
    if len(inside) == 1:
        return inside[0]
    names = [name for path, name in found.items() if path.parent != folder]
    near = difflib.get_close_matches(folder.name, names, n=1)
    return next((path for path, name in found.items() if near and name == near[0] and path.parent != folder), None)


def require_free(folder: Path, *, sweep: bool = False) -> None:
    """Raise where a new run (or sweep) would lie among files of another kind; hidden files do not count.

    Raises:
        StageError: the folder holds something, and no run (or sweep) that could go on.
    """
    if (is_sweep if sweep else is_run)(folder):
        return
    held = sorted(path.name for path in _entries(folder) if not path.name.startswith("."))
    if held:
        raise StageError(f"This folder holds other files ({', '.join(held[:3])}{', ...' * (len(held) > 3)}) and no "
                         + ("sweep" if sweep else "run"),
                         where=str(folder), fix="give a folder that is empty or not there yet: --run-dir DIR")


def require_adapter(spec: str | None) -> None:
    """Raise where ``model.adapter`` names nothing that is there.

    Raises:
        CheckpointError: it does; names the run most like it.
    """
    if spec is None or Path(spec).expanduser().exists():
        return
    near = nearest_run(Path(spec).expanduser())
    raise CheckpointError("There is no adapter here, nor such a folder", where=f"model.adapter: {spec}",
                          fix=f"did you mean {near}?" if near else
                          "give a PEFT folder, or the folder of a finished run: this stage comes after it")


def require_file(file: Path, kind: str, where: str) -> None:
    """Raise where a file that an option names is not there.

    Raises:
        DataError: names the nearest file beside it.
    """
    if file.is_file():
        return
    beside = [path.name for path in _entries(file.parent) if path.is_file()]
    near = difflib.get_close_matches(file.name, beside, n=1)
    raise DataError(f"The {kind} does not exist", where=f"{where}: {file}",
                    fix=f"did you mean {file.parent / near[0]}?" if near else "check the path")


def _nothing(kind: str, folder: Path) -> str:
    return f"There is no {kind} in this folder" if folder.is_dir() else f"There is no {kind} here, nor such a folder"


def _has(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except OSError:  # e.g. a name that is too long
        return False


def _folders(place: Path) -> list[Path]:
    return [path for path in _entries(place) if path.is_dir()]


def _entries(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except OSError:
        return []


# -- places to write to ------------------------------------------------------------------------------------------------


def check_writable_folder(path: Path | str) -> None:
    """Whether files can be written into this folder, which need not be there yet; leaves nothing behind.

    Raises:
        StageError: it is, or lies below, a file or a link to nowhere, its name is too long, or the system refuses.
    """
    _check_folder(Path(path), Path(path))


def _check_folder(folder: Path, shown: Path) -> None:
    """:func:`check_writable_folder` for what is ``shown`` to the user: the folder, or a file in it."""
    try:
        above = folder
        while not os.path.lexists(above):
            above = above.parent
        if not above.is_dir():
            kind = "a link to nowhere" if above.is_symlink() and not above.exists() else "a file"
            raise _refused(shown, f"{kind} is there" if above == shown else f"{above} is {kind}")
        limit = os.pathconf(above, "PC_NAME_MAX")
        if any(len(os.fsencode(name)) > limit for name in folder.relative_to(above).parts) or (
                len(os.fsencode(folder.absolute())) + SPARE_PATH > os.pathconf(above, "PC_PATH_MAX")):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=above):  # asking for permission tells root nothing: only trying does
            pass
    except OSError as error:
        raise _refused(shown, error.strerror or str(error), error.errno) from None


def check_writable_file(path: Path | str) -> None:
    """Whether a file can be written at this place, with the folders that it needs; leaves nothing behind.

    Raises:
        StageError: a folder is there, or what :func:`check_writable_folder` finds.
    """
    file = Path(path)
    try:
        if os.path.isdir(file) or not file.name:
            raise _refused(file, "a folder is there")
        if os.path.lexists(file) and not file.is_symlink() and not file.is_file():
            return  # a device or a pipe, e.g. /dev/stdout
        above = file.parent
        while not os.path.lexists(above):
            above = above.parent
        if above.is_dir() and len(os.fsencode(file.name)) + SPARE_NAME > os.pathconf(above, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    except OSError as error:
        raise _refused(file, error.strerror or str(error), error.errno) from None
    _check_folder(file.parent, file)


def _refused(path: Path, why: str, code: int | None = None) -> StageError:
    fix = "name another place"
    if code == errno.ENAMETOOLONG:
        fix = "choose a shorter name"
    elif code is not None:
        fix += ", or make this one writable"
    return StageError(f"Nothing can be written here: {why[:1].lower()}{why[1:]}", where=str(path), fix=fix)


def unwritable(error: BaseException) -> StageError | None:
    """An error of the system about a path, as one message; None where it is something else, e.g. a file that is not
    there to be read."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    path = Path(os.fsdecode(error.filename))
    lost = error.errno == errno.ENOENT and (path.is_symlink() or not path.parent.is_dir())
    if error.errno not in _NO_PLACE and not lost:
        return None
    why = "its folder is not there" if lost else error.strerror or str(error)
    return StageError(f"Cannot read or write this place: {why[:1].lower() + why[1:]}", where=str(path),
                      fix="name another place, or make this one accessible")


SHIPPED_MODELS = {"micro": "omni", "micro-qwen3": "qwen3"}
"""Name of a model that ships -> its folder in :func:`micro_dir`."""


def micro_dir() -> Path:
    """The folder that holds the shipped models: ``omni/``, ``qwen3/``, ``asr/reward``, ``asr/eval`` and ``prompts/``.

    The environment variable ``TALKER_RL_MICRO_DIR`` names another one (for instance a fresh ``talker-rl micro build``).
    """
    override = os.environ.get("TALKER_RL_MICRO_DIR")
    return Path(override).expanduser() if override else Path(__file__).resolve().parents[1] / "micro" / "checkpoint"
