"""Files of the house: written whole or not at all, read with an error that says what to do.

JSON carries its own checksum, so that damage is told where it is read and not where it shows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from talker_rl.base.errors import DataError, disk_full, is_disk_full
from talker_rl.base.ids import stable_hash

CHECKSUM = "checksum"
"""Member of a JSON object: the hash of the others. A file without it, of before there were any, is taken as it is."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write in the block, by whatever library: it takes the place of ``path`` whole or not at all (temporary
    file, fsync, rename, fsync of the folder).

    Raises:
        StageError: the disk is full; the temporary file is gone and the old file, if any, is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # processes of several machines may share a folder, and a process number
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if is_disk_full(error):
            raise disk_full(path) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def atomic_write(path: Path, data: bytes | str) -> str:
    """Write a file completely or not at all; see :func:`replacing`.

    Returns:
        The SHA-256 of the content, hex.
    """
    blob = data.encode() if isinstance(data, str) else data
    with replacing(path) as temporary:
        temporary.write_bytes(blob)
    return hashlib.sha256(blob).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object with its checksum, atomically."""
    whole = {**data, CHECKSUM: _checksum(data)}
    atomic_write(path, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, *, fix: str | None = None) -> Any:
    """JSON of a file of the run, without its checksum.

    Args:
        fix: what to do about a file that is not there or damaged; None: a stage writes it again.

    Raises:
        DataError: missing, damaged, or not what was written; says the fix.
    """
    again = "run the stage that writes it again"
    damaged = fix or f"delete it, and {again}"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("A file of the run is missing", where=str(path), fix=fix or again) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"A file of the run is damaged ({error})", where=str(path), fix=damaged) from error
    if not isinstance(found, dict):
        raise DataError("A file of the run is damaged (it is no JSON object)", where=str(path), fix=damaged)
    told = found.pop(CHECKSUM, None)
    if told is not None and told != _checksum(found):
        raise DataError("A file of the run is damaged: its content is not what was written", where=str(path),
                        fix=f'{damaged}; or, if it was edited by hand, take its line "{CHECKSUM}" out')
    return found


def _checksum(data: dict[str, Any]) -> str:
    return stable_hash(json.loads(json.dumps(data)))[:16]
